# %% [markdown]
# # 07 Heterogeneity: clients that differ
#
# **Question.** Clients speak different languages, come from different corpora, were recorded at
# other levels through other microphones, or have other classes: what stands in the way of one model
# for all of them? Which interventions help, and does the defence survive?
#
# **Method.** Several corpora are joined with commas (`-p corpus emovo,ravdess`): their speakers are
# the clients, and the classes that all of them have are the classes. After $T$ rounds every client
# $c$ trains once more from the global model $\theta_T$; its update is
# $\Delta_c = \theta_{c,T+1} - \theta_T$, and its direction
#
# $$ \cos_c = \frac{\langle \Delta_c, \bar\Delta \rangle}{\|\Delta_c\|\, \|\bar\Delta\|}, \qquad
# \bar\Delta = \sum_c \frac{n_c}{n} \Delta_c. $$
#
# The statistics of a batch-normalisation layer differ in a corpus $s$ from the model's by
# $\frac{1}{C} \sum_{j=1}^{C} |\mu_j^{(s)} - \mu_j| / \sigma_j$, over its $C$ channels. For label
# skew the clips of each class $k$ are dealt to the $N$ clients by shares
# $q_k \sim \mathrm{Dir}_N(\alpha)$: the smaller $\alpha$, the more the clients differ.
#
# An intervention is a change of settings that `02` takes too; each is trained on the same clips and
# compared with the training as given: $\Delta\mathcal{V} = \mathcal{V}_\mathrm{intervention} -
# \mathcal{V}_\mathrm{as\ given}$ in UAR, with a 95 % interval that draws whole speakers.

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
preset: str = "demo"  # smoke, demo, paper
corpus: str = None  # "synthetic", "machines", a folder of audio, a CSV manifest; several: a,b
attack: str = None  # adversarial training of all: none, fgsm, pgd, deepfool
defence: str = None  # adversarial training under label skew: fgsm, pgd, deepfool
interventions: list[str] = None  # to compare, by name; all: those that the settings allow
alphas: list[float] = None  # of the Dirichlet distribution of labels over clients
targets: list[float] = [30.0, 40.0, 50.0, 60.0, 70.0]  # UAR in percent, to be reached
seeds: int = None  # how many trainings of each
seed: int = None  # the first
rounds: int = None
local_epochs: int = None
learning_rate: float = None
speakers: int = None  # or machines, of the embedded corpora, 2 to 68
clips: int = None  # of the embedded corpora, 28 to 9365
width: float = None  # factor on VGG-15's channels
device: str = None  # auto, cpu, cuda
outputs: str = None  # folder for results; the repository's outputs/ otherwise

# %%
from IPython.display import Markdown

from fedser_utils import core, federated
from fedser_utils.analysis import heterogeneity
from fedser_utils.analysis.heterogeneity import plots

settings, page = core.notebook_settings(globals())

# %% [markdown]
# ## Run: the federation

# %%
options = {"interventions": page.interventions, "defence": page.defence, "seeds": page.seeds}
study = federated.open_heterogeneity_study(settings, **options)
heterogeneity.corpus_sizes(study.data.clips)

# %% [markdown]
# Files that cannot be used, by reason:

# %%
study.data.corpus.rejected["reason"].value_counts()

# %%
picture = plots.clients_by_class(study.data.clips, caption=study.caption)
study.save_figure(picture, "clients")

# %% [markdown]
# **Read it so.** Clients with the same labels have the same column, however many clips they have.
# White cells are classes that a client has never had: it cannot learn or be tested on these.

# %%
labels = heterogeneity.label_skew(study.data.clips)
study.save_table(labels, "labels").round(2)

# %% [markdown]
# **Read it so.** Where `distance` is about `by_chance`, the labels of a client differ no more than
# as many clips drawn from all clients would.

# %% [markdown]
# ## How does a corpus differ for the model?
#
# Mean log-Mel of each band before any standardisation, and the distance of each corpus from all
# together in their standard deviations: as recorded, and with every clip at one level (`level`
# rms).

# %%
bands, shift = federated.compare_inputs(study)
picture = plots.input_shift(bands, caption=study.caption)
study.save_figure(picture, "input")

# %% [markdown]
# **Read it so.** Corpora recorded alike lie on one curve. Parallel curves differ by their level
# alone, and then `distance` below falls with `level rms`; curves of another shape differ by
# microphone, room or voice, which no level removes.

# %%
study.save_table(shift, "input").round(2)

# %% [markdown]
# ## Run: one training per intervention, and the defence under label skew
#
# Complete runs are not trained again.

# %%
study = federated.train_interventions(study)
study = federated.train_label_skew(study, page.alphas)
study.caption

# %% [markdown]
# ## What stands in the way?
#
# One more round of every client from the model as given, which is not averaged.

# %%
drift = federated.measure_drift(study)
picture = plots.drift(drift, caption=study.caption)
study.save_figure(picture, "drift", rows=drift)

# %% [markdown]
# **Read it so.** Without drift all points are near cosine 1. Corpora that pull the model apart form
# separate clouds; one cloud of low cosines is the noise of few clips, not heterogeneity.

# %%
layers = federated.measure_batch_norm(study)
picture = plots.batch_norm_shift(layers, caption=study.caption)
study.save_figure(picture, "batch_norm", rows=layers)

# %% [markdown]
# **Read it so.** The black curve, of all corpora together, is what few clips and old statistics
# alone amount to. Only a corpus above it has batch statistics of another kind.

# %% [markdown]
# ## What helps?

# %%
outcomes = heterogeneity.measure_outcomes(study.runs)
table = heterogeneity.intervention_table(study.runs, outcomes, targets=page.targets)
assert table["uar"].between(0, 100).all()
study.save_table(outcomes, "outcomes")
study.save_table(table, "interventions").round(1)

# %%
curves = heterogeneity.rounds_by_intervention(study.runs)
picture = plots.interventions(curves, caption=study.caption)
study.save_figure(picture, "learning", rows=curves)

# %% [markdown]
# **Read it so.** `gain_low` to `gain_high` holds 0 for an intervention that cannot be told from the
# training as given; of many compared at once, `sure_low` to `sure_high` is the interval to trust. A
# curve that only rises sooner has helped with rounds, not with the result.

# %% [markdown]
# ## In sentences

# %%
measured = {"drift": drift, "batch_norm": layers, "labels": labels}
measured["inputs"] = shift[shift["level"] == "as recorded"]
lines = heterogeneity.conclude(table, outcomes, **measured)
Markdown(study.save_sentences(lines, "lessons"))

# %% [markdown]
# ## For whom?
#
# The model as given: on all test clips, per corpus, per language and per client.

# %%
baseline = study.baseline
uars = heterogeneity.uar_by_scope(baseline.table("predictions"), baseline.table("clips"))
study.save_table(uars, "results")
wide = {"index": ["scope", "name"], "columns": ["attack", "condition"], "values": "uar"}
uars.pivot(**wide).round(1)

# %%
spread = heterogeneity.spread(uars)
study.save_table(spread, "spread").round(1)

# %% [markdown]
# **Read it so.** A model that serves all alike has a `deviation` over clients no larger than their
# few test clips (`median_n`) explain; a corpus or language far below the others is not served.

# %% [markdown]
# ## The defence under label skew
#
# Adversarially trained, attacked, and randomised, on the same clips dealt to as many clients.

# %%
by_alpha = heterogeneity.uar_under_skew(study.skewed, attack=page.defence)
study.save_table(by_alpha, "alpha").round(1)

# %%
caption = f"Trained with {page.defence} under label skew. {study.caption}"
picture = plots.against_alpha(by_alpha, caption=caption)
study.save_figure(picture, "alpha", origin=study.skewed_origin)

# %% [markdown]
# **Read it so.** Flat curves: skew does no harm. If the adversarial curve falls to the left while
# the original one does not, the defence needs clients that have all classes. A wide area: few
# clients carry the mean.
#
# **Next.** `06_adaptive` attacks the defence with full knowledge; `08_dashboard` shows all runs.

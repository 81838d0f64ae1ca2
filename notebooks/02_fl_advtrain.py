# %% [markdown]
# # 02 Federated (adversarial) training
#
# **Question.** How well does one model, trained over many speakers (or machines) who keep their
# recordings, recognise the test clips? What do attacks take from it, and what do adversarial
# training and randomisation give back?
#
# **Method.** In round $t$ the server sends the weights $\theta_t$ to the clients $S_t$. Client $i$
# trains them for some epochs on its $n_i$ clips $\mathcal{D}_i$ with Adam, to $\theta_{i,t}$, and
# FedAvg takes the mean by numbers of clips:
#
# $$ \theta_{t+1} = \sum_{i \in S_t} \frac{n_i}{\sum_{j \in S_t} n_j}\, \theta_{i,t}. $$
#
# With `attack` none every clip is trained on as it is (the paper calls this model nature). In
# adversarial training, from the second round on, each client splits its clips at random into
# halves $\mathcal{X}'_i$ and $\mathcal{X}''_i$ and attacks the second with the weights that it
# received: $\mathcal{X}_{adv,i}$. Every batch then minimises the paper's Eq. 5, with $\ell$ the
# cross-entropy, over its clips of either half:
#
# $$ \mathcal{L}(\theta_i) =
# \frac{\alpha}{|\mathcal{X}'_i|} \sum_{x \in \mathcal{X}'_i} \ell(\theta_i, x, y)
# + \frac{1 - \alpha}{|\mathcal{X}_{adv,i}|}
# \sum_{x_{adv} \in \mathcal{X}_{adv,i}} \ell(\theta_i, x_{adv}, y). $$
#
# A model is measured by its unweighted average recall over $K$ classes with $n_k$ test clips each:
#
# $$ \mathrm{UAR} = \frac{100}{K} \sum_{k=1}^{K} \frac{1}{n_k} \sum_{i:\, y_i = k}
# \mathbb{1}[\hat y_i = k]. $$

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
preset: str = "demo"  # smoke, demo, paper
corpus: str = None  # "synthetic", "machines", a folder of audio, a CSV manifest; several: a,b
attack: str = None  # adversarial training with: none, fgsm, pgd, deepfool
clients: str = None  # speakers, or pooled: one client with all clips (centralised)
seed: int = None  # of split, weights, batches and draws
rounds: int = None  # of training and averaging
local_epochs: int = None  # of a client in a round
batch_size: int = None  # clips in a step of the clients
learning_rate: float = None  # of the clients' Adam
strategy: str = None  # FedAvg, FedProx, FedAdam, FedYogi, FedAvgM, FedMedian, Krum ... see docs
fraction_train: float = None  # share of the clients that train in a round
runtime: str = None  # cohort (in this process), simulation (Ray), deployment (over the network)
superlink: str = None  # host:port of a running deployment; otherwise one is started here
width: float = None  # factor on VGG-15's channels
alpha: float = None  # weight of the original half's loss, Eq. 5
epsilon: float = None  # L-inf radius of FGSM and PGD, standardised log-Mel units
step_size: float = None  # of PGD
steps: int = None  # of PGD and DeepFool
device: str = None  # auto, cpu, cuda
outputs: str = None  # folder for results; the repository's outputs/ otherwise

# %%
from IPython.display import Markdown

from fedser_utils import analysis, core, federated, workbook
from fedser_utils.analysis import diagrams, figures

settings, page = core.notebook_settings(globals())

# %% [markdown]
# ## Run
#
# If this is stopped, by whatever means, the same parameters resume it from the newest checkpoint.
# Wherever the clients are, the monitor shows the last evaluated round, the time left, who was
# missing, and the megabytes sent. Opened again, this notebook shows a run that another process is
# training, or a finished one, in the same way.

# %%
monitor = workbook.TrainingMonitor(settings.rounds)
run = federated.train(settings, monitor=monitor, wait=workbook.is_live())

# %% [markdown]
# **Read it so.** The curve is the UAR on original test clips. Of a model that learns nothing it
# would stay at chance, 100 / $K$ percent (14.3 for seven emotions); a curve that still climbs at
# the end asks for more rounds, and a missing client is named with its reason.

# %% [markdown]
# ## After the last round
#
# UAR and WAR (the share of clips recognised) in percent, with the 95 % interval of the UAR over
# resampled speakers.

# %%
clips, last = run.table("clips"), analysis.tables.last_round(run.table("predictions"))
scores = analysis.scores(last, intervals=True)
assert last["round"].eq(settings.rounds).all()
assert scores["uar"].between(0, 100).all()
assert last["clip"].isin(clips.loc[clips["split"] == "test", "clip"]).all()
scores.round(2)

# %% [markdown]
# **Read it so.** The row `none`, `original` is the model without any attacker. An attack that did
# nothing would leave `adversarial` as high as that; a randomisation that did nothing would leave
# `randomised_adversarial` as low as `adversarial`. These intervals are each condition's own: `05`
# compares two conditions on the same clips, clip by clip.

# %% [markdown]
# ## UAR against the round, under the four conditions (Fig. 5)

# %%
caption = analysis.tables.caption(
    last.assign(seed=settings.seed), clips, study=settings.study, corpus=settings.corpus,
    hardware=core.runs.hardware([run]),
)  # fmt: skip
picture = figures.four_conditions(run.table("rounds"), caption=f"{caption} Run {run.id}.")
figures.save(picture, run.folder / "figures", "conditions", origin=core.origin([run]))

# %% [markdown]
# **Read it so.** All panels have one scale. If adversarial training did not protect, (c) of this
# run would be as low as (c) of a run with `attack` none; if the randomisation cost nothing, (b)
# would be (a). Rounds jump: do not choose a round by its test UAR.

# %% [markdown]
# ## The framework (Fig. 1)

# %%
terms = analysis.terms(clips["emotion"])
diagrams.framework(terms, shape=settings.front_end.shape)

# %% [markdown]
# **Read it so.** (a) is what ran above, where recordings never leave a client: weights do, and
# counts, losses and sums of Mel bands. (b) is the second defence, at inference, which needs no
# training.

# %% [markdown]
# ## The network (Fig. 3)

# %%
diagrams.network(clips["emotion"].nunique(), shape=settings.front_end.shape)

# %% [markdown]
# **Read it so.** The sizes are those of this run's log-Mel image and classes, at `width` 1.

# %% [markdown]
# ## The notation (Table 1)

# %%
Markdown(diagrams.notation(terms))

# %% [markdown]
# **Next.** Train the same with another `attack`, and once with `clients` pooled; then `03_attacks`
# compares attacks on these models, `04_randomisation` studies the second defence, and `05_analysis`
# makes the paper's tables.

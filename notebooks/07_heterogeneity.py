# %% [markdown]
# # 07 Heterogeneity: clients that are not alike
#
# Clients speak different languages, come from different corpora, were recorded at other levels
# through other microphones, or have other classes. What stands in the way of one model for all of
# them, what helps, and does the defence hold? One training per remedy, on the same clips.
#
# Several corpora are joined with commas (`-p corpus emovo,ravdess`): their speakers are the
# clients, and the classes that all of them have are the classes. Everything below is computed from
# the runs; what it says holds for these corpora, rounds and seeds.

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
preset: str = "demo"  # smoke, demo, paper
corpus: str = None  # "synthetic", "machines", a folder of audio, a CSV manifest; several: a,b
reader: str = None  # auto, folders: where names are not known, .../client/class/file
classes: str = None  # of several corpora: shared (those that all have), all
clips_per_speaker: int = None  # at most; otherwise all
log_mel: str = None  # auto, speech, machines
seconds: float = None  # of sound in an image; shorter ones are repeated, longer ones cut
attack: str = None  # adversarial training of all: none, fgsm, pgd, deepfool
defence: str = None  # adversarial training under label skew: fgsm, pgd, deepfool
remedies: list = None  # what is tried, by name; all: whatever the settings can have
alphas: list = None  # of the Dirichlet distribution of labels over clients
targets: list = [30.0, 40.0, 50.0, 60.0, 70.0]  # UAR in percent, to be reached
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
from fedser_utils.core.errors import choose, refusals
from fedser_utils.core.settings import ATTACKS, notebook_settings, own_parameters

OWN = {"remedies": [str], "alphas": [float], "targets": [float], "seeds": int, "defence": str}
settings = notebook_settings(globals(), own=OWN)
own = own_parameters(globals(), OWN, settings)

from dataclasses import replace

import pandas as pd
from IPython.display import Markdown, display

from fedser_utils.analysis import figures
from fedser_utils.analysis.heterogeneity import client_differences as differences
from fedser_utils.analysis.heterogeneity import outcomes, plots
from fedser_utils.analysis.heterogeneity.interventions import BASELINE, apply, select
from fedser_utils.analysis.heterogeneity.lessons import lessons
from fedser_utils.analysis.heterogeneity.obstacles import obstacles
from fedser_utils.core import runs as stored
from fedser_utils.data.federation import load_federation
from fedser_utils.federated import client as members
from fedser_utils.federated import client_drift, runtimes
from fedser_utils.learning import vgg

with refusals():
    given = replace(settings, eval_every=1, attack_every=settings.rounds)
    names = select(given, own.remedies)
    hardened = replace(given, attack=choose("defence", own.defence, ATTACKS))
    data = load_federation(given)
folder, several = settings.folder / "heterogeneity", range(given.seed, given.seed + own.seeds)
origin = f"corpus {data.corpus.fingerprint}; drawn with {stored.commit()}"
caption = f"{given.study}: {len(data.clients)} clients, n = {len(data.table('test'))} test clips"

# %% [markdown]
# ## Who is in this federation?

# %%
of_corpus = data.clips.groupby(["corpus", "language"])
who = of_corpus.agg(clients=("client", "nunique"), clips=("clip", "size"), rate=("rate", "max"))
display(who, data.corpus.rejected["reason"].value_counts())

# %%
picture = plots.clients_by_class(data.clips, caption=caption)
figures.save(picture, folder, "clients", origin=origin)

# %%
labels = differences.label_skew(data.clips)
stored.write_table(folder / "labels.csv", labels)
labels.round(2)

# %% [markdown]
# ## What does a corpus sound like to the model?
#
# Mean log-Mel of each band before any standardisation, and how far each corpus is from all together
# in their standard deviations: as recorded, and with every clip at one level (`level` rms).

# %%
bands = differences.input_shift(data.log_mels, data.clips)
levelled = load_federation(replace(given, level="rms"))
levels = {
    "as recorded": bands,
    "level rms": differences.input_shift(levelled.log_mels, levelled.clips),
}
shift = pd.concat(
    differences.shift_by_group(rows).assign(level=name) for name, rows in levels.items()
)
stored.write_table(folder / "input.csv", shift)
picture = plots.input_shift(bands, caption=caption)
display(figures.save(picture, folder, "input", origin=origin), shift.round(2))

# %% [markdown]
# ## One training per remedy
#
# Each remedy is a change of settings that `02` takes, too. What has been trained is not trained
# again.

# %%
with refusals():
    trained = {
        name: [runtimes.train(replace(apply(given, name), seed=s)) for s in several]
        for name in names
    }
plain = trained[BASELINE][0]
on = stored.hardware([run for made in trained.values() for run in made])
origin = stored.origin([run for made in trained.values() for run in made])
caption += f", {given.rounds} rounds, seeds {[*several]}, "
caption += ", ".join(on.values())
caption

# %% [markdown]
# ## What stands in the way?
#
# One more round of every client from the model as given, which is not averaged: how far do they
# go, and in whose direction? And how unlike are the batch statistics of each corpus?

# %%
model = vgg.load(plain).to(members.resolve_device(given))
told = {"round_number": given.rounds + 1, "states": client_drift.saved_states(plain, data)}
pulls = client_drift.drift(given, data, vgg.state_arrays(model), **told)
picture = plots.drift(pulls, caption=caption)
figures.save(picture, folder, "drift", origin=origin, rows=pulls.assign(**on))

# %%
layers = client_drift.batch_norm_shift(given, data, model)
picture = plots.batch_norm_shift(layers, caption=caption)
figures.save(picture, folder, "batch_norm", origin=origin, rows=layers.assign(**on))

# %% [markdown]
# ## What helps?
#
# `gain`: the difference in UAR on original test clips from the training as given, paired by clip,
# with a 95 % interval that draws whole speakers.

# %%
found = outcomes.outcomes(trained)
table = outcomes.table(trained, found, targets=own.targets)
assert table["uar"].between(0, 100).all()
stored.write_table(folder / "remedies.csv", table.assign(**on))
stored.write_table(folder / "outcomes.csv", found.assign(**on))
table.round(1)

# %%
curves = pd.concat(
    run.table("rounds").assign(remedy=name) for name, made in trained.items() for run in made
)
picture = plots.interventions(curves, caption=caption)
figures.save(picture, folder, "learning", origin=origin, rows=curves.assign(**on))

# %% [markdown]
# ## In words

# %%
said = lessons(table, found)
measured = {"drift": pulls, "batch_norm": layers, "labels": labels, "table": table}
said += obstacles(inputs=differences.shift_by_group(bands), **measured)
stored.write_text(folder / "lessons.md", "\n".join(f"- {line}" for line in said) + "\n")
Markdown("\n".join(f"- {line}" for line in said))

# %% [markdown]
# ## For whom?
#
# The model as given, on all test clips, per corpus, per language and per client; how evenly the
# clients are served.

# %%
each = differences.results(plain.table("predictions"), plain.table("clips"))
served = differences.spread(each)
stored.write_table(folder / "results.csv", each.assign(**on))
stored.write_table(folder / "spread.csv", served.assign(**on))
wide = {"index": ["scope", "name"], "columns": ["attack", "condition"], "values": "uar"}
display(each.pivot(**wide).round(1), served.round(1))

# %% [markdown]
# ## The defence under label skew
#
# The same clips dealt out to as many clients, each class by a Dirichlet distribution: the smaller
# alpha, the more unlike the clients. Adversarially trained, attacked, and randomised.

# %%
with refusals():
    skewed = [
        (alpha, runtimes.train(replace(hardened, partition="dirichlet", skew_alpha=alpha, seed=s)))
        for alpha in own.alphas
        for s in several
    ]
rows = pd.concat(
    differences.results(run.table("predictions"), run.table("clips")).assign(
        alpha=alpha, seed=run.settings.seed
    )
    for alpha, run in skewed
)
by_alpha = differences.by_alpha(rows, attack=own.defence)
picture = plots.against_alpha(by_alpha, caption=f"trained with {own.defence}; {caption}")
figures.save(picture, folder, "alpha", origin=stored.origin([run for _, run in skewed]))
stored.write_table(folder / "alpha.csv", by_alpha.assign(**on))
display(picture, by_alpha.round(1))

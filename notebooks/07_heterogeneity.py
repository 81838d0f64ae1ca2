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
from fedser_utils import config

OWN = {"remedies": [str], "alphas": [float], "targets": [float], "seeds": int, "defence": str}
settings = config.notebook_settings(globals(), own=OWN)
own = config.own_parameters(globals(), OWN, settings)

from dataclasses import replace

import pandas as pd
from IPython.display import Markdown, display

from fedser_utils import clients as members
from fedser_utils import contrasts, drift, effects, figures, models, runtimes, skew
from fedser_utils import runs as stored
from fedser_utils.lessons import lessons
from fedser_utils.obstacles import obstacles
from fedser_utils.partition import load_federation
from fedser_utils.remedies import AS_GIVEN, chosen, remedied

with config.refusals():
    given = replace(settings, eval_every=1, attack_every=settings.rounds)
    names = chosen(given, own.remedies)
    hardened = replace(given, attack=config.choose("defence", own.defence, config.ATTACKS))
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
picture = contrasts.clients_by_class(data.clips, caption=caption)
figures.save(picture, folder, "clients", origin=origin)

# %%
labels = skew.label_skew(data.clips)
stored.write_table(folder / "labels.csv", labels)
labels.round(2)

# %% [markdown]
# ## What does a corpus sound like to the model?
#
# Mean log-Mel of each band before any standardisation, and how far each corpus is from all together
# in their standard deviations: as recorded, and with every clip at one level (`level` rms).

# %%
bands = skew.input_shift(data.log_mels, data.clips)
levelled = load_federation(replace(given, level="rms"))
levels = {"as recorded": bands, "level rms": skew.input_shift(levelled.log_mels, levelled.clips)}
shift = pd.concat(skew.shift_by_group(rows).assign(level=name) for name, rows in levels.items())
stored.write_table(folder / "input.csv", shift)
picture = contrasts.input_shift(bands, caption=caption)
display(figures.save(picture, folder, "input", origin=origin), shift.round(2))

# %% [markdown]
# ## One training per remedy
#
# Each remedy is a change of settings that `02` takes, too. What has been trained is not trained
# again.

# %%
with config.refusals():
    trained = {
        name: [runtimes.train(replace(remedied(given, name), seed=s)) for s in several]
        for name in names
    }
plain = trained[AS_GIVEN][0]
on = stored.made_on([run for made in trained.values() for run in made])
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
model = models.load(plain).to(members.device_of(given))
told = {"round_number": given.rounds + 1, "states": drift.kept(plain, data)}
pulls = drift.drift(given, data, models.state_arrays(model), **told)
picture = contrasts.drift(pulls, caption=caption)
figures.save(picture, folder, "drift", origin=origin, rows=pulls.assign(**on))

# %%
layers = drift.batch_norm_shift(given, data, model)
picture = contrasts.batch_norm_shift(layers, caption=caption)
figures.save(picture, folder, "batch_norm", origin=origin, rows=layers.assign(**on))

# %% [markdown]
# ## What helps?
#
# `gain`: the difference in UAR on original test clips from the training as given, paired by clip,
# with a 95 % interval that draws whole speakers.

# %%
found = effects.outcomes(trained)
table = effects.table(trained, found, targets=own.targets)
assert table["uar"].between(0, 100).all()
stored.write_table(folder / "remedies.csv", table.assign(**on))
stored.write_table(folder / "outcomes.csv", found.assign(**on))
table.round(1)

# %%
curves = pd.concat(
    run.table("rounds").assign(remedy=name) for name, made in trained.items() for run in made
)
picture = contrasts.remedies(curves, caption=caption)
figures.save(picture, folder, "learning", origin=origin, rows=curves.assign(**on))

# %% [markdown]
# ## In words

# %%
said = lessons(table, found)
measured = {"drift": pulls, "batch_norm": layers, "labels": labels, "table": table}
said += obstacles(inputs=skew.shift_by_group(bands), **measured)
stored.write_text(folder / "lessons.md", "\n".join(f"- {line}" for line in said) + "\n")
Markdown("\n".join(f"- {line}" for line in said))

# %% [markdown]
# ## For whom?
#
# The model as given, on all test clips, per corpus, per language and per client; how evenly the
# clients are served.

# %%
each = skew.results(plain.table("predictions"), plain.table("clips"))
served = skew.spread(each)
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
with config.refusals():
    skewed = [
        (alpha, runtimes.train(replace(hardened, partition="dirichlet", skew_alpha=alpha, seed=s)))
        for alpha in own.alphas
        for s in several
    ]
rows = pd.concat(
    skew.results(run.table("predictions"), run.table("clips")).assign(
        alpha=alpha, seed=run.settings.seed
    )
    for alpha, run in skewed
)
by_alpha = skew.by_alpha(rows, attack=own.defence)
picture = contrasts.against_alpha(by_alpha, caption=f"trained with {own.defence}; {caption}")
figures.save(picture, folder, "alpha", origin=stored.origin([run for _, run in skewed]))
stored.write_table(folder / "alpha.csv", by_alpha.assign(**on))
display(picture, by_alpha.round(1))

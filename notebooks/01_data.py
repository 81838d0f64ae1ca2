# %% [markdown]
# # 01 Data: which clips, which clients?
#
# A corpus becomes a table of clips, clips become log-Mel images, speakers or machines become
# clients. What does each client hold, and what is set aside for testing (Table 2)?

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
preset: str = "demo"  # smoke, demo, paper
corpus: str = None  # "synthetic", "machines", a folder of audio, a CSV manifest; several: a,b
reader: str = None  # auto, folders: where names are not known, .../client/class/file
classes: str = None  # of several corpora: shared (those that all have), all
clips_per_speaker: int = None  # at most; otherwise all
log_mel: str = None  # auto, speech, machines: rate, window, bands ... (02 has each alone)
level: str = None  # none, rms: every clip made equally loud
standardisation: str = None  # by the statistics of: all, corpus, client
partition: str = None  # of clips to clients: speaker, iid, dirichlet (over labels), quantity
client_count: int = None  # where it is not by speaker; otherwise as many as speakers
skew_alpha: float = None  # of dirichlet and quantity; small: clients are very unlike
split: str = None  # speaker_dependent, speaker_independent
seed: int = None  # of the split
speakers: int = None  # or machines, of the embedded corpora, 2 to 68
clips: int = None  # of the embedded corpora, 28 to 9365
outputs: str = None  # folder for results; the repository's outputs/ otherwise

# %%
from fedser_utils.core.errors import InputError, refusals
from fedser_utils.core.settings import notebook_settings

settings = notebook_settings(globals())

import pandas as pd
from IPython.display import Audio, Markdown, display

from fedser_utils.analysis import baselines, diagrams, figures, tables
from fedser_utils.analysis.heterogeneity import plots
from fedser_utils.core import runs
from fedser_utils.data import audio
from fedser_utils.data.federation import load_federation

with refusals():
    data = load_federation(settings)

# %% [markdown]
# ## The framework, the network, the notation

# %%
words = tables.terms(data.classes)
diagrams.framework(words, shape=settings.front_end.shape)

# %%
diagrams.network(len(data.classes), shape=settings.front_end.shape)

# %%
Markdown(diagrams.notation(words))

# %% [markdown]
# ## The clips

# %%
data.clips.drop(columns="digest").rename(columns={"emotion": words.label})

# %%
data.corpus.rejected

# %%
counts = tables.table2(data.clips)
assert counts["sum"].iloc[-1] == len(data.clips)
runs.write_table(settings.folder / "table2.csv", counts)
runs.write_table(settings.folder / "rejected.csv", data.corpus.rejected)
counts

# %% [markdown]
# ## How far does a ruler get?
#
# A linear model on the mean level of a clip, and on the mean and the deviation of each Mel band: it
# cannot see *when* anything happens, and does not change if the frames are shuffled. What a network
# learns should be judged against it. The field's yardstick, a linear support vector machine on
# openSMILE's eGeMAPS functionals, needs the optional package `opensmile`. Trained on the training
# clips, judged on the test clips; 95 % intervals from a bootstrap over speakers (or machines).

# %%
asked = [data.clips["emotion"], data.clips["speaker"], data.clips["split"] == "train"]
linear = baselines.table(*asked, log_mels=data.log_mels)
paths = [data.corpus.root / path for path in data.clips["path"]]
try:
    sounds = (audio.read(path).waveform for path in paths)
    yardstick = baselines.table(*asked, waveforms=sounds)
except InputError as missing:
    yardstick = None
    print(missing)
linear = pd.concat([linear, yardstick], ignore_index=True)
runs.write_table(settings.folder / "baselines.csv", linear)
linear.round(1)

# %% [markdown]
# ## The clients

# %%
clients = plots.clients_by_class(data.clips)
origin = f"corpus {data.corpus.fingerprint}; drawn with {runs.commit()}"
figures.save(clients, settings.folder, "clients", origin=origin)
clients

# %% [markdown]
# ## What the model sees, and what it sounds like
#
# One clip of each of three classes, standardised as the model sees them: with the statistics pooled
# from the clients' sums, unless `standardisation` says otherwise.

# %%
shown = data.table("train").groupby("emotion").head(1).head(3)
x, _ = data.tensors(shown)
assert x.shape[1:] == (1, *settings.front_end.shape)
assert bool(x.isfinite().all())
titles = list(shown["emotion"] + ", " + shown["clip"])
figures.log_mels(list(x[:, 0].numpy()), titles, front=settings.front_end)

# %%
for row in shown.itertuples():
    display(Markdown(row.emotion), Audio(str(data.corpus.root / row.path)))

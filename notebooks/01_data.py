# %% [markdown]
# # 01 Data: which clips, which clients?
#
# **Question.** What does each client hold, and what is set aside for testing (Table 2)? How well do
# linear models without any sense of time recognise these clips, which a network should beat?
#
# **Method.** A corpus is a table of clips; speakers or machines are clients. A waveform $w$,
# repeated or cut to one length, becomes a log-Mel image of frames $t$ and Mel bands $b$ with
# Slaney's filters $H$,
#
# $$ m_{t,b} = \ln\Big(\sum_k H_{k,b}\, \big|\mathrm{STFT}(w)_{t,k}\big| + 10^{-8}\Big). $$
#
# Client $i$ reveals three sums over its training frames: their number $n_i$,
# $s_{i,b} = \sum m_{t,b}$ and $q_{i,b} = \sum m_{t,b}^2$. From these the server pools mean and
# deviation of each band, and the model's input is
#
# $$ x_{t,b} = \frac{m_{t,b} - \mu_b}{\sigma_b}, \qquad
# \mu_b = \frac{\sum_i s_{i,b}}{\sum_i n_i}, \qquad
# \sigma_b^2 = \frac{\sum_i q_{i,b}}{\sum_i n_i} - \mu_b^2. $$
#
# Of $K$ classes with $n_k$ test clips, the baselines' unweighted average recall is
#
# $$ \mathrm{UAR} = \frac{100}{K} \sum_{k=1}^{K} \frac{1}{n_k} \sum_{i:\, y_i = k}
# \mathbb{1}[\hat y_i = k]. $$

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
preset: str = "demo"  # smoke, demo, paper
corpus: str = None  # "synthetic", "machines", a folder of audio, a CSV manifest; several: a,b
reader: str = None  # auto, folders: where names are not known, .../client/class/file
classes: str = None  # of several corpora: shared (those that all have), all
clips_per_speaker: int = None  # at most; otherwise all
log_mel: str = None  # auto, speech, machines: rate, window, bands ...
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
from IPython.display import Markdown

from fedser_utils import analysis, core, data, workbook
from fedser_utils.analysis import baselines, diagrams, figures
from fedser_utils.analysis.heterogeneity import plots

settings, page = core.notebook_settings(globals())

# %% [markdown]
# ## Run

# %%
federation = data.load_federation(settings)
terms = analysis.terms(federation.classes)

# %% [markdown]
# ## The framework, the network, the notation

# %%
diagrams.framework(terms, shape=settings.front_end.shape)

# %%
diagrams.network(len(federation.classes), shape=settings.front_end.shape)

# %%
Markdown(diagrams.notation(terms))

# %% [markdown]
# ## The clips

# %%
federation.clips.drop(columns="digest").rename(columns={"emotion": terms.label})

# %% [markdown]
# Files that cannot be used, each with the reason:

# %%
core.runs.write_table(settings.folder / "rejected.csv", federation.corpus.rejected)
federation.corpus.rejected

# %%
table2 = analysis.table2(federation.clips)
assert table2["sum"].iloc[-1] == len(federation.clips)
core.runs.write_table(settings.folder / "table2.csv", table2)
table2

# %% [markdown]
# **Read it so.** Every usable clip is counted once. A class with a handful of test clips would make
# each UAR depend on few clips; many rejected files of one reason mean a wrong reader.

# %% [markdown]
# ## Linear baselines
#
# Linear models on the mean level of a clip, and on the mean and the deviation of each Mel band:
# they cannot know *when* anything happens, and shuffled frames give the same result. The field's
# reference, a linear support vector machine on openSMILE's eGeMAPS functionals, needs the optional
# package `opensmile`. UAR in percent on the test clips; 95 % intervals from a bootstrap over
# speakers (or machines).

# %%
linear = baselines.compare(
    federation.clips, log_mels=federation.log_mels, waveforms=federation.waveforms()
)
core.runs.write_table(settings.folder / "baselines.csv", linear)
linear.round(1)

# %% [markdown]
# **Read it so.** A network learns more than a class's average spectrum if its UAR in `02` is above
# these rows, and outside their intervals. A corpus that the mean level solves would be too easy:
# its recordings, not its classes, would differ.

# %% [markdown]
# ## The clients

# %%
picture = plots.clients_by_class(federation.clips)
figures.save(picture, settings.folder, "clients", origin=federation.origin)

# %% [markdown]
# **Read it so.** Alike clients show columns of one pattern. A column with one dark cell is a client
# that knows one class; averaging over such clients is hard (`07_heterogeneity`).

# %% [markdown]
# ## The model's input
#
# One clip of each of three classes, standardised by the pooled statistics unless `standardisation`
# says otherwise.

# %%
examples = federation.examples()
x, _ = federation.tensors(examples)
assert x.shape[1:] == (1, *settings.front_end.shape)
assert bool(x.isfinite().all())
titles = examples["emotion"] + ", " + examples["clip"]
figures.log_mels(x[:, 0].numpy(), titles, front=settings.front_end)

# %% [markdown]
# **Read it so.** Values lie mostly between -3 and 3, about 0 in each band. Stripes along the time
# would mean a band that the statistics do not fit; a pattern that comes again after some seconds is
# a short clip, repeated.

# %%
workbook.clip_players(federation, examples)

# %% [markdown]
# **Next.** `02_fl_advtrain` trains a model over these clients; `07_heterogeneity` measures how they
# differ and what to do about it.

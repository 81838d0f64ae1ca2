# %% [markdown]
# # 02 Federated (adversarial) training
#
# One model is trained over many speakers (or machines) who keep their recordings: natural
# (`attack` none), or on clips of which a random half is attacked in every round (the first
# defence). How well does it recognise the test clips, and what do attacks and randomisation do to
# it?

# %% tags=["parameters"]
# Parameters: None means "as the preset says"
preset: str = "demo"  # smoke, demo, paper
corpus: str = None  # "synthetic", "machines", a folder of audio, a CSV manifest; several: a,b
reader: str = None  # auto, folders: where names are not known, .../client/class/file
classes: str = None  # of several corpora: shared (those that all have), all
clips_per_speaker: int = None  # at most; otherwise all
log_mel: str = None  # auto, speech, machines: named values of the following
sample_rate: int = None  # Hz
window: int = None  # samples
hop: int = None  # samples
bands: int = None  # of the Mel scale
lowest: float = None  # Hz
highest: float = None  # Hz
seconds: float = None  # of sound in an image; shorter ones are repeated, longer ones cut
level: str = None  # none, rms: every clip made equally loud
standardisation: str = None  # by the statistics of: all, corpus, client
attack: str = None  # adversarial training with: none, fgsm, pgd, deepfool
clients: str = None  # speakers, or pooled: one client with all clips (centralised)
seed: int = None  # of split, weights, batches and draws
partition: str = None  # of clips to clients: speaker, iid, dirichlet (over labels), quantity
client_count: int = None  # where it is not by speaker; otherwise as many as speakers
skew_alpha: float = None  # of dirichlet and quantity; small: clients are very unlike
rounds: int = None
local_epochs: int = None
batch_size: int = None
learning_rate: float = None  # of the clients' Adam
learning_rate_decay: float = None  # factor from round to round
client_state: str = None  # keep, reset: a client's Adam state across rounds
strategy: str = (
    None  # FedAvg, FedProx, FedAdam, FedYogi, FedAvgM, FedMedian, FedTrimmedAvg, Krum ...
)
fraction_train: float = None  # share of clients asked in a round
proximal_mu: float = None  # of FedProx
eta: float = None  # of FedAdam and FedYogi: the server's learning rate
beta_1: float = None  # of FedAdam and FedYogi
beta_2: float = None  # of FedAdam and FedYogi
tau: float = None  # of FedAdam and FedYogi
server_learning_rate: float = None  # of FedAvgM
server_momentum: float = None  # of FedAvgM
beta: float = None  # of FedTrimmedAvg: share cut off at each end
num_malicious_nodes: int = None  # of Krum, MultiKrum, Bulyan
num_nodes_to_select: int = None  # of MultiKrum
min_replies: float = None  # share of the clients asked without whose replies a round fails
runtime: str = None  # cohort (in this process), simulation (Ray), deployment (over the network)
timeout: float = None  # seconds after which a client that has not replied is missing
superlink: str = None  # host:port of a deployment that is up; otherwise one is started here
certificates: str = None  # the folder of that deployment's ca.crt
split: str = None  # speaker_dependent, speaker_independent
speakers: int = None  # or machines, of the embedded corpora, 2 to 68
clips: int = None  # of the embedded corpora, 28 to 9365
width: float = None  # factor on VGG-15's channels
norm: str = None  # batch, group
batch_norm: str = None  # average, local (stays with the client), reestimate (after averaging)
alpha: float = None  # weight of the original half's loss, Eq. 5
epsilon: float = None  # L-inf radius of FGSM and PGD, standardised log-Mel units
step_size: float = None  # of PGD
steps: int = None  # of PGD and DeepFool
overshoot: float = None  # of DeepFool
resize: str = None  # randomisation: bilinear, nearest
eval_every: int = None  # rounds
attack_every: int = None  # rounds; otherwise at each evaluation
checkpoint_every: int = None  # rounds; otherwise at each evaluation
precision: str = None  # auto, fp32, bf16
engine: str = None  # auto (fast on a GPU, plain on a CPU), fast, plain
device: str = None  # auto, cpu, cuda
outputs: str = None  # folder for results; the repository's outputs/ otherwise

# %%
from fedser_utils.core.errors import refusals
from fedser_utils.core.settings import notebook_settings

settings = notebook_settings(globals())

from IPython.display import Markdown

from fedser_utils.analysis import diagrams, figures, metrics, tables
from fedser_utils.core import runs
from fedser_utils.federated import runtimes
from fedser_utils.workbook import display, training_monitor

settings

# %% [markdown]
# ## Training
#
# If this is stopped, by whatever means, the same parameters go on from the newest checkpoint.
# Wherever the clients are, the monitor shows the last evaluated round, how long it will still take,
# who was missing, and what has been moved. Opened again, this notebook shows a run that is still
# being trained elsewhere, or a finished one, in the same way.

# %%
with refusals():
    monitor = training_monitor.TrainingMonitor(settings.rounds)
    run = runtimes.train(settings, monitor=monitor, wait=display.is_live())

# %% [markdown]
# ## After the last round

# %%
predictions, clips = run.table("predictions"), run.table("clips")
last = predictions[predictions["round"] == settings.rounds]
scores = metrics.scores(last, intervals=True)
assert scores["uar"].between(0, 100).all()
assert last["clip"].isin(clips.loc[clips["split"] == "test", "clip"]).all()
scores

# %%
run_figure = figures.four_conditions(run.table("rounds"), caption=run.id)
figures.save(run_figure, run.folder / "figures", "conditions", origin=runs.origin([run]))
run_figure

# %% [markdown]
# ## The framework, the network, the notation

# %%
words = tables.terms(clips["emotion"])
diagrams.framework(words, shape=settings.front_end.shape)

# %%
diagrams.network(clips["emotion"].nunique(), shape=settings.front_end.shape)

# %%
Markdown(diagrams.notation(words))

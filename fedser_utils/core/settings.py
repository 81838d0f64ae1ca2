"""Settings: everything that decides a run's result, and where and how it is computed.

The defaults are the paper's. A preset changes some of them (``core.presets``), a notebook's
parameters change some of those (``core.notebook``); what is unknown or out of range is refused in
one line. ``docs/settings.md`` comes from the declarations below.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from fedser_utils.core.errors import InputError, choose, number
from fedser_utils.core.front_end import FRONT_END_FIELDS, FRONT_ENDS, SPEECH, FrontEnd

ROOT = Path(__file__).resolve().parents[2]
SYNTHETIC, MACHINES = "synthetic", "machines"  # the embedded corpora
EMBEDDED = (SYNTHETIC, MACHINES)
STRATEGIES = {  # Flower's strategies -> which of the settings below are theirs, by Flower's names
    "FedAvg": (),
    "FedProx": ("proximal_mu",),
    "FedAdam": ("eta", "beta_1", "beta_2", "tau"),
    "FedYogi": ("eta", "beta_1", "beta_2", "tau"),
    "FedAvgM": ("server_learning_rate", "server_momentum"),
    "FedMedian": (),
    "FedTrimmedAvg": ("beta",),
    "Krum": ("num_malicious_nodes",),
    "MultiKrum": ("num_malicious_nodes", "num_nodes_to_select"),
    "Bulyan": ("num_malicious_nodes",),
}
ATTACKS = ("fgsm", "pgd", "deepfool")  # of adversarial training
PARTITIONS = ("speaker", "iid", "dirichlet", "quantity")
DEFAULT_SKEW = {"dirichlet": 0.5, "quantity": 0.5}  # skew_alpha where a partition takes one


def _text(default: str | None, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def _one_of(choices: tuple[str, ...], help: str) -> Any:
    """One of the choices; the first is the default."""
    return field(default=choices[0], metadata={"help": help, "choices": choices})


def _whole(default: int | None, low: int, high: int | None, help: str) -> Any:
    bounds = {"type": int, "low": low, "high": high}
    return field(default=default, metadata={"help": help, "range": bounds})


def _real(
    default: float | None, low: float, high: float | None, help: str, *, above: bool = False
) -> Any:
    """A real number in [low, high], or in (low, high] with ``above``."""
    bounds = {"type": float, "low": low, "high": high, "above": above}
    return field(default=default, metadata={"help": help, "range": bounds})


def _positive(default: float | None, help: str, *, high: float | None = None) -> Any:
    return _real(default, 0, high, help, above=True)


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run's result, and where and how it is computed.

    explicit: the names of those given beside the preset, where ``load_settings`` made it; it is no
    setting. Raises InputError for a value out of range, and for settings that contradict each
    other.
    """

    explicit: ClassVar[frozenset[str]] = frozenset()

    preset: str = _text("demo", "a file of notebooks/presets, which sets some of the others")
    corpus: str = _text(
        SYNTHETIC, "synthetic, machines, a folder of audio or a CSV manifest; several: a,b"
    )
    attack: str = _one_of(("none", *ATTACKS), "attack of adversarial training")
    seed: int = _whole(0, 0, None, "of the split, the weights, the batches and all draws")
    speakers: int = _whole(68, 2, 68, "speakers or machines of the embedded corpora")
    clips: int = _whole(9365, 28, 9365, "clips of the embedded corpora")
    reader: str = _one_of(
        ("auto", "folders"), "auto: by file names; folders: also .../client/class/ if none fits"
    )
    classes: str = _one_of(("shared", "all"), "of several corpora: the classes all have, or any")
    clips_per_speaker: int | None = _whole(None, 4, None, "at most; None: all")
    log_mel: str = _one_of(
        ("auto", *FRONT_ENDS),
        "fills in those of the next seven that are None",
    )
    sample_rate: int | None = _whole(None, 1000, 768_000, "Hz")
    window: int | None = _whole(None, 16, None, "of the spectrogram, samples")
    hop: int | None = _whole(None, 1, None, "of the spectrogram, samples")
    bands: int | None = _whole(None, 32, None, "of the Mel scale")
    lowest: float | None = _real(None, 0, None, "frequency of the Mel scale, Hz")
    highest: float | None = _positive(None, "frequency of the Mel scale, Hz")
    seconds: float | None = _positive(None, "of a clip; shorter ones are repeated, longer ones cut")
    level: str = _one_of(("none", "rms"), "rms: every clip made equally loud")
    standardisation: str = _one_of(
        ("all", "corpus", "client"), "whose mean and deviation standardise the Mel bands"
    )
    clients: str = _one_of(
        ("speakers", "pooled"), "pooled: one client has all clips (centralised training)"
    )
    partition: str = _one_of(PARTITIONS, "of clips to clients; dirichlet: over classes")
    client_count: int | None = _whole(
        None, 2, None, "where the partition is not by speaker; None: as many as speakers"
    )
    skew_alpha: float | None = _positive(
        None, "of dirichlet and quantity; small: clients are very unlike; None: 0.5"
    )
    rounds: int = _whole(300, 1, None, "of federated training")
    strategy: str = _one_of(tuple(STRATEGIES), "Flower's, by which the server averages")
    fraction_train: float = _positive(1.0, "share of the clients that train in a round", high=1)
    proximal_mu: float | None = _real(None, 0, None, "of FedProx: weight of the proximal term")
    eta: float | None = _positive(None, "of FedAdam and FedYogi: the server's learning rate")
    beta_1: float | None = _real(None, 0, 1, "of FedAdam and FedYogi: decay of the first moment")
    beta_2: float | None = _real(None, 0, 1, "of FedAdam and FedYogi: decay of the second moment")
    tau: float | None = _positive(None, "of FedAdam and FedYogi: degree of adaptivity")
    server_learning_rate: float | None = _positive(None, "of FedAvgM")
    server_momentum: float | None = _real(None, 0, 1, "of FedAvgM")
    beta: float | None = _real(None, 0, 0.49, "of FedTrimmedAvg: share cut off at each end")
    num_malicious_nodes: int | None = _whole(None, 0, None, "of Krum, MultiKrum and Bulyan")
    num_nodes_to_select: int | None = _whole(None, 1, None, "of MultiKrum")
    split: str = _one_of(
        ("speaker_dependent", "speaker_independent"), "test clips of every client, or test clients"
    )
    client_state: str = _one_of(("keep", "reset"), "a client's Adam state across rounds")
    min_replies: float = _positive(
        1.0, "share of the clients sampled below which a round fails", high=1
    )
    runtime: str = _one_of(
        ("cohort", "simulation", "deployment"), "in this process, Ray, or over the network"
    )
    local_epochs: int = _whole(1, 1, None, "of a client in a round")
    batch_size: int = _whole(8, 1, None, "of a client's training")
    learning_rate: float = _positive(1e-3, "of the clients' Adam")
    learning_rate_decay: float = _positive(1.0, "factor from round to round", high=1)
    alpha: float = _real(0.5, 0, 1, "weight of the original half's loss, Eq. 5")
    width: float = _real(1.0, 1 / 64, 4, "factor on VGG-15's channels")
    norm: str = _one_of(("batch", "group"), "normalisation layers of the network")
    batch_norm: str = _one_of(
        ("average", "local", "reestimate"),
        "average: as all weights; local: stays with the client; reestimate: after averaging",
    )
    epsilon: float = _positive(0.05, "L-inf radius of FGSM and PGD, standardised log-Mel units")
    step_size: float = _positive(0.01, "of PGD, standardised log-Mel units")
    steps: int = _whole(5, 1, None, "of PGD and DeepFool")
    overshoot: float = _real(0.02, 0, None, "of DeepFool: zeta in Eq. 3")
    resize: str = _one_of(("bilinear", "nearest"), "interpolation of the randomisation")
    eval_every: int = _whole(10, 1, None, "rounds between evaluations")
    attack_every: int | None = _whole(
        None, 1, None, "rounds between evaluations under attack; None: as eval_every"
    )
    checkpoint_every: int | None = _whole(
        None, 1, None, "rounds between checkpoints; None: as eval_every"
    )
    precision: str = _one_of(("auto", "fp32", "bf16"), "auto: bf16 where the processor has it")
    engine: str = _one_of(("auto", "plain", "fast"), "auto: fast on a GPU, plain on a CPU")
    device: str = _text("auto", "auto, cpu, cuda, cuda:1 ...")
    outputs: str = _text(str(ROOT / "outputs"), "folder for results")
    timeout: float = _positive(86_400.0, "seconds after which a client without a reply is missing")
    superlink: str | None = _text(
        None, "host:port of a deployment that is up; None: one is started here"
    )
    certificates: str = _text(str(ROOT / "deploy" / "keys"), "folder of that deployment's ca.crt")

    def __post_init__(self) -> None:
        if isinstance(self.corpus, list | tuple):
            object.__setattr__(self, "corpus", ",".join(map(str, self.corpus)))
        for spec in dataclasses.fields(self):
            object.__setattr__(self, spec.name, _checked(spec, getattr(self, spec.name)))
        if not self.superlink:
            object.__setattr__(self, "corpus", _resolved(self.corpus))
        if self.log_mel == "auto":
            front_end = MACHINES if MACHINES in self.corpora else "speech"
            object.__setattr__(self, "log_mel", front_end)
        for name in FRONT_END_FIELDS:
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(FRONT_ENDS[self.log_mel], name))
        for check in (_front_end_faults, _contradictions, _deployment_faults):
            for fault in check(self):
                raise InputError(fault)

    @property
    def corpora(self) -> tuple[str, ...]:
        """Embedded corpora by name, folders, manifests."""
        return tuple(_parts(self.corpus))

    @property
    def corpus_names(self) -> tuple[str, ...]:
        """A name for each of ``corpora``; the second of one name is e.g. emovo-2."""
        names = [*map(corpus_name, self.corpora)]
        earlier = [names[:i].count(name) for i, name in enumerate(names)]
        return tuple(f"{n}-{k + 1}" if k else n for n, k in zip(names, earlier, strict=True))

    @property
    def front_end(self) -> FrontEnd:
        """The values of the log-Mel images."""
        return FrontEnd(**{name: getattr(self, name) for name in FRONT_END_FIELDS})

    @property
    def study(self) -> str:
        """A study is the runs on the same corpora with one preset; this is its folder's name."""
        if self.corpus == SYNTHETIC:
            return self.preset
        return f"{self.preset}-{'+'.join(self.corpus_names)}"

    @property
    def model(self) -> str:
        """What the model is called in tables: nature, or the attack it was trained with; trained
        on pooled clips, centralised, or e.g. centralised-pgd."""
        trained = "nature" if self.attack == "none" else self.attack
        if self.clients == "pooled":
            return "centralised" if trained == "nature" else f"centralised-{trained}"
        return trained

    @property
    def folder(self) -> Path:
        """``outputs/<study>``: the study's tables and figures."""
        return Path(self.outputs) / self.study

    @property
    def strategy_options(self) -> dict[str, Any]:
        """The strategy's settings that are not left to Flower."""
        options = {name: getattr(self, name) for name in STRATEGIES[self.strategy]}
        return {name: value for name, value in options.items() if value is not None}

    def values(self) -> dict[str, Any]:
        """Return the settings as plain values, for a run's config.json."""
        return dataclasses.asdict(self)


# settings that are newer than some runs, and the value that stands for them
FORMER_DEFAULTS = {name: getattr(SPEECH, name) for name in FRONT_END_FIELDS} | {
    "reader": "auto", "classes": "shared", "clips_per_speaker": None, "level": "none",
    "standardisation": "all",
    "partition": "speaker", "client_count": None, "skew_alpha": None, "learning_rate_decay": 1.0,
    "norm": "batch", "batch_norm": "average", "attack_every": None,
}  # fmt: skip
# settings that do not change the result (log_mel: its values are settings too)
EXECUTION = ("checkpoint_every", "engine", "device", "outputs", "timeout", "superlink")
EXECUTION += ("certificates", "log_mel")
IDENTITY = ("attack", "seed", "clients")  # settings that tell the runs of one study apart


def _front_end_faults(s: Settings) -> Iterator[str]:
    """Why these settings give no image that the model can take."""
    if s.highest > s.sample_rate / 2 or s.lowest >= s.highest:
        yield (
            f"lowest {s.lowest:g} and highest {s.highest:g} must rise, to at most "
            f"sample_rate / 2 = {s.sample_rate / 2:g} Hz"
        )
    if s.front_end.frames < 32:
        yield (
            f"seconds {s.seconds:g} give {max(0, s.front_end.frames)} frames of window "
            f"{s.window} and hop {s.hop}; the model needs 32 or more"
        )


def _contradictions(s: Settings) -> Iterator[str]:
    """Why these settings do not go together."""
    for name in sorted({name for names in STRATEGIES.values() for name in names}):
        if name not in STRATEGIES[s.strategy] and getattr(s, name) is not None:
            takers = ", ".join(key for key, names in STRATEGIES.items() if name in names)
            yield f"{name} belongs to {takers}, not to strategy {s.strategy}"
    if s.engine == "fast" and s.runtime != "cohort":
        yield f"engine 'fast' needs runtime cohort, not {s.runtime}"
    if s.skew_alpha is not None and s.partition not in DEFAULT_SKEW:
        yield f"skew_alpha belongs to {', '.join(DEFAULT_SKEW)}, not to partition {s.partition}"
    if s.client_count and s.partition == "speaker":
        yield (
            f"client_count needs a partition of {', '.join(PARTITIONS[1:])}; by speaker there are "
            "as many clients as speakers"
        )
    if s.norm == "group" and s.batch_norm != "average":
        yield f"batch_norm {s.batch_norm!r} needs norm batch, not group"
    if s.batch_norm == "local" and s.runtime == "simulation":
        yield "batch_norm 'local' needs clients that stay; choose runtime cohort or deployment"
    if s.batch_norm == "local" and s.split == "speaker_independent":
        yield (
            "batch_norm 'local' leaves speakers that do not train without one; choose split "
            "speaker_dependent"
        )
    if s.clips < 7 * 2 * 2 or s.clips < s.speakers:
        yield f"clips {s.clips} is too few for speakers {s.speakers}"


def _deployment_faults(s: Settings) -> Iterator[str]:
    """Why these settings cannot be had where the recordings stay with the clients."""
    if s.runtime != "deployment":
        if s.superlink:
            yield f"superlink {s.superlink!r} needs runtime deployment"
        return
    if s.clients == "pooled":
        yield "clients 'pooled' keep no recordings; choose runtime cohort"
    if s.split == "speaker_independent":
        yield (
            "split 'speaker_independent' puts whole clients aside, which have joined to train; "
            "choose speaker_dependent with runtime deployment"
        )
    if s.partition != "speaker":
        yield (
            f"partition {s.partition!r} deals clips out anew; with runtime deployment they stay "
            "where they are, choose speaker"
        )
    if s.standardisation == "corpus":
        yield "standardisation 'corpus' is not known to a deployment; choose all or client"


def corpus_name(entry: str) -> str:
    """Return the name of a corpus: as given if embedded, else its folder's or file's."""
    path = Path(entry)
    return path.stem if path.is_file() else path.name


def client_name(place: int) -> str:
    """Return ``client-07``: client 7 of a deployment, its keys, services and folders."""
    return f"client-{place:02d}"


def _parts(corpus: str) -> list[str]:
    """The corpora in one text: a path that exists as a whole is one, even with a comma."""
    if Path(corpus).expanduser().exists():
        return [corpus]
    return [part.strip() for part in corpus.split(",")]


def _resolved(corpus: str) -> str:
    """The same with absolute paths, so that a run can be resumed from any folder."""
    entries = []
    for entry in _parts(corpus):
        path = Path(entry).expanduser().resolve()
        if entry not in EMBEDDED and (not entry or not path.exists()):
            raise InputError(
                f"corpus {entry!r} does not exist; give {', '.join(map(repr, EMBEDDED))}, a folder "
                "of audio, or a CSV manifest (several with commas between them)"
            )
        entries.append(entry if entry in EMBEDDED else str(path))
    for entry in sorted(entries):
        if entries.count(entry) > 1:
            raise InputError(f"corpus {entry!r} is given twice")
    if len(entries) > 1 and any("," in entry for entry in entries):
        raise InputError(f"corpus {corpus!r}: with several, no path may hold a comma")
    return ",".join(entries)


def _checked(spec: dataclasses.Field, value: Any) -> Any:
    """The value in its declared type. Raises InputError with the setting, value and range."""
    if "choices" in spec.metadata:
        return choose(spec.name, value, spec.metadata["choices"])
    if value is None and spec.default is None:
        return None
    if "range" in spec.metadata:
        return number(spec.name, value, **spec.metadata["range"])
    if not isinstance(value, str) or not value:
        raise InputError(f"{spec.name} {value!r} must be a text")
    return value

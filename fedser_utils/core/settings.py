"""Settings: one frozen object, built once from a preset and a notebook's parameters.

The defaults are the paper's. A preset (``notebooks/presets/*.yaml``) changes some of them, a
notebook's parameters cell changes some of those, and whatever is unknown or out of range is
refused in one line that names the value and the choices.
"""

from __future__ import annotations

import ast
import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from fedser_utils.core.errors import InputError, choose, number, refusals
from fedser_utils.core.front_end import FRONT_END_FIELDS, FRONT_ENDS, SPEECH, FrontEnd

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ROOT / "notebooks" / "presets"
SYNTHETIC, MACHINES = "synthetic", "machines"  # the embedded corpora
EMBEDDED = (SYNTHETIC, MACHINES)
NOTEBOOK_SECTION = "notebooks"  # a preset's section for parameters that are no settings of a run


def _one_of(default: str, *choices: str) -> Any:
    return field(default=default, metadata={"choices": choices})


def _whole(default: int | None, low: int, high: int | None = None) -> Any:
    return field(default=default, metadata={"type": int, "low": low, "high": high})


def _real(
    default: float | None, low: float, high: float | None = None, *, above: bool = False
) -> Any:
    """A real number in [low, high], or in (low, high] with ``above``."""
    return field(
        default=default, metadata={"type": float, "low": low, "high": high, "above": above}
    )


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
DEFAULT_SKEW = {
    "dirichlet": 0.5,
    "quantity": 0.5,
}  # partitions with a skew_alpha, and what None means


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run's result, and where and how it is computed."""

    # what is trained, on what
    preset: str = "demo"
    # "synthetic", "machines", a folder of audio, a CSV manifest; several with commas between them
    corpus: str = SYNTHETIC
    attack: str = _one_of("none", "none", *ATTACKS)  # adversarial training's
    seed: int = _whole(0, 0)
    # the embedded corpora's size
    speakers: int = _whole(68, 2, 68)
    clips: int = _whole(9365, 28, 9365)
    # which clips of a corpus
    reader: str = _one_of("auto", "auto", "folders")  # folders: .../client/class/, if nothing fits
    classes: str = _one_of("shared", "shared", "all")  # of several corpora: those all have, or any
    clips_per_speaker: int | None = _whole(None, 4)  # at most; None: all
    # the log-Mel image
    log_mel: str = _one_of("auto", "auto", *FRONT_ENDS)  # auto: as the embedded corpus, or speech
    sample_rate: int | None = _whole(None, 1000, 768_000)  # Hz; these: None as log_mel has it
    window: int | None = _whole(None, 16)  # samples
    hop: int | None = _whole(None, 1)  # samples
    bands: int | None = _whole(None, 32)  # of the Mel scale
    lowest: float | None = _real(None, 0)  # Hz
    highest: float | None = _real(None, 0, above=True)  # Hz
    seconds: float | None = _real(None, 0, above=True)
    level: str = _one_of("none", "none", "rms")  # rms: every clip made equally loud
    standardisation: str = _one_of("all", "all", "corpus", "client")  # whose statistics it uses
    # federation
    clients: str = _one_of("speakers", "speakers", "pooled")  # pooled: one client has all clips
    partition: str = _one_of("speaker", *PARTITIONS)  # clips -> clients
    client_count: int | None = _whole(None, 2)  # not by speaker; None: as many as speakers
    skew_alpha: float | None = _real(None, 0, above=True)  # small: clients are very unlike
    rounds: int = _whole(300, 1)
    strategy: str = _one_of("FedAvg", *STRATEGIES)
    fraction_train: float = _real(1.0, 0, 1, above=True)  # share of clients asked in a round
    # the strategies' own settings, by Flower's names; None: Flower's default
    proximal_mu: float | None = _real(None, 0)
    eta: float | None = _real(None, 0, above=True)  # the server's learning rate
    beta_1: float | None = _real(None, 0, 1)
    beta_2: float | None = _real(None, 0, 1)
    tau: float | None = _real(None, 0, above=True)
    server_learning_rate: float | None = _real(None, 0, above=True)
    server_momentum: float | None = _real(None, 0, 1)
    beta: float | None = _real(None, 0, 0.49)  # share cut off at each end
    num_malicious_nodes: int | None = _whole(None, 0)
    num_nodes_to_select: int | None = _whole(None, 1)
    split: str = _one_of("speaker_dependent", "speaker_dependent", "speaker_independent")
    client_state: str = _one_of("keep", "keep", "reset")  # a client's Adam state across rounds
    min_replies: float = _real(1.0, 0, 1, above=True)  # of those asked; with fewer a round fails
    runtime: str = _one_of("cohort", "cohort", "simulation", "deployment")
    # a client's training
    local_epochs: int = _whole(1, 1)
    batch_size: int = _whole(8, 1)
    learning_rate: float = _real(1e-3, 0, above=True)
    learning_rate_decay: float = _real(1.0, 0, 1, above=True)  # factor from round to round
    alpha: float = _real(0.5, 0, 1)  # Eq. 5: weight of the original half's loss
    width: float = _real(1.0, 1 / 64, 4)  # VGG-15's channels, as a share of the paper's
    norm: str = _one_of("batch", "batch", "group")
    batch_norm: str = _one_of("average", "average", "local", "reestimate")  # after a round
    # the attacks, in training and evaluation alike; epsilon in standardised log-Mel units
    epsilon: float = _real(0.05, 0, above=True)  # L-inf radius of FGSM and PGD
    step_size: float = _real(0.01, 0, above=True)  # PGD's, per step
    steps: int = _whole(5, 1)  # of PGD and DeepFool
    overshoot: float = _real(0.02, 0)  # DeepFool's zeta, Eq. 3
    # randomisation
    resize: str = _one_of("bilinear", "bilinear", "nearest")
    # evaluation
    eval_every: int = _whole(10, 1)  # rounds
    attack_every: int | None = _whole(None, 1)  # rounds, of the attacks; None: as eval_every
    # how and where it is computed; these do not change what is computed
    checkpoint_every: int | None = _whole(None, 1)  # rounds; None: at each evaluation
    precision: str = _one_of("auto", "auto", "fp32", "bf16")  # auto: bf16 where it is fast
    engine: str = _one_of("auto", "auto", "plain", "fast")  # auto: fast on a GPU, plain on a CPU
    device: str = "auto"  # auto, cpu, cuda, cuda:1 ...
    outputs: str = str(ROOT / "outputs")
    timeout: float = _real(86_400.0, 0, above=True)  # seconds; who has not replied then is missing
    superlink: str | None = None  # host:port of a deployment that is up; None: started here
    certificates: str = str(ROOT / "deploy" / "keys")  # the folder of that deployment's ca.crt

    def __post_init__(self) -> None:
        if isinstance(self.corpus, list | tuple):
            object.__setattr__(self, "corpus", ",".join(map(str, self.corpus)))
        for spec in dataclasses.fields(self):
            object.__setattr__(self, spec.name, _checked(spec, getattr(self, spec.name)))
        if not self.superlink:
            object.__setattr__(self, "corpus", _resolved(self.corpus))
        self._settle_front_end()
        self._refuse_contradictions()

    def _settle_front_end(self) -> None:
        """Fill in what the named front end says, and refuse an image that cannot be."""
        if self.log_mel == "auto":
            named = MACHINES if MACHINES in self.corpora else "speech"
            object.__setattr__(self, "log_mel", named)
        for name in FRONT_END_FIELDS:
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(FRONT_ENDS[self.log_mel], name))
        if self.highest > self.sample_rate / 2 or self.lowest >= self.highest:
            raise InputError(
                f"lowest {self.lowest:g} and highest {self.highest:g} must rise, to at most "
                f"sample_rate / 2 = {self.sample_rate / 2:g} Hz"
            )
        if self.front_end.frames < 32:
            raise InputError(
                f"seconds {self.seconds:g} give {max(0, self.front_end.frames)} frames of window "
                f"{self.window} and hop {self.hop}; the model needs 32 or more"
            )

    def _refuse_contradictions(self) -> None:
        own = {name for names in STRATEGIES.values() for name in names}
        for name in sorted(own - set(STRATEGIES[self.strategy])):
            if getattr(self, name) is not None:
                takers = ", ".join(s for s, names in STRATEGIES.items() if name in names)
                raise InputError(f"{name} belongs to {takers}, not to strategy {self.strategy}")
        if self.superlink and self.runtime != "deployment":
            raise InputError(f"superlink {self.superlink!r} needs runtime deployment")
        if self.engine == "fast" and self.runtime != "cohort":
            raise InputError(f"engine 'fast' needs runtime cohort, not {self.runtime}")
        if self.clients == "pooled" and self.runtime == "deployment":
            raise InputError("clients 'pooled' keep no recordings; choose runtime cohort")
        if self.split == "speaker_independent" and self.runtime == "deployment":
            raise InputError(
                "split 'speaker_independent' puts whole clients aside, which have joined to train; "
                "choose speaker_dependent with runtime deployment"
            )
        if self.skew_alpha is not None and self.partition not in DEFAULT_SKEW:
            takers = ", ".join(DEFAULT_SKEW)
            raise InputError(f"skew_alpha belongs to {takers}, not to partition {self.partition}")
        if self.client_count and self.partition == "speaker":
            raise InputError(
                "client_count needs a partition of "
                f"{', '.join(PARTITIONS[1:])}; by speaker there are as many clients as speakers"
            )
        if self.norm == "group" and self.batch_norm != "average":
            raise InputError(f"batch_norm {self.batch_norm!r} needs norm batch, not group")
        self._refuse_elsewhere()
        if self.clips < 7 * 2 * 2 or self.clips < self.speakers:
            raise InputError(f"clips {self.clips} is too few for speakers {self.speakers}")

    def _refuse_elsewhere(self) -> None:
        """Refuse what needs all recordings in one place, or clients that stay."""
        if self.batch_norm == "local":
            if self.runtime == "simulation":
                raise InputError(
                    "batch_norm 'local' is kept by clients that stay; choose runtime cohort or "
                    "deployment"
                )
            if self.split == "speaker_independent":
                raise InputError(
                    "batch_norm 'local' leaves speakers that do not train without one; choose "
                    "split speaker_dependent"
                )
        if self.runtime != "deployment":
            return
        if self.partition != "speaker":
            raise InputError(
                f"partition {self.partition!r} deals clips out anew; with runtime deployment they "
                "stay where they are, choose speaker"
            )
        if self.standardisation == "corpus":
            raise InputError(
                "standardisation 'corpus' is not known to a deployment; choose all or client"
            )

    @property
    def corpora(self) -> tuple[str, ...]:
        """Embedded corpora by name, folders, manifests."""
        return tuple(_parts(self.corpus))

    @property
    def corpus_names(self) -> tuple[str, ...]:
        """A name for each of ``corpora``; the second of one name is e.g. emovo-2."""
        names = [*map(corpus_name, self.corpora)]
        before = [names[:place].count(name) for place, name in enumerate(names)]
        return tuple(f"{n}-{k + 1}" if k else n for n, k in zip(names, before, strict=True))

    @property
    def front_end(self) -> FrontEnd:
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
        own = "nature" if self.attack == "none" else self.attack
        if self.clients == "pooled":
            return "centralised" if own == "nature" else f"centralised-{own}"
        return own

    @property
    def folder(self) -> Path:
        """``outputs/<study>``: the study's tables and figures."""
        return Path(self.outputs) / self.study

    def values(self) -> dict[str, Any]:
        """The settings as plain values, for a run's config.json."""
        return dataclasses.asdict(self)

    @property
    def strategy_options(self) -> dict[str, Any]:
        """The strategy's own settings that are not left to Flower."""
        found = {name: getattr(self, name) for name in STRATEGIES[self.strategy]}
        return {name: value for name, value in found.items() if value is not None}


# settings that came when there were runs already, and the value that those were made with
BEFORE = {name: getattr(SPEECH, name) for name in FRONT_END_FIELDS} | {
    "reader": "auto", "classes": "shared", "clips_per_speaker": None, "level": "none",
    "standardisation": "all",
    "partition": "speaker", "client_count": None, "skew_alpha": None, "learning_rate_decay": 1.0,
    "norm": "batch", "batch_norm": "average", "attack_every": None,
}  # fmt: skip
# settings that do not change the result (log_mel: its values are settings too)
EXECUTION = (
    "checkpoint_every",
    "engine",
    "device",
    "outputs",
    "timeout",
    "superlink",
    "certificates",
)
EXECUTION += ("log_mel",)
IDENTITY = ("attack", "seed", "clients")  # settings that tell the runs of one study apart


def corpus_name(entry: str) -> str:
    """What a corpus is called: an embedded one by its name, a folder or a file by its own."""
    path = Path(entry)
    return path.stem if path.is_file() else path.name


def _parts(corpus: str) -> list[str]:
    """The corpora in one text: what exists as a whole is one, though it hold a comma."""
    if Path(corpus).expanduser().exists():
        return [corpus]
    return [part.strip() for part in corpus.split(",")]


def _resolved(corpus: str) -> str:
    """The same with absolute paths, so that a run goes on from whatever folder."""
    found = []
    for entry in _parts(corpus):
        path = Path(entry).expanduser().resolve()
        if entry not in EMBEDDED and (not entry or not path.exists()):
            raise InputError(
                f"corpus {entry!r} does not exist; give {', '.join(map(repr, EMBEDDED))}, a folder "
                "of audio, or a CSV manifest (several with commas between them)"
            )
        found.append(entry if entry in EMBEDDED else str(path))
    again = sorted({entry for entry in found if found.count(entry) > 1})
    if again:
        raise InputError(f"corpus {again[0]!r} is given twice")
    if len(found) > 1 and any("," in entry for entry in found):
        raise InputError(f"corpus {corpus!r}: with several, no path may hold a comma")
    return ",".join(found)


def _checked(spec: dataclasses.Field, value: Any) -> Any:
    """The value in its own type. Raises InputError naming the setting, the value, the range."""
    meta, name = spec.metadata, spec.name
    if "choices" in meta:
        return choose(name, value, meta["choices"])
    if "type" not in meta:
        if value is None and spec.default is None:
            return None
        if not isinstance(value, str) or not value:
            raise InputError(f"{name} {value!r} must be a text")
        return value
    if value is None and spec.default is None:
        return None
    return number(name, value, **meta)


def client_name(place: int) -> str:
    """``client-07``: what client 7 of a deployment is called, and its keys, services, folders."""
    return f"client-{place:02d}"


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _preset(name: str) -> dict[str, Any]:
    return yaml.safe_load((PRESETS / f"{name}.yaml").read_text()) or {}


def load_settings(preset: str | None = None, **parameters: Any) -> Settings:
    """The preset's settings, with the parameters that are not None in their place.

    Raises InputError for an unknown preset or parameter, and for a value out of range.
    """
    preset = choose("preset", "demo" if preset is None else preset, preset_names())
    values = _preset(preset)
    values.pop(NOTEBOOK_SECTION, None)
    given = {name: value for name, value in parameters.items() if value is not None}
    known = sorted(spec.name for spec in dataclasses.fields(Settings))
    for name in [*values, *given]:
        choose("parameter", name, known, listed="help(fedser_utils.core.settings.Settings)")
    return Settings(**(values | given | {"preset": preset}))


def notebook_settings(
    namespace: Mapping[str, Any], *, own: Mapping[str, Any] | None = None
) -> Settings:
    """The settings of a notebook: its parameters cell and what papermill put after it.

    namespace: the notebook's ``globals()``; own: parameters of this notebook alone, with their
    kinds, for ``own_parameters``. papermill
    lets a misspelt name pass with a warning, so every name assigned in an injected cell must also
    stand in the notebook's own parameters cell (both start with ``# Parameters``). Also lets the
    package's log messages appear in the notebook.

    Raises SystemExit, in one line, for anything refused.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("fedser_utils").setLevel(logging.INFO)
    cells = [source for source in namespace["In"] if source.startswith("# Parameters")]
    allowed, injected = _assigned(cells[0]), _assigned("\n".join(cells))
    with refusals():
        for name in sorted(injected - allowed):
            choose("parameter", name, sorted(allowed), listed="papermill --help-notebook NOTEBOOK")
        settings = load_settings(**{n: namespace[n] for n in allowed - set(own or {})})
    own_parameters(namespace, own or {}, settings)
    return settings


def own_parameters(
    namespace: Mapping[str, Any], own: Mapping[str, Any], settings: Settings
) -> SimpleNamespace:
    """The parameters of one notebook alone; those that are None as the preset's section
    ``notebooks`` says.

    own: name -> kind: bool, str, a positive int or float, or a list of these ([int], [str]); or
    "real", any finite number.
    Raises SystemExit, in one line, for a value of another kind.
    """
    section = _preset(settings.preset).get(NOTEBOOK_SECTION, {})
    found = {n: section.get(n) if namespace[n] is None else namespace[n] for n in own}
    with refusals():
        for name, kind in own.items():
            _refuse_other(name, found[name], kind)
    return SimpleNamespace(**found)


def _refuse_other(name: str, value: Any, kind: Any) -> None:
    """InputError unless ``value`` is of the kind, as ``own_parameters`` has them."""
    if isinstance(kind, list):
        if not isinstance(value, list) or not value:
            such = "names, such as [a, b]" if kind == [str] else "numbers, such as [1, 2]"
            raise InputError(f"{name} {value!r} must be a list of {such}")
        for each in value:
            _refuse_other(name, each, kind[0])
    elif kind is bool:
        choose(name, value, (True, False))
    elif kind is str:
        if not isinstance(value, str) or not value:
            raise InputError(f"{name} {value!r} must be a text")
    elif kind == "real":
        number(name, value, type=float, low=-1e18)
    else:
        number(name, value, type=kind, **({"low": 1} if kind is int else {"low": 0, "above": True}))


def _assigned(source: str) -> set[str]:
    """Names assigned at the top level of a cell."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {t.id for t in targets if isinstance(t, ast.Name)}
    return names

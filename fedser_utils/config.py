"""Settings: one frozen object, built once from a preset and a notebook's parameters.

The defaults are the paper's. A preset (``notebooks/presets/*.yaml``) changes some of them, a
notebook's parameters cell changes some of those, and whatever is unknown or out of range is
refused in one line that names the value and the choices.
"""

from __future__ import annotations

import ast
import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
PRESETS = ROOT / "notebooks" / "presets"
SYNTHETIC = "synthetic"
OWN = "notebooks"  # a preset's section for parameters that are no settings of a run


class InputError(ValueError):
    """What a user gave cannot be used; the text is one line with the value and the choices."""


def choose(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """``value`` if it is among the choices, else InputError."""
    if value not in choices:
        listed = ", ".join(map(str, choices))
        raise InputError(f"{name} {value!r} is unknown; choose from {listed}")
    return value


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


@dataclass(frozen=True)
class Settings:
    """Everything that decides a run's result, and where and how it is computed."""

    # what is trained, on what
    preset: str = "demo"
    corpus: str = SYNTHETIC  # "synthetic", or a folder of audio, or a CSV manifest
    attack: str = _one_of("none", "none", "fgsm", "pgd", "deepfool")  # adversarial training's
    seed: int = _whole(0, 0)
    # the embedded corpus's size
    speakers: int = _whole(68, 2, 68)
    clips: int = _whole(9365, 28, 9365)
    # federation
    clients: str = _one_of("speakers", "speakers", "pooled")  # pooled: one client has all clips
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
    alpha: float = _real(0.5, 0, 1)  # Eq. 5: weight of the original half's loss
    width: float = _real(1.0, 1 / 64, 4)  # VGG-15's channels, as a share of the paper's
    # the attacks, in training and evaluation alike; epsilon in standardised log-Mel units
    epsilon: float = _real(0.05, 0, above=True)  # L-inf radius of FGSM and PGD
    step_size: float = _real(0.01, 0, above=True)  # PGD's, per step
    steps: int = _whole(5, 1)  # of PGD and DeepFool
    overshoot: float = _real(0.02, 0)  # DeepFool's zeta, Eq. 3
    # randomisation
    resize: str = _one_of("bilinear", "bilinear", "nearest")
    # evaluation
    eval_every: int = _whole(10, 1)  # rounds
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
        for spec in dataclasses.fields(self):
            object.__setattr__(self, spec.name, _checked(spec, getattr(self, spec.name)))
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
        if self.corpus != SYNTHETIC and not self.superlink:
            path = Path(self.corpus).expanduser().resolve()
            if not path.exists():
                raise InputError(
                    f"corpus {self.corpus!r} does not exist; "
                    f"give {SYNTHETIC!r}, a folder of audio, or a CSV manifest"
                )
            object.__setattr__(self, "corpus", str(path))  # whatever folder a run goes on from
        if self.clips < 7 * 2 * 2 or self.clips < self.speakers:
            raise InputError(f"clips {self.clips} is too few for speakers {self.speakers}")

    @property
    def study(self) -> str:
        """A study is the runs on one corpus with one preset; this is its folder's name."""
        if self.corpus == SYNTHETIC:
            return self.preset
        path = Path(self.corpus)
        return f"{self.preset}-{path.stem if path.is_file() else path.name}"

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


# settings that do not change the result
HOW = ("checkpoint_every", "engine", "device", "outputs", "timeout", "superlink", "certificates")
WHO = ("attack", "seed", "clients")  # settings that tell the runs of one study apart


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


def number(
    name: str,
    value: Any,
    *,
    type: type = int,
    low: float = 1,
    high: float | None = None,
    above: bool = False,
) -> Any:
    """``value`` as a finite number of ``type`` from ``low`` (or, with ``above``, above it) to
    ``high``, else InputError."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18
    fits = fits and (type is float or int(value) == value)
    if not fits or value < low or (above and value == low) or (high is not None and value > high):
        word = "a whole number" if type is int else "a number"
        span = f"{'>' if above else '>='} {low:g}" + (f" and <= {high:g}" if high else "")
        raise InputError(f"{name} {value!r} must be {word} {span}")
    return type(value)


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
    values.pop(OWN, None)
    given = {name: value for name, value in parameters.items() if value is not None}
    known = sorted(spec.name for spec in dataclasses.fields(Settings))
    for name in [*values, *given]:
        choose("parameter", name, known)
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
            choose("parameter", name, sorted(allowed))
        settings = load_settings(**{n: namespace[n] for n in allowed - set(own or {})})
    own_parameters(namespace, own or {}, settings)
    return settings


def own_parameters(
    namespace: Mapping[str, Any], own: Mapping[str, Any], settings: Settings
) -> SimpleNamespace:
    """The parameters of one notebook alone; those that are None as the preset's section
    ``notebooks`` says.

    own: name -> kind: bool, a positive int or float, or a list of these ([int], [float]); or
    "real", any finite number.
    Raises SystemExit, in one line, for a value of another kind.
    """
    section = _preset(settings.preset).get(OWN, {})
    found = {n: section.get(n) if namespace[n] is None else namespace[n] for n in own}
    with refusals():
        for name, kind in own.items():
            _refuse_other(name, found[name], kind)
    return SimpleNamespace(**found)


def _refuse_other(name: str, value: Any, kind: Any) -> None:
    """InputError unless ``value`` is of the kind, as ``own_parameters`` has them."""
    if isinstance(kind, list):
        if not isinstance(value, list) or not value:
            raise InputError(f"{name} {value!r} must be a list of numbers, such as [1, 2]")
        for each in value:
            _refuse_other(name, each, kind[0])
    elif kind is bool:
        choose(name, value, (True, False))
    elif kind == "real":
        number(name, value, type=float, low=-1e18)
    else:
        number(name, value, type=kind, **({"low": 1} if kind is int else {"low": 0, "above": True}))


@contextmanager
def refusals() -> Iterator[None]:
    """Inside a notebook: turn an InputError into a one-line SystemExit."""
    try:
        yield
    except InputError as error:
        raise SystemExit(str(error)) from None


def _assigned(source: str) -> set[str]:
    """Names assigned at the top level of a cell."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {t.id for t in targets if isinstance(t, ast.Name)}
    return names

"""What a study consists of, and how far each of its steps is.

Only changes of the notebooks and presets are noticed, not the package's: remove a step's copy to
have it run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import nbformat

from fedser_utils.core import runs
from fedser_utils.core.runs import Run
from fedser_utils.core.settings import PRESETS, ROOT, Settings, load_settings

NOTEBOOKS = ROOT / "notebooks"
TRAINING = "02_fl_advtrain"
START = 20  # seconds that a notebook takes on any corpus


@dataclass(frozen=True)
class Step:
    """A notebook with its parameters. kind: what its copy's name ends in. reads: the notebooks
    whose results it needs. For an estimate before its first run, in short and in full (the
    preset's ``full``): passes, gradients per test clip, counted in the notebook (a DeepFool step
    as 2); start, seconds that are the same for any corpus: kernel, imports, figures, ART's own."""

    notebook: str
    kind: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    reads: tuple[str, ...] = (TRAINING,)
    passes: tuple[int, int] = (0, 0)
    start: tuple[int, int] = (START, START)

    @property
    def name(self) -> str:
        return f"{self.notebook}_{self.kind}" if self.kind else self.notebook


STEPS = (
    Step("01_data", reads=()),
    *(Step(TRAINING, a, {"attack": a}, reads=()) for a in ("none", "fgsm", "pgd", "deepfool")),
    Step(TRAINING, "centralised", {"attack": "none", "clients": "pooled"}, reads=()),
    Step("03_attacks", passes=(36, 350), start=(30, 120)),
    Step("04_randomisation", passes=(25, 25)),
    Step("06_adaptive", "none", {"attack": "none"}, passes=(0, 20_000), start=(240, 300)),
    # what 06 finds about all models is kept: for the others only the checklist is left
    *(
        Step("06_adaptive", a, {"attack": a}, passes=(0, 2_500), start=(80, 120))
        for a in ("fgsm", "pgd", "deepfool")
    ),
    Step("05_analysis", reads=(TRAINING, "03_attacks")),
)
PARTS = {
    "study": [step for step in STEPS if step.notebook != "06_adaptive"],
    "adaptive": [step for step in STEPS if step.name == "06_adaptive_none"],
    "all": list(STEPS),
    "heterogeneity": [Step("07_heterogeneity", reads=())],
}


@dataclass(frozen=True)
class State:
    """How far a step is. seconds: of its last whole run, None if there is none; first: the round
    after which a training goes on."""

    step: Step
    done: bool
    seconds: float | None = None
    first: int = 0

    def __str__(self) -> str:
        if self.done:
            return "done" if self.seconds is None else f"done in {clock(self.seconds)}"
        return f"going on after round {self.first}" if self.first else "left"


def parameters(step: Step, settings: Settings) -> dict[str, str]:
    """What papermill gives to a step's notebook."""
    common = {"preset": settings.preset, "corpus": settings.corpus, "outputs": settings.outputs}
    return common | dict(step.parameters)


def copy_of(step: Step, settings: Settings) -> Path:
    return settings.folder / "notebooks" / f"{step.name}.ipynb"


def states(steps: Sequence[Step], settings: Settings) -> list[State]:
    """How far each step is; what reads a step that is left is left itself."""
    found: list[State] = []
    made = runs.find_runs(settings.outputs, settings.study)
    for step in steps:
        left = {state.step.notebook for state in found if not state.done}
        judge = _training if step.notebook == TRAINING else _analysis
        state = judge(step, settings, made)
        found.append(replace(state, done=state.done and not left & set(step.reads)))
    return found


def _training(step: Step, settings: Settings, made: Sequence[Run]) -> State:
    """Done if its run is complete, unless its notebook stopped after that."""
    path = copy_of(step, settings)
    whole, own = _whole(path), load_settings(**parameters(step, settings))
    seconds = whole.metadata.papermill.duration if whole else None
    run = next((run for run in reversed(made) if _is_of(run, own)), None)
    if run is None:
        return State(step, False, seconds)
    if run.complete:
        return State(step, whole is not None or not path.exists(), seconds, own.rounds)
    saved = (int(path.name[6:]) for path in (run.folder / "checkpoint").glob("round-*"))
    return State(step, False, seconds, max(saved, default=0))


def _is_of(run: Run, own: Settings) -> bool:
    """Whether a run is of exactly these settings and of the corpus in this place."""
    values, model = run.config["settings"], run.config["model"]
    digest = runs.settings_digest(own.values(), run.config["fingerprint"])
    same = (digest, own.model, own.seed, own.corpus)
    return same == (run.config["setting"], model, values["seed"], values["corpus"])


def _analysis(step: Step, settings: Settings, made: Sequence[Run]) -> State:
    """Done if its copy is whole, of this notebook and these parameters, and was started after
    all that it reads was there."""
    path = copy_of(step, settings)
    whole, source = _whole(path), _read(NOTEBOOKS / f"{step.notebook}.ipynb")
    if whole is None:
        return State(step, False)
    read = [PRESETS / f"{settings.preset}.yaml"]
    read += [path.with_name(f"{name}.ipynb") for name in step.reads]
    if TRAINING in step.reads:
        read += [run.folder / "model.safetensors" for run in made]
    newest = max(path.stat().st_mtime for path in read if path.exists())
    facts = whole.metadata.papermill
    done = datetime.fromisoformat(facts.start_time).timestamp() > newest
    done = done and {k: str(v) for k, v in facts.parameters.items()} == parameters(step, settings)
    done = done and source is not None and _cells(whole) == _cells(source)
    return State(step, done, facts.duration)


def _read(path: Path) -> Any:
    """A notebook; None if it is missing or cut off."""
    try:
        return nbformat.read(path, 4)
    except (OSError, ValueError):
        return None


def _whole(path: Path) -> Any:
    """papermill's copy of a notebook; None unless it ran to its end."""
    found = _read(path)
    facts = found.metadata.get("papermill", {}) if found else {}
    return found if facts.get("end_time") and not facts.get("exception") else None


def _cells(notebook: Any) -> list[tuple[str, str]]:
    """Its cells without the one in which papermill put the parameters."""
    cells = (c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", []))
    return [(cell.cell_type, cell.source) for cell in cells]


def clock(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))

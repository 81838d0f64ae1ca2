"""What a study consists of, how far each of its steps is, and about how long the rest will take.

Only changes of the notebooks and presets are noticed, not the package's: remove a step's copy to
have it run again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd

from fedser_utils.core import runs
from fedser_utils.core.presets import PRESETS, load_settings, page_defaults
from fedser_utils.core.runs import Run
from fedser_utils.core.settings import EMBEDDED, ROOT, Settings
from fedser_utils.workbook.study import run_status
from fedser_utils.workbook.study.run_status import DONE, MISSING, OUTDATED, STOPPED

NOTEBOOKS = ROOT / "notebooks"
TRAINING = "02_fl_advtrain"
START = 20  # seconds that a notebook takes on any corpus
PER_CLIP = 0.03  # seconds in which 01 reads (or makes) a clip and extracts its log-Mel
TEST_SHARE = 0.2  # client_partition's; importing it would import torch


@dataclass(frozen=True)
class Step:
    """A notebook with its parameters. kind: what its copy's name ends in; reads: the notebooks
    whose results it reads. For an estimate before its first run, in short and in full (the
    preset's ``full``): passes, gradients per test clip, counted in the notebook (a DeepFool step
    as 2); start, seconds that are the same for any corpus: kernel, imports, figures, ART."""

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
    # what 06 computes about all models is stored: for the others only the checklist is left
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
class StepStatus:
    """How far a step is. state: one of ``run_status``'s, of a training that of its run; seconds:
    of the step's last whole run, None if there is none; after: the round that a training goes on
    from."""

    step: Step
    state: str = MISSING
    seconds: float | None = None
    after: int = 0

    @property
    def done(self) -> bool:
        return self.state == DONE

    def __str__(self) -> str:
        if self.done:
            return DONE if self.seconds is None else f"done in {clock(self.seconds)}"
        return f"{self.state} after round {self.after}" if self.after else self.state


def parameters(step: Step, settings: Settings) -> dict[str, str]:
    """The parameters that papermill gives to a step's notebook."""
    common = {"preset": settings.preset, "corpus": settings.corpus, "outputs": settings.outputs}
    return common | dict(step.parameters)


def copy_path(step: Step, settings: Settings) -> Path:
    """Where papermill writes the executed copy of a step's notebook."""
    return settings.folder / "notebooks" / f"{step.name}.ipynb"


def step_statuses(steps: Sequence[Step], settings: Settings) -> list[StepStatus]:
    """How far each step is; what reads a step that is not done is outdated at best."""
    statuses: list[StepStatus] = []
    study = runs.find_runs(settings.outputs, settings.study)
    for step in steps:
        left = {status.step.notebook for status in statuses if not status.done}
        of_kind = _training_status if step.notebook == TRAINING else _analysis_status
        status = of_kind(step, settings, study)
        stale = status.done and left & set(step.reads)
        statuses.append(replace(status, state=OUTDATED) if stale else status)
    return statuses


def _training_status(step: Step, settings: Settings, study: Sequence[Run]) -> StepStatus:
    """Done if its run is complete, unless its notebook stopped after that."""
    path, of_step = copy_path(step, settings), load_settings(**parameters(step, settings))
    executed = executed_copy(path)
    seconds = executed.metadata.papermill.duration if executed else None
    run = next((run for run in reversed(study) if _has_settings(run, of_step)), None)
    if run is None:
        return StepStatus(step, MISSING, seconds)
    state, _ = run_status.run_state(run)
    if state == DONE and executed is None and path.exists():
        return StepStatus(step, STOPPED, seconds, of_step.rounds)
    after = of_step.rounds if state == DONE else run_status.checkpoint_round(run)
    return StepStatus(step, state, seconds, after)


def _has_settings(run: Run, settings: Settings) -> bool:
    """Whether a run is of exactly these settings and of the corpus in this place."""
    values, model = run.config["settings"], run.config["model"]
    digest = runs.settings_digest(settings.values(), run.config["fingerprint"])
    same = (digest, settings.model, settings.seed, settings.corpus)
    return same == (run.config["setting"], model, values["seed"], values["corpus"])


def _analysis_status(step: Step, settings: Settings, study: Sequence[Run]) -> StepStatus:
    """Done if its copy is whole, of this notebook and these parameters, and was started after
    all that it reads was there."""
    path = copy_path(step, settings)
    executed, source = executed_copy(path), _read(NOTEBOOKS / f"{step.notebook}.ipynb")
    if executed is None:
        return StepStatus(step)
    inputs = [PRESETS / f"{settings.preset}.yaml"]
    inputs += [path.with_name(f"{name}.ipynb") for name in step.reads]
    if TRAINING in step.reads:
        inputs += [run.folder / "model.safetensors" for run in study]
    facts = executed.metadata.papermill
    started = datetime.fromisoformat(facts.start_time).timestamp()
    done = started > max(filter(None, map(run_status.modified, inputs)))
    done = done and {k: str(v) for k, v in facts.parameters.items()} == parameters(step, settings)
    done = done and source is not None and cells(executed) == cells(source)
    return StepStatus(step, DONE if done else OUTDATED, facts.duration)


def _read(path: Path) -> Any:
    """A notebook; None if it is missing or cut off."""
    try:
        return nbformat.read(path, 4)
    except (OSError, ValueError):
        return None


def executed_copy(path: Path) -> Any:
    """papermill's copy of a notebook; None unless it ran to its end."""
    notebook = _read(path)
    facts = notebook.metadata.get("papermill", {}) if notebook else {}
    return notebook if facts.get("end_time") and not facts.get("exception") else None


def cells(notebook: Any) -> list[tuple[str, str]]:
    """Kind and source of a notebook's cells, without the one in which papermill put parameters."""
    return [
        (cell.cell_type, cell.source)
        for cell in notebook.cells
        if "injected-parameters" not in cell.metadata.get("tags", [])
    ]


def clock(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


@dataclass(frozen=True)
class Speed:
    """Measured seconds per clip, all workers at work. train: training; alone: training of a single
    client; forward: deciding; attacks: attacking, by name."""

    train: float
    alone: float
    forward: float
    attacks: Mapping[str, float]


def estimate_seconds(
    statuses: Sequence[StepStatus], settings: Settings, measure: Callable[[Settings], Speed]
) -> dict[str, float]:
    """Names of the steps that are not done -> seconds that each will about take: a training by
    this machine's speed, others as long as last time, or else by their gradients.

    measure: gives the speed; called only if an estimate rests on it.
    """
    left = [status for status in statuses if not status.done]
    if not left:
        return {}
    clips, speed, about = count_clips(settings), None, {}
    full = page_defaults(settings.preset).get("full", False)
    for status in left:
        step, passes = status.step, status.step.passes[full]
        if step.notebook == TRAINING or (passes and not status.seconds):
            speed = speed or measure(settings)
        if step.notebook == TRAINING:
            seconds = START + training_seconds(status, settings, clips, speed)
        elif status.seconds:
            seconds = status.seconds
        elif passes:
            seconds = step.start[full] + passes * TEST_SHARE * clips * speed.attacks["fgsm"]
        else:
            seconds = step.start[full] + (0 if step.reads else PER_CLIP * clips)
        about[step.name] = seconds
    return about


def count_clips(settings: Settings) -> int:
    """The corpus's number of clips: as 01 counted them, or counted now."""
    table = settings.folder / "table2.csv"
    if settings.corpus in EMBEDDED:
        return settings.clips
    if table.exists():
        return int(pd.read_csv(table)["sum"].iloc[-1])
    from fedser_utils.data.federation import corpus_of  # imports torch

    return len(corpus_of(settings).clips)


def training_seconds(status: StepStatus, settings: Settings, clips: int, speed: Speed) -> float:
    """Seconds of the rounds that a training still has before it: local epochs over the training
    clips, half of them attacked (from round 2 on), and the test clips under every condition at
    each evaluation. What a round costs besides (averaging, checkpoints) is left out."""
    test, last = TEST_SHARE * clips, settings.rounds
    attack, pooled = status.step.parameters["attack"], "clients" in status.step.parameters
    left = range(status.after + 1, last + 1)
    per_clip = settings.local_epochs * (speed.alone if pooled else speed.train)
    total = len(left) * (clips - test) * per_clip
    if attack != "none":
        total += len([n for n in left if n > 1]) * (clips - test) / 2 * speed.attacks[attack]
    names = [attack] if attack != "none" else list(speed.attacks)
    evaluated = [n for n in left if n % settings.eval_every == 0 or n == last]
    attacked = [n for n in evaluated if n % (settings.attack_every or 1) == 0 or n == last]
    per_clip = sum(speed.attacks[name] for name in names) + 2 * len(names) * speed.forward
    return total + test * (2 * len(evaluated) * speed.forward + len(attacked) * per_clip)

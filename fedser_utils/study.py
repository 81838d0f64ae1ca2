"""The whole study as one command: which notebooks are left to run, about how long, and run them.

``python -m fedser_utils.study --preset paper --corpus FOLDER --steps all`` is behind ``make``'s
demo, study, adaptive and paper. Steps that are done are not run again, so the same command goes
on after whatever stopped it. Only the notebooks' and presets' changes are noticed, not the
package's: remove a step's copy to have it run again.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import nbformat
import pandas as pd

from fedser_utils import config, corpora, runs
from fedser_utils.config import InputError, Settings
from fedser_utils.runs import Run

NOTEBOOKS = config.ROOT / "notebooks"
TRAINING = "02_fl_advtrain"
START = 20  # seconds that a notebook takes on any corpus
PER_CLIP = 0.03  # seconds in which 01 reads (or makes) a clip and extracts its log-Mel
CLASSES = 7  # of the model that is measured; the number hardly matters
LOG_END = 20  # lines shown of a step that failed
TEST_SHARE = 0.2  # partition's; importing it would import torch


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
}


class StepError(RuntimeError):
    """A notebook stopped; the text is what it said last."""


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


@dataclass(frozen=True)
class Speed:
    """Measured seconds per clip, all workers at work. train, forward: training and deciding;
    alone: training of a single client; attacks: by name."""

    train: float
    alone: float
    forward: float
    attacks: Mapping[str, float]


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
    whole, own = _whole(path), config.load_settings(**parameters(step, settings))
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
    digest = runs.setting_digest(own.values(), run.config["fingerprint"])
    same = (digest, own.model, own.seed, own.corpus)
    return same == (run.config["setting"], model, values["seed"], values["corpus"])


def _analysis(step: Step, settings: Settings, made: Sequence[Run]) -> State:
    """Done if its copy is whole, of this notebook and these parameters, and was started after
    all that it reads was there."""
    path = copy_of(step, settings)
    whole, source = _whole(path), _read(NOTEBOOKS / f"{step.notebook}.ipynb")
    if whole is None:
        return State(step, False)
    read = [config.PRESETS / f"{settings.preset}.yaml"]
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


def estimates(found: Sequence[State], settings: Settings) -> dict[str, float]:
    """Names of the steps that are left -> seconds that each will about take: a training by what
    is measured now, others as long as last time, or else by their gradients."""
    left = [state for state in found if not state.done]
    if not left:
        return {}
    clips = clips_of(settings)
    full = config.own_parameters({"full": None}, {"full": bool}, settings).full
    speed, about = None, {}
    for state in left:
        step, passes = state.step, state.step.passes[full]
        if step.notebook == TRAINING or (passes and not state.seconds):
            speed = speed or measure(settings)
        if step.notebook == TRAINING:
            seconds = START + training_seconds(state, settings, clips, speed)
        elif state.seconds:
            seconds = state.seconds
        elif passes:
            seconds = step.start[full] + passes * TEST_SHARE * clips * speed.attacks["fgsm"]
        else:
            seconds = step.start[full] + (0 if step.reads else PER_CLIP * clips)
        about[step.name] = seconds
    return about


def clips_of(settings: Settings) -> int:
    """The corpus's number of clips: as 01 counted them, or counted now."""
    table = settings.folder / "table2.csv"
    if settings.corpus == config.SYNTHETIC:
        return settings.clips
    if table.exists():
        return int(pd.read_csv(table)["sum"].iloc[-1])
    return len(corpora.load_corpus(settings.corpus).clips)


def training_seconds(state: State, settings: Settings, clips: int, speed: Speed) -> float:
    """Seconds of the rounds that a training still has before it: local epochs over the training
    clips, half of them attacked (from round 2 on), and the test clips under every condition at
    each evaluation. What a round costs besides (averaging, checkpoints) is left out."""
    test, last = TEST_SHARE * clips, settings.rounds
    attack, alone = state.step.parameters["attack"], "clients" in state.step.parameters
    left = range(state.first + 1, last + 1)
    each = settings.local_epochs * (speed.alone if alone else speed.train)
    total = len(left) * (clips - test) * each
    if attack != "none":
        total += len([n for n in left if n > 1]) * (clips - test) / 2 * speed.attacks[attack]
    tried = [attack] if attack != "none" else list(speed.attacks)
    evaluations = len([n for n in left if n % settings.eval_every == 0 or n == last])
    each = sum(speed.attacks[name] for name in tried) + 2 * (1 + len(tried)) * speed.forward
    return total + evaluations * test * each


def measure(settings: Settings) -> Speed:
    """This machine's speed, in a process of its own that leaves no memory of the GPU taken."""
    print("measuring how fast this machine is ...", flush=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart:
        return apart.submit(_measured, settings).result()


def _measured(settings: Settings) -> Speed:
    """Train, decide and attack on random images with a new model of the settings' width, on their
    device. An attack is timed by one step of it: a DeepFool that stops early is faster."""
    import torch  # here, so that the plan of a finished study appears at once

    from fedser_utils import attacks, clients, evaluation, features, models, training
    from fedser_utils.cohort import worker_pool
    from fedser_utils.seeding import generator

    device = clients.device_of(settings)
    workers = torch.get_num_threads() if device == "cpu" else 1
    bf16 = clients.uses_bf16(settings, device)
    model = clients.new_model(settings, CLASSES).to(device).eval()
    aim, weights = models.attackable(model, bf16=bf16), models.state_arrays(model)
    count = workers * evaluation.BATCH[device]
    x = torch.randn(count, 1, features.FRAMES, features.MELS).to(device)
    y = torch.randint(CLASSES, (count,)).to(device)
    options = {"batch_size": settings.batch_size, "learning_rate": settings.learning_rate}

    def train(own: torch.nn.Module) -> None:
        draws = generator(settings.seed, "measure")
        training.client_update(own, weights, x, y, generator=draws, epochs=1, bf16=bf16, **options)

    def trained(side_by_side: int) -> float:
        own = [copy.deepcopy(model) for _ in range(side_by_side)]
        begin = time.perf_counter()
        list(pool.map(train, own))
        return (time.perf_counter() - begin) / side_by_side / count

    def seen(function: Callable[..., torch.Tensor]) -> float:
        begin = time.perf_counter()
        evaluation.in_batches(function, x, y, pool=pool).cpu()
        return (time.perf_counter() - begin) / count

    def attacked(name: str) -> float:
        steps = clients.attack_of(settings, name).keywords.get("steps", 1)
        return steps * seen(partial(clients.attack_of(settings, name, steps=1), aim))

    with worker_pool(device) as pool:
        trained(1), attacked("fgsm")  # to warm up
        forward = seen(lambda x, y: attacks.predictions(aim, x))
        each = {name: attacked(name) for name in attacks.ATTACKS}
        return Speed(trained(workers), trained(1), forward, each)


def show(found: Sequence[State], about: Mapping[str, float], settings: Settings) -> None:
    """Print the plan."""
    print(f"study {settings.study}; copies and logs: {settings.folder / 'notebooks'}")
    for state in found:
        time_left = f"about {clock(about[state.step.name])}" if state.step.name in about else ""
        print(f"  {state.step.name:<28}{state!s:<26}{time_left}".rstrip())
    left = sum(not state.done for state in found)
    total = f", about {clock(sum(about.values()))}" if about else ""
    print(f"left to do: {left} of {len(found)} steps{total}", flush=True)


def run(found: Sequence[State], about: Mapping[str, float], settings: Settings) -> None:
    """Run what is left. Raises StepError."""
    rest, spent, expected = dict(about), 0.0, 0.0
    for step in (state.step for state in found if not state.done):
        print(f"{step.name} ...", flush=True)
        begin = time.monotonic()
        execute(step, settings)
        took = time.monotonic() - begin
        spent, expected = spent + took, expected + rest.pop(step.name, 0)
        left = f"; left to do: about {clock(sum(rest.values()) * spent / expected)}" if rest else ""
        print(f"  took {clock(took)}{left}", flush=True)


def execute(step: Step, settings: Settings) -> None:
    """One notebook, headless; what it says goes to a log beside its copy. Raises StepError."""
    path = copy_of(step, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "papermill", "--no-progress-bar"]
    command += [f"{step.notebook}.ipynb", str(path)]
    command += [word for pair in parameters(step, settings).items() for word in ("-p", *pair)]
    folder = str(Path(sys.executable).parent)  # papermill finds its kernel's python by PATH
    search = os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])
    with open(path.with_suffix(".log"), "w") as log:
        done = subprocess.run(
            command, cwd=NOTEBOOKS, env=os.environ | {"PATH": search}, stdout=log, stderr=log
        )
    if done.returncode:
        said = path.with_suffix(".log").read_text().strip().splitlines()[-LOG_END:] or ["(nothing)"]
        refusal = said[-1].removeprefix("SystemExit: ")
        raise StepError(refusal if refusal != said[-1] else "\n".join(said))


def clock(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = _Parser(prog="python -m fedser_utils.study", description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="demo", help=", ".join(config.preset_names()))
    parser.add_argument("--corpus", default=config.SYNTHETIC, help="synthetic, a folder or a CSV")
    parser.add_argument("--outputs", type=Path, default=config.ROOT / "outputs")
    parser.add_argument("--steps", default="study", choices=PARTS)
    parser.add_argument("--plan", action="store_true", help="only show what is left to do")
    parser.add_argument("--no-estimate", action="store_true", help="do not measure the machine")
    try:
        given = parser.parse_args(arguments)
        outputs = str(given.outputs.expanduser().resolve())
        settings = config.load_settings(given.preset, corpus=given.corpus, outputs=outputs)
        found = states(PARTS[given.steps], settings)
        about = {} if given.no_estimate else estimates(found, settings)
        show(found, about, settings)
        if not given.plan:
            run(found, about, settings)
            print(f"tables and figures: {settings.folder}")
    except (InputError, StepError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The whole study as one command: which notebooks are left to run, about how long, and run them.

``python -m fedser_utils.workbook.study.run_study --preset paper --corpus FOLDER --steps all`` is
behind the targets demo, study, adaptive and paper of ``make``. Steps that are done are not run
again, so the same command goes on after whatever stopped it.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from fedser_utils.core import cli
from fedser_utils.core.errors import number
from fedser_utils.core.presets import load_settings, preset_names
from fedser_utils.core.settings import ROOT, SYNTHETIC, Settings
from fedser_utils.workbook.study import study_plan
from fedser_utils.workbook.study.study_plan import PARTS, TRAINING, Speed, Step, StepStatus, clock

LOG_END = 20  # lines shown of a step that failed
CLASSES = 7  # of the model whose training is timed; the number hardly matters


class StepError(RuntimeError):
    """A notebook failed; the text is the end of its log."""


def show(statuses: Sequence[StepStatus], about: Mapping[str, float], settings: Settings) -> None:
    """Print the plan. about: seconds of steps, by name."""
    print(f"study {settings.study}; copies and logs: {settings.folder / 'notebooks'}")
    for status in statuses:
        name = status.step.name
        seconds = f"about {clock(about[name])}" if name in about else ""
        print(f"  {name:<28}{status!s:<26}{seconds}".rstrip())
    left = sum(not status.done for status in statuses)
    total = f", about {clock(sum(about.values()))}" if about else ""
    print(f"left to do: {left} of {len(statuses)} steps{total}", flush=True)


def run(
    steps: Sequence[Step], about: Mapping[str, float], settings: Settings, *, jobs: int = 1
) -> None:
    """Run the steps; trainings, which do not depend on each other, ``jobs`` at a time, each with
    its share of the cores. Raises StepError."""
    rest, spent, expected = dict(about), 0.0, 0.0

    def timed(step: Step, threads: int | None = None) -> None:
        nonlocal spent, expected
        print(f"{step.name} ...", flush=True)
        begin = time.monotonic()
        execute(step, settings, threads=threads)
        took = time.monotonic() - begin
        spent, expected = spent + took, expected + rest.pop(step.name, 0)
        left = f"; left to do: about {clock(sum(rest.values()) * spent / expected)}" if rest else ""
        name = f"{step.name} " if threads else ""
        print(f"  {name}took {clock(took)}{left}", flush=True)

    for training, group in groupby(steps, lambda step: step.notebook == TRAINING):
        if training and jobs > 1:
            share = max(1, len(os.sched_getaffinity(0)) // jobs)
            with ThreadPoolExecutor(jobs) as pool:  # each waits for a process
                # what takes longest stands last: begun first, it does not end alone
                list(pool.map(partial(timed, threads=share), reversed([*group])))
        else:
            for step in group:
                timed(step)


def execute(step: Step, settings: Settings, *, threads: int | None = None) -> None:
    """Run one notebook without a front end, its output in a log beside its copy. threads: of torch,
    all cores if None. Raises StepError."""
    path = study_plan.copy_path(step, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "papermill", "--no-progress-bar"]
    command += [f"{step.notebook}.ipynb", str(path)]
    given = study_plan.parameters(step, settings)
    command += [word for pair in given.items() for word in ("-p", *pair)]
    folder = str(Path(sys.executable).parent)  # papermill takes its kernel's python from PATH
    search = os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])
    environment = os.environ | {"PATH": search}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    log = path.with_suffix(".log")
    with open(log, "w") as file:
        done = subprocess.run(
            command, cwd=study_plan.NOTEBOOKS, env=environment, stdout=file, stderr=file
        )
    if done.returncode:
        lines = log.read_text().strip().splitlines()[-LOG_END:] or ["(nothing)"]
        refusal = lines[-1].removeprefix("SystemExit: ").removeprefix("InputError: ")
        raise StepError(refusal if refusal != lines[-1] else "\n".join(lines))


def measure(settings: Settings) -> Speed:
    """This machine's speed, measured in another process: no memory of the GPU stays taken."""
    print("measuring how fast this machine is ...", flush=True)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(_measure_here, settings).result()


def _measure_here(settings: Settings) -> Speed:
    """Train, decide and attack on random images with a new model of the settings' width, on their
    device. An attack is timed by one step of it: a DeepFool that stops early is faster."""
    import torch  # here, so that the plan of a finished study appears at once

    from fedser_utils import attacks
    from fedser_utils.core import devices
    from fedser_utils.federated import client
    from fedser_utils.learning import gpu_engine
    from fedser_utils.robustness import evaluation

    device = devices.resolve_device(settings)
    workers = torch.get_num_threads() if device == "cpu" else gpu_engine.LANES
    model = client.new_model(settings, CLASSES).to(device).eval()
    target_model = client.evaluation_target(settings, model)
    count = workers * evaluation.BATCH[torch.device(device).type]
    x = torch.randn(count, 1, *settings.front_end.shape).to(device)
    y = torch.randint(CLASSES, (count,)).to(device)

    def seconds(work: Callable[..., Any], *args: Any) -> float:
        begin = time.perf_counter()
        work(*args)
        return (time.perf_counter() - begin) / count

    def decide(function: Callable[..., torch.Tensor]) -> None:
        evaluation.in_batches(function, x, y, pool=pool).cpu()

    def attack(name: str) -> float:
        steps = attacks.make_attack(settings, name).keywords.get("steps", 1)
        one_step = attacks.make_attack(settings, name, steps=1)
        return steps * seconds(decide, partial(one_step, target_model))

    with devices.worker_pool(device) as pool:
        train = _make_trainer(settings, model, x, y, pool)
        train(1), [attack(name) for name in attacks.ATTACKS]  # to warm up
        forward = seconds(decide, lambda x, y: attacks.predictions(target_model, x))
        by_attack = {name: attack(name) for name in attacks.ATTACKS}
        return Speed(seconds(train, workers) / workers, seconds(train, 1), forward, by_attack)


def _make_trainer(
    settings: Settings, model: Any, x: Any, y: Any, pool: Executor
) -> Callable[[int], Any]:
    """A function that trains so many clients side by side for one epoch, each on all of x, y."""
    from fedser_utils.core.devices import uses_bf16
    from fedser_utils.federated import client
    from fedser_utils.learning import gpu_engine, vgg
    from fedser_utils.learning.local_training import make_schedule

    weights, name = vgg.state_arrays(model), "client-to-time"
    if not client.is_fast(settings):
        one_epoch = replace(settings, local_epochs=1)
        fit = partial(client.fit, one_epoch, name, (x, y), weights, 1)
        return lambda clients: [*pool.map(fit, [None] * clients)]
    schedule = make_schedule(
        len(x), epochs=1, batch_size=settings.batch_size, attack=False,
        generator=client.client_generator(settings, name, 1),
    )  # fmt: skip
    recipe = gpu_engine.Recipe(settings.alpha, 0.0, uses_bf16(settings, x.device.type))
    engine = gpu_engine.Engine(model, recipe, clients=settings.speakers)
    jobs, rate = [gpu_engine.Job(x, y, schedule, None)], settings.learning_rate
    return lambda clients: engine.fit(jobs * clients, weights, learning_rate=rate)


def command(
    preset: str, corpus: str, outputs: Path, steps: str, plan: bool, jobs: int, no_estimate: bool
) -> None:
    """Show what is left of a study and run it. Raises InputError and StepError."""
    number("jobs", jobs)
    outputs = outputs.expanduser().resolve()
    settings = load_settings(preset, corpus=corpus, outputs=str(outputs))
    statuses = study_plan.step_statuses(PARTS[steps], settings)
    about = {} if no_estimate else study_plan.estimate_seconds(statuses, settings, measure)
    show(statuses, about, settings)
    if not plan:
        run([status.step for status in statuses if not status.done], about, settings, jobs=jobs)
        print(f"tables and figures: {settings.folder}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = cli.Parser(
        prog="python -m fedser_utils.workbook.study.run_study", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--preset", default="demo", help=", ".join(preset_names()))
    parser.add_argument("--corpus", default=SYNTHETIC, help="synthetic, a folder or a CSV")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs")
    parser.add_argument("--steps", default="study", choices=PARTS)
    parser.add_argument("--plan", action="store_true", help="only show what is left to do")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, on CPU cores")
    parser.add_argument("--no-estimate", action="store_true", help="do not measure the machine")
    code = cli.run(parser, command, arguments, expected=(StepError,))
    if code == 130:
        print("stopped; the same command goes on from here", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

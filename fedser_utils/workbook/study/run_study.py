"""The whole study as one command: which notebooks are left to run, about how long, and run them.

``python -m fedser_utils.workbook.study.run_study --preset paper --corpus FOLDER --steps all`` is
behind the targets demo, study, adaptive and paper of ``make``. Steps that are done are not run
again, so the same command goes on after whatever stopped it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import groupby
from pathlib import Path

from fedser_utils.core.cli import Parser
from fedser_utils.core.errors import InputError, number
from fedser_utils.core.settings import ROOT, SYNTHETIC, Settings, load_settings, preset_names
from fedser_utils.workbook.study import study_plan
from fedser_utils.workbook.study.estimate import estimates
from fedser_utils.workbook.study.study_plan import (
    PARTS,
    TRAINING,
    State,
    Step,
    clock,
    copy_of,
    parameters,
    states,
)

LOG_END = 20  # lines shown of a step that failed


class StepError(RuntimeError):
    """A notebook stopped; the text is what it said last."""


def show(found: Sequence[State], about: Mapping[str, float], settings: Settings) -> None:
    """Print the plan."""
    print(f"study {settings.study}; copies and logs: {settings.folder / 'notebooks'}")
    for state in found:
        time_left = f"about {clock(about[state.step.name])}" if state.step.name in about else ""
        print(f"  {state.step.name:<28}{state!s:<26}{time_left}".rstrip())
    left = sum(not state.done for state in found)
    total = f", about {clock(sum(about.values()))}" if about else ""
    print(f"left to do: {left} of {len(found)} steps{total}", flush=True)


def run(
    found: Sequence[State], about: Mapping[str, float], settings: Settings, *, jobs: int = 1
) -> None:
    """Run what is left; trainings, which do not need each other, ``jobs`` at a time, each with its
    share of the cores. Raises StepError."""
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

    steps = [state.step for state in found if not state.done]
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
    """One notebook, headless; what it says goes to a log beside its copy. threads: of torch, all
    cores if None. Raises StepError."""
    path = copy_of(step, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "papermill", "--no-progress-bar"]
    command += [f"{step.notebook}.ipynb", str(path)]
    command += [word for pair in parameters(step, settings).items() for word in ("-p", *pair)]
    folder = str(Path(sys.executable).parent)  # papermill finds its kernel's python by PATH
    search = os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])
    environment = os.environ | {"PATH": search}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    with open(path.with_suffix(".log"), "w") as log:
        done = subprocess.run(
            command, cwd=study_plan.NOTEBOOKS, env=environment, stdout=log, stderr=log
        )
    if done.returncode:
        said = path.with_suffix(".log").read_text().strip().splitlines()[-LOG_END:] or ["(nothing)"]
        refusal = said[-1].removeprefix("SystemExit: ")
        raise StepError(refusal if refusal != said[-1] else "\n".join(said))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = Parser(
        prog="python -m fedser_utils.workbook.study.run_study", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--preset", default="demo", help=", ".join(preset_names()))
    parser.add_argument("--corpus", default=SYNTHETIC, help="synthetic, a folder or a CSV")
    parser.add_argument("--outputs", type=Path, default=ROOT / "outputs")
    parser.add_argument("--steps", default="study", choices=PARTS)
    parser.add_argument("--plan", action="store_true", help="only show what is left to do")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, on CPU cores")
    parser.add_argument("--no-estimate", action="store_true", help="do not measure the machine")
    try:
        given = parser.parse_args(arguments)
        number("jobs", given.jobs)
        outputs = str(given.outputs.expanduser().resolve())
        settings = load_settings(given.preset, corpus=given.corpus, outputs=outputs)
        found = states(PARTS[given.steps], settings)
        about = {} if given.no_estimate else estimates(found, settings)
        show(found, about, settings)
        if not given.plan:
            run(found, about, settings, jobs=given.jobs)
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

"""The study's program: what is done, what is left and about how long, and going on after a stop."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from functools import partial

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from fedser_utils.core import runs
from fedser_utils.core.presets import load_settings
from fedser_utils.core.settings import ROOT
from fedser_utils.data import federation
from fedser_utils.workbook.study import run_study, study_plan
from fedser_utils.workbook.study.study_plan import PARTS, STEPS, Speed, StepStatus

FIXED = Speed(train=2, alone=3, forward=0.5, attacks={"fgsm": 1, "pgd": 10, "deepfool": 100})
NAMES = [step.name for step in STEPS]
ADAPTIVE = [name for name in NAMES if name.startswith("06_adaptive")]


def write_notebook(name, code):
    """A notebook of two cells in the folder of notebooks."""
    first = 'preset = corpus = outputs = ""'
    cells = [new_code_cell(first, metadata={"tags": ["parameters"]}), new_code_cell(code)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    path = study_plan.NOTEBOOKS / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)


@pytest.fixture(autouse=True)
def _small_notebooks(tmp_path, monkeypatch):
    monkeypatch.setattr(study_plan, "NOTEBOOKS", tmp_path)
    for one in STEPS:
        write_notebook(one.notebook, "print(corpus)")


@pytest.fixture
def settings(tmp_path):
    return load_settings("smoke", outputs=str(tmp_path / "outputs"))


@pytest.fixture
def fixed_speed(monkeypatch):
    monkeypatch.setattr(run_study, "measure", lambda settings: FIXED)


def command(settings, *more):
    return run_study.main(["--preset", "smoke", "--outputs", settings.outputs, *more])


def step(name):
    return STEPS[NAMES.index(name)]


def state(name, settings):
    """How far one step is, among all steps."""
    return study_plan.step_statuses(STEPS, settings)[NAMES.index(name)]


def leave_copy(one, settings, **facts):
    """papermill's copy of a step's notebook as it stands now, ended at this moment."""
    copy = nbformat.read(study_plan.NOTEBOOKS / f"{one.notebook}.ipynb", 4)
    copy.cells.insert(1, new_code_cell("# Parameters", metadata={"tags": ["injected-parameters"]}))
    now = datetime.now(UTC).isoformat()
    copy.metadata.papermill = {
        "parameters": study_plan.parameters(one, settings), "start_time": now, "end_time": now,
        "duration": 65.0, "exception": None,
    } | facts  # fmt: skip
    path = study_plan.copy_path(one, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(copy, path)
    return path


def start_run(one, settings):
    of_step = load_settings(**study_plan.parameters(one, settings))
    return runs.open_run(of_step, "f00", device="cpu")


def finish(run):
    runs.save_model(run, {"w": np.zeros(1, np.float32)})


@pytest.fixture
def finished(settings):
    """A study whose trainings and copies are all there."""
    for one in STEPS:
        if one.notebook == study_plan.TRAINING:
            finish(start_run(one, settings))
    for one in STEPS:
        leave_copy(one, settings)
    return settings


def left(settings, part="all"):
    return [s.step.name for s in study_plan.step_statuses(PARTS[part], settings) if not s.done]


def test_an_empty_study_has_everything_to_do(settings, fixed_speed, capsys):
    assert command(settings, "--plan") == 0
    printed = capsys.readouterr().out
    assert "left to do: 9 of 9 steps, about " in printed
    names = [line.split()[0] for line in printed.splitlines() if line.startswith("  0")]
    assert names == [name for name in NAMES if not name.startswith("06")]
    assert not os.path.exists(settings.outputs)


def test_the_parts():
    there = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    run = {one.notebook for steps in PARTS.values() for one in steps}
    assert there - {"08_dashboard"} == run  # it shows, it makes nothing
    assert [s.name for s in PARTS["adaptive"]] == ["06_adaptive_none"]
    assert NAMES[0] == "01_data"
    assert NAMES[-1] == "05_analysis"
    assert NAMES[1:6] == [
        f"02_fl_advtrain_{n}" for n in ["none", "fgsm", "pgd", "deepfool", "centralised"]
    ]
    assert dict(step("02_fl_advtrain_centralised").parameters) == {
        "attack": "none",
        "clients": "pooled",
    }
    assert study_plan.TEST_SHARE == federation.TEST_SHARE


def test_what_is_done_is_not_run_again(finished, monkeypatch, capsys):
    monkeypatch.setattr(run_study, "execute", None)
    monkeypatch.setattr(run_study, "measure", None)
    assert command(finished, "--steps", "all") == 0
    printed = capsys.readouterr().out
    assert printed.count("done in 0:01:05") == len(STEPS)
    assert f"left to do: 0 of {len(STEPS)} steps\n" in printed


def test_a_changed_notebook_is_run_again(finished):
    write_notebook("02_fl_advtrain", "print(preset)")
    write_notebook("04_randomisation", "print(preset)")
    assert left(finished) == ["04_randomisation"]  # a run that is complete stays


@pytest.mark.parametrize(
    "facts",
    [
        {"end_time": None},
        {"exception": True},
        {"start_time": "2000-01-01T00:00:00+00:00"},
        {"parameters": {"preset": "smoke"}},
    ],
    ids=str,
)
def test_a_copy_that_does_not_count(finished, facts):
    leave_copy(step("04_randomisation"), finished, **facts)
    assert left(finished) == ["04_randomisation"]


def test_a_copy_that_was_cut_off(finished):
    path = study_plan.copy_path(step("03_attacks"), finished)
    path.write_text(path.read_text()[:500])
    assert left(finished) == ["03_attacks", "05_analysis"]
    path.unlink()
    assert left(finished) == ["03_attacks", "05_analysis"]


def test_a_run_that_is_gone_and_what_read_it(finished):
    run = start_run(step("02_fl_advtrain_pgd"), finished)
    (run.folder / "model.safetensors").unlink()
    after = ["03_attacks", "04_randomisation", *ADAPTIVE, "05_analysis"]
    assert left(finished) == ["02_fl_advtrain_pgd", *after]
    time.sleep(0.01)
    finish(run)
    assert left(finished) == after
    assert left(finished, "adaptive") == ADAPTIVE[:1]


def test_a_training_counts_by_its_run(settings):
    one = step("02_fl_advtrain_fgsm")
    other = dataclasses.replace(settings, attack="fgsm", epsilon=0.2)
    finish(runs.open_run(other, "f00"))
    leave_copy(one, settings)
    assert not state(one.name, settings).done  # a copy, but the run has other settings
    finish(start_run(one, settings))
    assert state(one.name, settings).done
    leave_copy(one, settings, exception=True)
    assert not state(one.name, settings).done  # its figures are missing
    study_plan.copy_path(one, settings).unlink()
    assert str(state(one.name, settings)) == "done"  # as another job trained it


def test_a_stopped_training_goes_on(settings, fixed_speed, capsys):
    run = start_run(step("02_fl_advtrain_pgd"), settings)
    for name in ("round-000001", ".partial-7"):
        (run.folder / "checkpoint" / name).mkdir(parents=True)
    assert state("02_fl_advtrain_pgd", settings).after == 1
    command(settings, "--plan")
    (line,) = (n for n in capsys.readouterr().out.splitlines() if "advtrain_pgd" in n)
    # round 2 of 2: 0.8 x 63 clips trained and half attacked; 0.2 x 63 tested
    seconds = 20 + 50.4 * 2 + 25.2 * 10 + 12.6 * (10 + 4 * 0.5)
    assert "stopped after round 1" in line
    assert line.endswith(f"about {study_plan.clock(seconds)}")


def test_a_step_is_in_the_state_of_its_run(finished):
    def states():
        return {s.step.name: str(s) for s in study_plan.step_statuses(STEPS, finished)}

    run = start_run(step("02_fl_advtrain_pgd"), finished)
    weights = run.folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:9])
    assert states()["02_fl_advtrain_pgd"].startswith("damaged")
    weights.unlink()
    with runs.locked(run.folder):
        assert states()["02_fl_advtrain_pgd"] == "running"
    assert states()["02_fl_advtrain_pgd"] == "stopped"
    assert states()["03_attacks"] == "outdated"
    study_plan.copy_path(step("03_attacks"), finished).unlink()
    assert states()["03_attacks"] == "missing"
    assert states()["01_data"] == "done in 0:01:05"


def test_the_estimate_by_hand(settings):
    settings = dataclasses.replace(settings, rounds=10, eval_every=4, local_epochs=3)

    def seconds(name, after=0, **change):
        one = StepStatus(step(f"02_fl_advtrain_{name}"), after=after)
        return study_plan.training_seconds(one, dataclasses.replace(settings, **change), 100, FIXED)

    tested = 20 * (1 + 10 + 100 + 8 * 0.5)  # all three attacks
    assert seconds("none") == 10 * 80 * 3 * 2 + 3 * tested  # after rounds 4, 8 and 10
    assert seconds("centralised") == 10 * 80 * 3 * 3 + 3 * tested
    assert seconds("pgd") == 10 * 80 * 3 * 2 + 9 * 40 * 10 + 3 * 20 * (10 + 4 * 0.5)
    assert seconds("pgd", after=8) == 2 * 80 * 3 * 2 + 2 * 40 * 10 + 20 * (10 + 4 * 0.5)
    assert seconds("pgd", after=10) == 0
    plain = 10 * 80 * 3 * 2 + 10 * 20 * 2 * 0.5  # every evaluation; the attacks in two of them
    assert seconds("none", eval_every=1, attack_every=6) == plain + 2 * (tested - 20 * 2 * 0.5)
    assert seconds("none", rounds=20, eval_every=1) == 2 * seconds("none", eval_every=1)


def test_others_take_as_long_as_last_time_or_by_their_gradients(settings, fixed_speed):
    leave_copy(step("03_attacks"), settings)
    leave_copy(step("06_adaptive_none"), settings, exception=True)
    about = study_plan.estimate_seconds(
        study_plan.step_statuses(STEPS, settings), settings, run_study.measure
    )
    assert about["03_attacks"] == 65
    assert about["04_randomisation"] == pytest.approx(20 + 25 * 12.6)  # FGSM: 1 second
    adaptive = step("06_adaptive_none")
    assert about[adaptive.name] == pytest.approx(adaptive.start[1] + adaptive.passes[1] * 12.6)
    assert about["05_analysis"] == 20
    assert about["01_data"] == pytest.approx(20 + 63 * study_plan.PER_CLIP)


def test_the_machine_is_measured(tiny):
    speed = run_study.measure(tiny)
    assert sorted(speed.attacks) == ["deepfool", "fgsm", "pgd"]
    assert min(speed.train, speed.alone, speed.forward, *speed.attacks.values()) > 0


def test_clips_of_a_folder_are_counted(speech, tmp_path, settings):
    settings = dataclasses.replace(settings, corpus=str(speech / "emovo"))
    assert study_plan.count_clips(settings) > 10
    runs.write_text(settings.folder / "table2.csv", "emotion,sum\nanger,3\nsum,5\n")
    assert study_plan.count_clips(settings) == 5


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (
            ["--preset", "dmo"],
            "preset 'dmo' is unknown; choose from demo, deployment, paper, smoke",
        ),
        (["--steps", "al"], "argument --steps: invalid choice: 'al' (choose from 'study', "),
        (["--corpus", "/nowhere"], "corpus '/nowhere' does not exist; give"),
        (["--jobs", "0"], "jobs 0 must be a whole number >= 1"),
        (["--rounds", "3"], "unrecognized arguments: --rounds 3"),
    ],
)
def test_refusals(words, answer, tmp_path, capsys):
    assert run_study.main([*words, "--outputs", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert answer in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


@pytest.fixture
def two(monkeypatch, fixed_speed):
    """Two notebooks, 1_make and 2_use, as the study's steps. Call it with the second's code."""
    steps = [study_plan.Step("1_make", reads=()), study_plan.Step("2_use", reads=("1_make",))]
    monkeypatch.setitem(PARTS, "study", steps)
    write_notebook("1_make", "open(outputs + '/result', 'w').write(preset)")
    return partial(write_notebook, "2_use")


@pytest.mark.long  # five notebooks through papermill
def test_a_failure_stops_and_the_next_call_goes_on(settings, two, capsys):
    two("raise SystemExit('model of ' + preset + ' is missing; run 02 first')")
    assert command(settings) == 1
    printed = capsys.readouterr()
    assert printed.err == "model of smoke is missing; run 02 first\n"
    assert re.search(
        r"1_make \.\.\.\n  took \d+:\d\d:\d\d; left to do: about \d+:\d\d:\d\d", printed.out
    )
    assert (settings.folder.parent / "result").read_text() == "smoke"

    two("1 / 0")
    assert command(settings) == 1
    printed = capsys.readouterr()
    assert "ZeroDivisionError: division by zero" in printed.err
    assert printed.err.count("\n") <= run_study.LOG_END
    assert re.search(r"1_make +done in \d+:\d\d:\d\d", printed.out)

    two("print(corpus)")
    assert command(settings) == 0
    assert "left to do: 1 of 2 steps" in capsys.readouterr().out
    copy = nbformat.read(settings.folder / "notebooks" / "2_use.ipynb", 4)
    assert copy.cells[-1].outputs[0].text == "synthetic\n"
    assert command(settings) == 0
    assert "left to do: 0 of 2 steps\n" in capsys.readouterr().out


@pytest.fixture
def ctrl_c_counts():
    """SIGINT is not ignored, as it is in what a shell starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_in_one_line(settings, monkeypatch, fixed_speed, capsys, ctrl_c_counts):
    def interrupt(*_, **__):
        signal.raise_signal(signal.SIGINT)  # in this thread, now

    monkeypatch.setattr(run_study, "execute", interrupt)
    assert command(settings) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on from here\n"


def test_trainings_side_by_side_share_the_cores(settings, monkeypatch, capsys):
    together, order = threading.Barrier(2), []

    def execute(step, settings, *, threads: int | None):
        if threads:
            together.wait()  # breaks unless two of them run at the same time
        order.append((step.name, threads))

    monkeypatch.setattr(run_study, "execute", execute)
    steps = [s for s in STEPS if s.name not in ("02_fl_advtrain_centralised", *ADAPTIVE)]
    monkeypatch.setitem(PARTS, "study", steps)
    assert command(settings, "--jobs", "2", "--no-estimate") == 0
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    threads = dict(order)
    assert order[0] == ("01_data", None)
    assert {threads[name] for name in NAMES[1:5]} == {share}
    assert [name for name, _ in order[5:]] == ["03_attacks", "04_randomisation", "05_analysis"]
    assert re.search(r"02_fl_advtrain_pgd took \d+:\d\d:\d\d", capsys.readouterr().out)


def test_a_failure_beside_others_stops_what_comes_after(settings, monkeypatch, capsys):
    done = []

    def execute(step, settings, *, threads):
        done.append(step.name)
        if step.name == "02_fl_advtrain_none":
            raise run_study.StepError("out of memory")

    monkeypatch.setattr(run_study, "execute", execute)
    assert command(settings, "--jobs", "2", "--no-estimate") == 1
    assert capsys.readouterr().err == "out of memory\n"
    assert "03_attacks" not in done


def test_a_plan_needs_no_torch():
    code = "import sys; from fedser_utils.workbook.study import run_study; "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0

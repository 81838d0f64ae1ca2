"""Run folders: atomic files, groups that are not mixed."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from fedser_utils.core import runs
from fedser_utils.core.errors import InputError
from fedser_utils.core.presets import load_settings
from fedser_utils.core.runs import RunBusyError


@pytest.fixture
def settings(tmp_path):
    return load_settings("smoke", outputs=str(tmp_path))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.csv"
    runs.write_table(path, pd.DataFrame({"x": [1]}))
    with pytest.raises(OSError, match="No space"):
        runs.write_table(path, Full())
    assert pd.read_csv(path)["x"].tolist() == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


def test_a_run_is_found_again(settings):
    run = runs.open_run(settings, "f00", device="cpu")
    assert run.id.startswith("smoke-nature-s0-")
    assert run.config["device"] == "cpu"
    assert {"versions", "commit", "started"} <= run.config.keys()
    assert run.settings == settings
    assert runs.open_run(settings, "f00").config == run.config


def test_what_changes_a_result_changes_the_run(settings):
    same = dataclasses.replace(settings, checkpoint_every=1, device="cpu")
    assert runs.open_run(same, "f00").id == runs.open_run(settings, "f00").id
    ids = {runs.open_run(settings, "f00").id, runs.open_run(settings, "f01").id}
    for change in ({"rounds": 9}, {"seed": 1}, {"attack": "pgd"}, {"epsilon": 0.1}):
        ids.add(runs.open_run(dataclasses.replace(settings, **change), "f00").id)
    assert len(ids) == 6


def test_two_processes_do_not_write_one_run(tmp_path):
    with runs.locked(tmp_path), pytest.raises(RunBusyError, match="another process"):  # noqa: SIM117
        with runs.locked(tmp_path):
            pass


class Full:
    """A table whose writing fails half way."""

    def to_csv(self, path, index):
        path.write_text("half")
        raise OSError("No space left on device")


def complete(settings, **change):
    run = runs.open_run(dataclasses.replace(settings, **change), "f00")
    runs.save_model(run, {"w": np.zeros(1, np.float32)})
    return run


def test_a_table_mixes_no_settings(settings):
    with pytest.raises(InputError, match=r"study 'smoke' has no complete run in .*; run 02 first"):
        runs.study_runs(settings)
    nature, pgd = complete(settings), complete(settings, attack="pgd")
    runs.open_run(dataclasses.replace(settings, attack="fgsm"), "f00")  # not complete
    assert [r.id for r in runs.study_runs(settings)] == sorted([nature.id, pgd.id])
    complete(settings, epsilon=0.2)
    assert [r.id for r in runs.study_runs(settings)] == sorted([nature.id, pgd.id])
    with pytest.raises(InputError, match="runs with different settings"):
        runs.study_runs(dataclasses.replace(settings, epsilon=0.3))
    assert runs.find_run(dataclasses.replace(settings, attack="pgd")).id == pgd.id
    with pytest.raises(InputError, match="no complete run of model 'fgsm' with seed 0"):
        runs.find_run(dataclasses.replace(settings, attack="fgsm"))


def test_what_reads_runs_refuses_a_setting_that_they_do_not_have(settings):
    complete(settings)
    given = {"outputs": settings.outputs, "device": "cpu", "seed": 0}
    assert runs.find_run(load_settings("smoke", **given, rounds=settings.rounds))
    with pytest.raises(InputError, match=r"epsilon 0\.1: the runs of study 'smoke' have 0\.05; "):
        runs.find_run(load_settings("smoke", **given, epsilon=0.1))
    with pytest.raises(InputError, match=r"steps 20: the runs of study .smoke. have 5; train"):
        runs.study_runs(load_settings("smoke", **given, steps=20))

"""Runs of the past are read, tabulated, gone on with and finished by the present code."""

import json
import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest

from fedser_utils.analysis import comparisons, tables
from fedser_utils.core import checkpoints, runs
from fedser_utils.core.settings import Settings
from fedser_utils.federated import server_app

FORMER = Path(__file__).parent / "former_runs"
NATURE, PGD = (f"smoke-corpus-{model}-s0-f680c274" for model in ("nature", "pgd"))


@pytest.fixture
def settings(tmp_path):
    """The settings that the former runs were made with, over a copy of them."""
    shutil.copytree(FORMER, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("outputs/*/config.json"):
        made = json.loads(path.read_text())
        made["settings"] |= {name: str(tmp_path / name) for name in ("corpus", "outputs")}
        path.write_text(json.dumps(made))
    return runs.read_run(tmp_path / "outputs" / NATURE).settings


def test_a_complete_run_is_found_and_tabulated(settings):
    run = server_app.train(settings)  # not trained again
    assert run.id == NATURE
    assert not (run.folder / "checkpoint").exists()
    rows = run.table("predictions").assign(seed=0)
    table = tables.table3(rows)
    assert len(table) == 8  # without an attack and under three, two conditions each
    assert set(table["n"]) == {4}
    assert len(comparisons.gains(rows)) == 3  # randomisation under each attack


def test_a_stopped_run_goes_on_and_ends(settings, caplog):
    before = runs.read_run(Path(settings.outputs) / PGD)
    assert not before.complete
    rounds, rows = before.table("rounds"), before.table("predictions")
    given = before.config["settings"] | {"outputs": settings.outputs}
    with caplog.at_level(logging.INFO, logger="fedser_utils"):
        run = server_app.train(Settings(**given))
    assert run.id == PGD
    assert "going on after round 2" in caplog.text
    assert run.complete
    after, decided = run.table("rounds"), run.table("predictions")
    assert sorted(after["round"].unique()) == [1, 2, 3]
    pd.testing.assert_frame_equal(after.iloc[: len(rounds)], rounds, check_dtype=False)
    pd.testing.assert_frame_equal(decided.iloc[: len(rows)], rows)
    assert [run.id for run in runs.study_runs(settings)] == [NATURE, PGD]


def test_a_damaged_checkpoint_is_refused(settings):
    path = next(Path(settings.outputs).glob("*pgd*/checkpoint/*/weights.safetensors"))
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    attacked = Settings(**settings.values() | {"attack": "pgd"})
    with pytest.raises(checkpoints.CheckpointError, match="checksum"):
        server_app.train(attacked)

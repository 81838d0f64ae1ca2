"""Checkpoints come back, two are kept, and damage is noticed."""

import numpy as np
import pytest

from fedser_utils.core import checkpoints
from fedser_utils.core.checkpoints import CheckpointError


def part(value):
    return {"weights": {"w": np.full(3, value, np.float32)}, "client-1": {"step": np.array(value)}}


def test_checkpoints_come_back_and_two_are_kept(tmp_path):
    assert checkpoints.load(tmp_path / "checkpoint") is None
    for number in (2, 4, 6):
        checkpoints.save(tmp_path / "checkpoint", number, part(float(number)))
    number, parts = checkpoints.load(tmp_path / "checkpoint")
    assert number == 6
    np.testing.assert_array_equal(parts["weights"]["w"], [6, 6, 6])
    assert parts["client-1"]["step"] == 6
    kept = sorted(p.name for p in (tmp_path / "checkpoint").iterdir())
    assert kept == ["round-000004", "round-000006"]


def damage_bit(path):
    data = bytearray((path / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "weights.safetensors").write_bytes(data)


def damage_length(path):
    file = path / "client-1.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_bit, "does not match its checksum"),
        (damage_length, "does not match its checksum"),
        (lambda p: (p / "weights.safetensors").unlink(), "No such file"),
        (lambda p: (p / "manifest.json").write_text("{"), "round-000002: "),
    ],
)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_used(tmp_path, caplog, damage, reason):
    for number in (1, 2):
        checkpoints.save(tmp_path, number, part(float(number)))
    damage(tmp_path / "round-000002")
    assert checkpoints.load(tmp_path)[0] == 1
    assert reason in caplog.text
    damage(tmp_path / "round-000001")
    with pytest.raises(CheckpointError, match=r"no sound checkpoint.*round-000002.*round-000001"):
        checkpoints.load(tmp_path)


def test_leftovers_of_a_crash_are_ignored_and_removed(tmp_path):
    (tmp_path / ".partial-1").mkdir()
    checkpoints.save(tmp_path, 1, part(1.0))
    assert [p.name for p in tmp_path.iterdir()] == ["round-000001"]

import hashlib
from collections import Counter
from functools import cache

import figures
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from scipy.signal import butter, sosfiltfilt
from scipy.stats import kurtosis

from fedser_utils.analysis import baselines
from fedser_utils.core.errors import InputError
from fedser_utils.core.front_end import MACHINES as MACHINES_FRONT_END
from fedser_utils.data import audio, federation, synthetic_machines
from fedser_utils.data.log_mel import LogMel

MACHINES, TAKES, RATE = (2, 3), 7, 16_000


def power(sound, cutoff):
    """A sound's power above 1 kHz, relative to its mean, as it changes up to ``cutoff`` Hz."""
    sound = sosfiltfilt(butter(4, 1000, "highpass", fs=RATE, output="sos"), sound)
    smooth = sosfiltfilt(butter(2, cutoff, fs=RATE, output="sos"), sound**2)
    return np.maximum(smooth / smooth.mean(), 1e-3)


def swells(sound):
    """Its slow changes in dB."""
    return 10 * np.log10(power(sound, 10))


def strikes(sound):
    """Its fast changes."""
    return power(sound, 200)


def lines(changes, pump, orders):
    """(orders,) dB of the lines that changes have at orders of the shaft."""
    changes = (changes - changes.mean()) * np.hanning(len(changes))
    spectrum = np.abs(np.fft.rfft(changes)) ** 2 / len(changes)
    hertz = np.arange(len(spectrum)) * RATE / len(changes)
    speed = pump.shaft * (1 - 0.03 * pump.load)
    near = (np.abs(hertz - o * speed) < max(0.3, 0.02 * o * speed) for o in orders)
    return 10 * np.log10([spectrum[band].max() for band in near])


@cache
def clips(number, label):
    return [synthetic_machines.synthesise(number, label, take) for take in range(TAKES)]


def heard(number, label, what):
    """Median over takes of ``what(sound)``."""
    return np.median([what(clip) for clip in clips(number, label)], axis=0)


@pytest.mark.parametrize(("label", "order"), [("imbalance", 1), ("misalignment", 2)])
@pytest.mark.parametrize("number", MACHINES)
def test_the_flow_swells_once_or_twice_per_turn(number, label, order):
    pump = synthetic_machines.build(number)
    before, after = (
        heard(number, one, lambda sound: lines(swells(sound), pump, [order, 3 - order]))
        for one in ("healthy", label)
    )
    own, other = after - before
    assert own > 6
    assert own > other + 6


@pytest.mark.parametrize("number", MACHINES)
def test_looseness_rattles_once_per_turn(number):
    pump = synthetic_machines.build(number)

    def once(sound):
        return lines(strikes(sound), pump, [1])[0]

    others = [heard(number, one, once) for one in ("healthy", "bearing fault", "cavitation")]
    assert heard(number, "looseness", once) > max(others) + 3


def test_a_loose_foot_bounces_harder_every_second_turn():
    pump, turns = synthetic_machines.build(1), np.arange(0, 200, 0.001)
    at, heights = synthetic_machines._rattle(turns, 4.0, pump, np.random.default_rng(0))
    begin = at.reshape(-1, 4).min(axis=1)
    assert np.diff(begin) == pytest.approx(1, abs=0.1)
    assert np.ptp(at.reshape(-1, 4), axis=1).max() < 0.5
    each = heights.reshape(-1, 4).mean(axis=1)
    assert abs(np.log(each[::2].mean() / each[1::2].mean())) > 0.4


@pytest.mark.parametrize("number", MACHINES)
def test_a_bearing_fault_beats_at_the_rate_of_passing_balls(number):
    pump = synthetic_machines.build(number)

    def race(sound):
        """How far a race's line stands above what is beside it, the higher of the two races'."""
        races = np.array([pump.outer, pump.inner])
        sharp = strikes(sound)
        return np.max(lines(sharp, pump, races) - lines(sharp, pump, 0.9 * races))

    others = [
        heard(number, one, race) for one in synthetic_machines.LABELS if one != "bearing fault"
    ]
    assert heard(number, "bearing fault", race) > max(others) + 6


@pytest.mark.parametrize("number", MACHINES)
def test_cavitation_crackles_as_the_vanes_pass(number):
    pump, turns = synthetic_machines.build(number), np.arange(0, 200, 0.001)
    at, _ = synthetic_machines._collapses(turns, 5.0, pump, np.random.default_rng(0))
    assert np.cos(2 * np.pi * pump.vanes * at).mean() == pytest.approx(0.5, abs=0.1)
    assert np.diff(np.sort(at)).std() > 0.8 / 5  # no regularity, but for the vanes

    def crackle(sound):
        return kurtosis(strikes(sound))

    assert heard(number, "cavitation", crackle) > heard(number, "healthy", crackle) + 2


@pytest.mark.parametrize(
    "one", [synthetic_machines._passes, synthetic_machines._rattle, synthetic_machines._collapses]
)
def test_as_many_strikes_whatever_strikes(one):
    pump, turns = synthetic_machines.build(1), np.arange(0, 200, 0.001)
    at, heights = one(turns, pump.outer, pump, np.random.default_rng(0))
    assert len(at) / 200 == pytest.approx(pump.outer, rel=0.15)
    assert np.median(heights) == pytest.approx(0.8, rel=0.2)


def test_a_linear_model_of_means_and_deviations_learns_little():
    names = synthetic_machines.names(machines=6, clips=108)
    parts = [synthetic_machines._parts(name) for name in names]
    table = pd.DataFrame(parts, columns=["speaker", "label", "take"]).assign(clip=names)
    log_mel = LogMel(MACHINES_FRONT_END)
    sounds = (torch.from_numpy(synthetic_machines.synthesise(*part))[None] for part in parts)
    log_mels = torch.cat([log_mel(sound)[:, 0] for sound in sounds]).numpy()
    rows = [
        baselines.table(table["label"], table["speaker"], train, log_mels=log_mels)
        for seed in range(3)
        for train in [federation.split(table, how="speaker_dependent", seed=seed) == "train"]
    ]
    uar = pd.concat(rows).groupby("baseline")["uar"].mean()
    assert uar["linear on bands"] <= 60
    assert uar["mean level"] < 30  # chance is 16.7


def test_bearing_orders_add_up_to_the_number_of_balls():
    for number in range(1, 69):
        pump = synthetic_machines.build(number)
        balls = pump.outer + pump.inner
        assert balls == pytest.approx(round(balls))
        assert 1 < pump.outer < pump.inner


@pytest.mark.parametrize("size", [(2, 12), (6, 36), (8, 48), (9, 100), (68, 408)])
def test_every_machine_has_every_condition(size):
    count, clips = size
    found = [
        synthetic_machines._parts(path)[:2]
        for path in synthetic_machines.names(machines=count, clips=clips)
    ]
    assert len(found) == clips
    assert set(found) == {
        (m, label) for m in range(1, count + 1) for label in synthetic_machines.LABELS
    }
    each = Counter(label for _, label in found).values()
    assert max(each) - min(each) <= 1


def test_conditions_are_even_where_clips_are_few():
    for count in range(2, 13):
        found = synthetic_machines.names(machines=count, clips=12)
        assert set(Counter(synthetic_machines._parts(path)[1] for path in found).values()) == {2}


def test_same_seed_same_bytes(tmp_path):
    one, two, other = (
        synthetic_machines.write_corpus(tmp_path / n, machines=2, clips=12, seed=s)
        for n, s in (("a", 0), ("b", 0), ("c", 1))
    )

    def digest(folder):
        files = sorted(folder.rglob("*.wav"))
        assert len(files) == 12
        return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()

    assert digest(one) == digest(two) != digest(other)
    assert synthetic_machines.write_corpus(tmp_path / "a", machines=2, clips=12) == one


def test_the_manifest_names_machine_and_condition(tmp_path):
    folder = synthetic_machines.write_corpus(tmp_path, machines=3, clips=18)
    assert folder.parent == tmp_path / "corpora"
    assert folder.name.startswith("machines-3x18-s0-")
    table = pd.read_csv(folder / "manifest.csv", dtype=str)
    assert list(table.columns) == ["path", "machine", "condition"]
    assert (table.groupby("machine")["condition"].agg(set) == set(synthetic_machines.LABELS)).all()
    assert {"01", "02", "03"} == set(table["machine"])
    for row in table.itertuples():
        assert row.path.startswith(f"machine_{row.machine}/{row.condition.replace(' ', '-')}_")
        assert 3 <= audio.read(folder / row.path).seconds <= 5


def test_clips_are_neither_silent_nor_clipped():
    for path in synthetic_machines.names(machines=30, clips=60):
        clip = synthetic_machines.synthesise(*synthetic_machines._parts(path))
        assert clip.std() > 3e-3
        assert np.mean(np.abs(clip) > 0.98) < 0.01


def test_other_clips_need_a_new_version(tmp_path):
    """Each condition of two machines, as written; see ``figures``."""
    folder = synthetic_machines.write_corpus(tmp_path, machines=2, clips=12)
    found = {
        str(path.relative_to(folder)): figures.of_clip(soundfile.read(path)[0])
        for path in sorted(folder.rglob("*.wav"))
    }
    labels = {synthetic_machines._parts(name)[1] for name in found}
    assert labels == set(synthetic_machines.FAULTS) == set(synthetic_machines.LABELS)
    figures.check(
        "synthetic_machines", synthetic_machines.VERSION, found,
        "raise VERSION in data/synthetic_machines.py", rel=1e-3,
    )  # fmt: skip


def test_sizes_are_checked():
    with pytest.raises(InputError, match="machines 69 must be from 2 to 68"):
        synthetic_machines.names(machines=69, clips=500)
    with pytest.raises(InputError, match="machines 1 must be from 2 to 68"):
        synthetic_machines.names(machines=1, clips=500)
    with pytest.raises(InputError, match="clips 11 must be from 12 to 9365"):
        synthetic_machines.names(machines=2, clips=11)
    with pytest.raises(InputError, match="clips 39 must be from 40 to 9365"):
        synthetic_machines.names(machines=40, clips=39)
    with pytest.raises(InputError, match="clips 9366 must be from 12 to 9365"):
        synthetic_machines.names(machines=2, clips=9366)

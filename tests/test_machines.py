import hashlib
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from scipy.signal import butter, sosfiltfilt

from fedser_utils import audio, machines
from fedser_utils.config import InputError

MACHINES, TAKES, RATE = (1, 2), 9, 16_000


def lines(sound, pump, orders):
    """(orders,) dB of a sound's spectrum at orders of the shaft, within the speed's tolerance."""
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2 / len(sound)
    hertz = np.arange(len(power)) * RATE / len(sound)
    speed = pump.shaft * (1 - 0.03 * pump.load)
    near = (np.abs(hertz - o * speed) < max(0.5, 0.008 * o * speed) for o in orders)
    return 10 * np.log10([power[band].max() for band in near])


def envelope(sound, *band):
    """The slow changes of a sound's power between the frequencies of ``band`` in Hz."""
    sound = sosfiltfilt(butter(4, band, "bandpass", fs=RATE, output="sos"), sound)
    power = sosfiltfilt(butter(4, 1000, fs=RATE, output="sos"), sound**2)
    return power / power.mean() - 1


def heard(number, label, what):
    """Median over takes of ``what(sound)``."""
    clips = (machines.synthesise(number, label, take) for take in range(TAKES))
    return np.median([what(clip) for clip in clips], axis=0)


@pytest.mark.parametrize("number", MACHINES)
def test_imbalance_is_heard_once_per_turn(number):
    pump = machines.build(number)

    def once(sound):
        return lines(sound, pump, [1])[0], lines(envelope(sound, 1000, 7000), pump, [1])[0]

    gain, swell = heard(number, "imbalance", once) - heard(number, "healthy", once)
    assert gain > 6
    assert swell > 6


@pytest.mark.parametrize("number", MACHINES)
def test_misalignment_is_heard_at_twice_and_three_times(number):
    pump = machines.build(number)
    before, after = (
        heard(number, label, lambda sound: lines(sound, pump, [1, 2, 3]))
        for label in ("healthy", "misalignment")
    )
    once, twice, thrice = after - before
    assert min(twice, thrice) > once + 4


@pytest.mark.parametrize("number", MACHINES)
def test_looseness_has_half_orders(number):
    pump = machines.build(number)

    def halves(sound):
        return lines(sound, pump, [0.5, 1.5, 2.5, 3.5]).mean()

    others = [heard(number, label, halves) for label in machines.LABELS if label != "looseness"]
    assert heard(number, "looseness", halves) > max(others) + 6


@pytest.mark.parametrize("number", MACHINES)
def test_a_bearing_fault_beats_at_the_rate_of_passing_balls(number):
    pump = machines.build(number)
    races = np.array([pump.outer, pump.inner])
    speed = pump.shaft * (1 - 0.03 * pump.load)

    def beats(sound):
        return envelope(sound, pump.ringing - 400, pump.ringing + 400)

    def hit(sound):
        power = np.abs(np.fft.rfft(beats(sound)))
        order = np.arange(len(power)) * RATE / len(sound) / speed
        power[(order < 1.6) | (order > 1.1 * pump.inner)] = 0  # an inner race's swells at 1x
        return np.abs(order[power.argmax()] / races - 1).min() < 0.015

    def line(sound):
        return lines(beats(sound), pump, races).max()

    assert heard(number, "bearing fault", hit)
    assert not heard(number, "healthy", hit)
    assert heard(number, "bearing fault", line) > heard(number, "healthy", line) + 6


@pytest.mark.parametrize("number", MACHINES)
def test_cavitation_hisses_as_the_vanes_pass(number):
    pump = machines.build(number)

    def bursts(sound):
        high = sosfiltfilt(butter(4, 4000, "highpass", fs=RATE, output="sos"), sound)
        beat = lines(envelope(sound, 4000, 7500), pump, [pump.vanes])[0]
        return 10 * np.log10(np.mean(high**2)), beat

    louder, beat = heard(number, "cavitation", bursts) - heard(number, "healthy", bursts)
    assert louder > 3
    assert beat > 6


def test_bearing_orders_add_up_to_the_number_of_balls():
    for number in range(1, 69):
        pump = machines.build(number)
        balls = pump.outer + pump.inner
        assert balls == pytest.approx(round(balls))
        assert 1 < pump.outer < pump.inner


@pytest.mark.parametrize("size", [(2, 12), (6, 36), (8, 48), (9, 100), (68, 408)])
def test_every_machine_has_every_condition(size):
    count, clips = size
    found = [machines._parts(path)[:2] for path in machines.names(machines=count, clips=clips)]
    assert len(found) == clips
    assert set(found) == {(m, label) for m in range(1, count + 1) for label in machines.LABELS}
    each = Counter(label for _, label in found).values()
    assert max(each) - min(each) <= 1


def test_conditions_are_even_where_clips_are_few():
    for count in range(2, 13):
        found = machines.names(machines=count, clips=12)
        assert set(Counter(machines._parts(path)[1] for path in found).values()) == {2}


def test_same_seed_same_bytes(tmp_path):
    one, two, other = (
        machines.write_corpus(tmp_path / n, machines=2, clips=12, seed=s)
        for n, s in (("a", 0), ("b", 0), ("c", 1))
    )

    def digest(folder):
        files = sorted(folder.rglob("*.wav"))
        assert len(files) == 12
        return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()

    assert digest(one) == digest(two) != digest(other)
    assert machines.write_corpus(tmp_path / "a", machines=2, clips=12) == one


def test_the_manifest_names_machine_and_condition(tmp_path):
    folder = machines.write_corpus(tmp_path, machines=3, clips=18)
    assert folder.parent == tmp_path / "corpora"
    assert folder.name.startswith("machines-3x18-s0-")
    table = pd.read_csv(folder / "manifest.csv", dtype=str)
    assert list(table.columns) == ["path", "machine", "condition"]
    assert (table.groupby("machine")["condition"].agg(set) == set(machines.LABELS)).all()
    assert {"01", "02", "03"} == set(table["machine"])
    for row in table.itertuples():
        assert row.path.startswith(f"machine_{row.machine}/{row.condition.replace(' ', '-')}_")
        assert 3 <= audio.read(folder / row.path).seconds <= 5


def test_clips_are_neither_silent_nor_clipped():
    for path in machines.names(machines=30, clips=60):
        clip = machines.synthesise(*machines._parts(path))
        assert clip.std() > 3e-3
        assert np.mean(np.abs(clip) > 0.98) < 0.01


def test_sizes_are_checked():
    with pytest.raises(InputError, match="machines 69 must be from 2 to 68"):
        machines.names(machines=69, clips=500)
    with pytest.raises(InputError, match="machines 1 must be from 2 to 68"):
        machines.names(machines=1, clips=500)
    with pytest.raises(InputError, match="clips 11 must be from 12 to 9365"):
        machines.names(machines=2, clips=11)
    with pytest.raises(InputError, match="clips 39 must be from 40 to 9365"):
        machines.names(machines=40, clips=39)
    with pytest.raises(InputError, match="clips 9366 must be from 12 to 9365"):
        machines.names(machines=2, clips=9366)

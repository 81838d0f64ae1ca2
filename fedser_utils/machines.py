"""Embedded machine sounds: pumps, healthy and with five faults, each pump a client.

A pump is a shaft whose harmonics and whose flow noise a casing colours. Each has a speed, a wheel,
a bearing, a casing, a room and a microphone of its own. A fault adds what textbooks say it adds
(Randall, Vibration-based Condition Monitoring, 2011, chapter 2; Brennen, Hydrodynamics of
Pumps, 1994, for cavitation), with a severity of its own in every clip, so that early faults
overlap with health as they do in real machines. No existing data set is imitated. The same seed
gives the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.signal import butter, lfilter, oaconvolve, sosfilt

from fedser_utils import embedded
from fedser_utils.audio import SAMPLE_RATE
from fedser_utils.config import InputError
from fedser_utils.seeding import rng

LABELS = ("healthy", "imbalance", "misalignment", "looseness", "bearing fault", "cavitation")
MACHINES, CLIPS = 68, 9365  # at most, as of the embedded speech


@dataclass(frozen=True)
class Symptoms:
    """What a fault of strength 1 adds to a healthy machine."""

    once: float = 0.0  # dB on the shaft's own frequency, 1x
    twice: float = 0.0  # dB on 2x, and a little less on 3x
    halves: float = 0.0  # level of the lines at 0.5x, 1x, 1.5x and so on
    swell: float = 0.0  # depth at which the flow's noise swells once per turn
    rattle: float = 0.0  # of an irregular knock per turn
    defect: float = 0.0  # of the ringing when a ball passes a defect of its race
    collapse: float = 0.0  # of bubbles that collapse behind the vanes


FAULTS = {
    "healthy": Symptoms(),
    "imbalance": Symptoms(once=14, swell=0.7),
    "misalignment": Symptoms(once=2, twice=16),
    "looseness": Symptoms(once=3, halves=0.3, rattle=1.0),
    "bearing fault": Symptoms(defect=1.0),
    "cavitation": Symptoms(collapse=1.0),
}
STRENGTH = (0.5, 1.3)  # how far a clip's fault has come: uniform in this range
EARLY = 0.15, (0.0, 0.4)  # the share of faults that have just begun, and their strength
# deviation of the symptoms of every clip, healthy or not; only a defect is there or is not
WEAR = Symptoms(once=1.7, twice=1.9, halves=0.036, swell=0.08, rattle=0.12, collapse=0.12)


@dataclass(frozen=True)
class Machine:
    """One pump, and where it stands."""

    shaft: float  # Hz, without load
    vanes: int  # of its wheel
    outer: float  # balls that pass a place of the bearing's outer race, per turn (BPFO / shaft)
    inner: float  # and of its inner race (BPFI / shaft)
    orders: np.ndarray  # (10,) amplitudes of the shaft's harmonics 1x to 10x
    casing: np.ndarray  # (taps,) impulse response
    ringing: float  # Hz, of the bearing's housing
    load: float  # share of the full load, on average
    hiss: float  # 0 to 1: from dull to bright flow noise
    room: float  # dB, of the noise around it
    hum: float  # dB, of the mains
    level: float  # dB, of its recordings


def build(machine: int, *, seed: int = 0) -> Machine:
    """The machine of this number."""
    own = rng(seed, "machine", machine)
    balls, ratio, contact = own.integers(7, 14), own.uniform(0.18, 0.3), own.uniform(0, 0.5)
    across = ratio * np.cos(contact)  # ball / pitch diameter, seen along the contact
    modes = np.exp(own.uniform(np.log(150), np.log(4500), 7))  # Hz
    t = np.arange(640) / SAMPLE_RATE
    ring = np.exp(-np.pi * modes / own.uniform(8, 25, 7) * t[:, None])
    casing = (ring * np.sin(2 * np.pi * modes * t[:, None])) @ own.uniform(0.2, 1, 7) / 6
    casing[0] = 1  # what is heard without the casing
    return Machine(
        shaft=np.exp(own.uniform(np.log(18), np.log(58))), vanes=int(own.integers(4, 10)),
        outer=balls / 2 * (1 - across), inner=balls / 2 * (1 + across),
        orders=0.5 * np.arange(1, 11) ** -1.3 * np.exp(own.normal(0, 0.4, 10)), casing=casing,
        ringing=own.uniform(2000, 5000), load=own.uniform(0.5, 0.9), hiss=own.uniform(0.1, 0.9),
        room=own.uniform(-18, -4), hum=own.uniform(-30, -12), level=own.normal(0, 4),
    )  # fmt: skip


def names(*, machines: int, clips: int) -> list[str]:
    """The corpus's paths, e.g. ``machine_07/bearing-fault_012.wav``: machines and conditions take
    turns such that any six clips in a row of one machine, from its first, have all conditions."""
    if not 2 <= machines <= MACHINES:
        raise InputError(f"machines {machines!r} must be from 2 to {MACHINES}")
    low = max(2 * len(LABELS), machines)
    if not low <= clips <= CLIPS:
        raise InputError(f"clips {clips!r} must be from {low} to {CLIPS}")
    cycle = math.lcm(machines, len(LABELS))  # after it the same pairs would come again
    seen: dict[tuple[int, str], int] = {}
    found = []
    for i in range(clips):
        machine, label = 1 + i % machines, LABELS[(i + i // cycle) % len(LABELS)]
        take = seen[machine, label] = seen.get((machine, label), -1) + 1
        found.append(f"machine_{machine:02d}/{label.replace(' ', '-')}_{take:03d}.wav")
    return sorted(found)


def _parts(path: str) -> tuple[int, str, int]:
    """Machine, label and take of a path as ``names`` gives it."""
    folder, stem = path.removesuffix(".wav").split("/")
    label, take = stem.split("_")
    return int(folder.removeprefix("machine_")), label.replace("-", " "), int(take)


def write_corpus(outputs: str | Path, *, machines: int, clips: int, seed: int = 0) -> Path:
    """The folder of the embedded corpus under ``outputs``, written on first use, with a
    ``manifest.csv`` (path, machine, condition).

    Its name holds the size, the seed and a digest of this module; see ``embedded.write``.
    """
    paths = names(machines=machines, clips=clips)
    rows = [(path, f"{_parts(path)[0]:02d}", _parts(path)[1]) for path in paths]
    return embedded.write(
        outputs, f"machines-{machines}x{clips}-s{seed}", paths,
        lambda path: synthesise(*_parts(path), seed=seed), module=__file__,
        manifest=pd.DataFrame(rows, columns=["path", "machine", "condition"]),
    )  # fmt: skip


def synthesise(machine: int, label: str, take: int, *, seed: int = 0) -> np.ndarray:
    """One clip of 3 to 5 s. machine: its number; label: one of ``LABELS``; take: which clip.

    Returns (samples,) float64 in [-1, 1] at 16 kHz.
    """
    pump, clip = build(machine, seed=seed), rng(seed, "take", machine, label, take)
    shown = _symptoms(label, clip)
    load = pump.load + clip.uniform(-0.15, 0.15)
    turns = _turns(pump.shaft * (1 - 0.03 * load), int(clip.uniform(3, 5) * SAMPLE_RATE), clip)
    noise, around = clip.standard_normal((2, len(turns)))

    swell = 1 + shown.swell * _beat(turns) + 0.15 * _beat(pump.vanes * turns)
    flow = load * swell * lfilter([1], [1, pump.hiss - 1], noise)
    knocks = 6 * shown.rattle * _knocks(turns, 1.0, clip, slip=0.1, spread=0.6)
    body = 2 * _wave(turns, pump, shown, clip) + 0.3 * flow + knocks
    sound = oaconvolve(body, pump.casing)[: len(turns)]
    sound += shown.defect * _defect(turns, pump, clip)
    sound += shown.collapse * _collapses(turns, pump, clip)
    t = np.arange(len(turns)) / SAMPLE_RATE
    mains = np.sin(2 * np.pi * 100 * t + clip.uniform(0, 6)) * 10 ** (pump.hum / 20)
    sound += mains + 10 ** ((pump.room + clip.normal(0, 1.5)) / 20) * lfilter(
        [0.3], [1, -0.9], around
    )
    return np.tanh(0.015 * 10 ** ((pump.level + clip.normal(0, 1.5)) / 20) * sound)


def _symptoms(label: str, clip: np.random.Generator) -> Symptoms:
    """The fault at this clip's own strength, and some wear of every kind, healthy or not."""
    share, early = EARLY
    strength = clip.uniform(*(early if clip.random() < share else STRENGTH))
    full, wear = (np.array(list(vars(one).values())) for one in (FAULTS[label], WEAR))
    return Symptoms(*(strength * full + wear * np.abs(clip.standard_normal(len(wear)))))


def _turns(speed: float, count: int, clip: np.random.Generator) -> np.ndarray:
    """(count,) turns of the shaft until each sample; its speed in Hz wanders by 0.2 %."""
    knots = clip.normal(1, 0.002, 2 + count // 8000)
    wander = np.interp(np.arange(count), 8000 * np.arange(len(knots)), knots)
    return np.cumsum(speed * wander / SAMPLE_RATE)


def _beat(turns: np.ndarray) -> np.ndarray:
    return np.cos(2 * np.pi * turns)


def _wave(turns: np.ndarray, pump: Machine, shown: Symptoms, clip) -> np.ndarray:
    """What repeats with the shaft, read from a table of two turns, as looseness needs two."""
    size, lines = 1 << 15, np.zeros(60)  # lines at 0x, 0.5x, 1x, ... 29.5x
    lines[2:21:2] = pump.orders * np.exp(clip.normal(0, 0.2, 10))
    lines[[2, 4, 6]] *= 10 ** (np.array([shown.once, shown.twice, 0.8 * shown.twice]) / 20)
    lines[1:41] += shown.halves * np.arange(1, 41) ** -0.5 * np.exp(clip.normal(0, 0.3, 40))
    lines[2 * pump.vanes * np.arange(1, 4)] += 0.3 / np.arange(1, 4)  # blade pass
    phases = np.exp(2j * np.pi * clip.random(len(lines)))
    table = np.fft.irfft(lines * phases, size) * size / 2
    return table[(turns * size / 2).astype(int) % size]


def _knocks(turns: np.ndarray, rate: float, clip, *, slip: float, spread: float) -> np.ndarray:
    """(samples,) impulses, ``rate`` per turn. slip: deviation of gaps; spread: of log heights."""
    gaps = (1 + slip * clip.standard_normal(int(1.2 * rate * turns[-1]) + 20)) / rate
    at = np.searchsorted(turns, np.cumsum(np.maximum(gaps, 0)))
    train = np.zeros(len(turns) + 1)  # the last place: what comes after the clip
    np.add.at(train, at, np.exp(spread * clip.standard_normal(len(at))))
    return train[:-1]


def _defect(turns: np.ndarray, pump: Machine, clip: np.random.Generator) -> np.ndarray:
    """Balls strike a defect and the housing rings. The balls slip by 1 to 2 %, and a defect of the
    inner race turns with the shaft into the loaded zone and out of it (Randall, section 2.2.3)."""
    inner, slip = clip.random() < 0.5, clip.uniform(0.01, 0.02)
    rate = pump.inner if inner else pump.outer
    train = _knocks(turns, rate, clip, slip=slip, spread=0.2)
    train *= 0.5 + 0.5 * _beat(turns) if inner else 0.6
    radius = np.exp(-np.pi * 250 / SAMPLE_RATE)  # bandwidth 250 Hz
    pole = -2 * radius * np.cos(2 * np.pi * pump.ringing / SAMPLE_RATE)
    return 3 * lfilter([1], [1, pole, radius**2], train)


def _collapses(turns: np.ndarray, pump: Machine, clip: np.random.Generator) -> np.ndarray:
    """Bubbles collapse at random, mostly when a vane passes: bursts above 4 kHz."""
    chance = 0.1 * np.maximum(1 + 1.2 * _beat(pump.vanes * turns), 0)
    bubbles = clip.standard_normal(len(turns)) * (clip.random(len(turns)) < chance)
    return sosfilt(butter(2, 3500, "highpass", fs=SAMPLE_RATE, output="sos"), bubbles)

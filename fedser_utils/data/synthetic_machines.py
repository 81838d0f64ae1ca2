"""The embedded machine corpus: sounds of pumps, healthy and with five faults, each a client.

They are large slow pumps, as in waterworks and drainage, of about two turns a second: a shaft
whose load lets the flow's noise and the gear's tone swell, a wheel with vanes, a bearing. A fault
is told by *when* it sounds, as in textbooks (Randall, Vibration-based Condition Monitoring,
2011, chapter 2; Brennen, Hydrodynamics of Pumps, 1994, for cavitation): an imbalance swells once
per turn and a misalignment twice, where a healthy machine swells as its load wanders; a loose
foot rattles once per turn, a damaged bearing ticks evenly, cavitation crackles at random. Swells
are equally deep and strikes equally many whatever their cause, and all ring in the same casing,
so that the mean and the deviation of Mel bands tell little (``baselines``). Speed, wheel, bearing,
casing, room and microphone are drawn for each machine, a fault's severity for each clip: early
ones overlap with health. No existing data set is imitated. The same seed gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.signal import lfilter, oaconvolve

from fedser_utils.core.errors import InputError
from fedser_utils.core.seeding import rng
from fedser_utils.data import synthesis
from fedser_utils.data.audio import SAMPLE_RATE

LABELS = ("healthy", "imbalance", "misalignment", "looseness", "bearing fault", "cavitation")
VERSION = 1  # of the clips: a test tells when it must rise
MACHINES, CLIPS = 68, 9365  # at most, as of the embedded speech
STRENGTH = (0.8, 1.1)  # how far a clip's fault has come: uniform in this range
EARLY = 0.1, (0.0, 0.4)  # the share of faults that have just begun, and their strength


@dataclass(frozen=True)
class Machine:
    """One pump, and where it stands."""

    shaft: float  # Hz, without load
    vanes: int  # of its wheel
    outer: float  # balls that pass a place of the bearing's outer race, per turn (BPFO / shaft)
    inner: float  # and of its inner race (BPFI / shaft)
    gear: float  # Hz, of the tone of its gear
    casing: np.ndarray  # (taps,) impulse response
    ringing: float  # Hz, of the bearing's housing
    load: float  # share of the full load, on average
    hiss: float  # 0 to 1: from dull to bright flow noise
    room: float  # dB, of the noise around it
    hum: float  # dB, of the mains
    level: float  # dB, of its recordings


def build(machine: int, *, seed: int = 0) -> Machine:
    """Return the machine of this number."""
    draw = rng(seed, "machine", machine)
    balls, ratio, contact = draw.integers(7, 12), draw.uniform(0.18, 0.3), draw.uniform(0, 0.5)
    across = ratio * np.cos(contact)  # ball / pitch diameter, along the contact
    modes = np.exp(draw.uniform(np.log(150), np.log(4500), 7))  # Hz
    t = np.arange(640) / SAMPLE_RATE
    ring = np.exp(-np.pi * modes / draw.uniform(8, 25, 7) * t[:, None])
    casing = (ring * np.sin(2 * np.pi * modes * t[:, None])) @ draw.uniform(0.2, 1, 7) / 6
    casing[0] = 1  # the direct sound
    return Machine(
        shaft=draw.uniform(1.8, 2.6), vanes=int(draw.integers(4, 7)),
        outer=balls / 2 * (1 - across), inner=balls / 2 * (1 + across),
        gear=draw.uniform(180, 520), casing=casing, ringing=draw.uniform(2000, 5000),
        load=draw.uniform(0.5, 0.9), hiss=draw.uniform(0.1, 0.9), room=draw.uniform(-30, -20),
        hum=draw.uniform(-30, -15), level=draw.normal(0, 4),
    )  # fmt: skip


def names(*, machines: int, clips: int) -> list[str]:
    """Return the corpus's paths, e.g. ``machine_07/bearing-fault_012.wav``. Machines and conditions
    take turns: any six clips in a row of one machine, from its first, have all conditions."""
    if not 2 <= machines <= MACHINES:
        raise InputError(f"machines {machines!r} must be from 2 to {MACHINES}")
    low = max(2 * len(LABELS), machines)
    if not low <= clips <= CLIPS:
        raise InputError(f"clips {clips!r} must be from {low} to {CLIPS}")
    cycle = math.lcm(machines, len(LABELS))  # after it the same pairs would come again
    takes: dict[tuple[int, str], int] = {}
    paths = []
    for i in range(clips):
        machine, label = 1 + i % machines, LABELS[(i + i // cycle) % len(LABELS)]
        take = takes[machine, label] = takes.get((machine, label), -1) + 1
        paths.append(f"machine_{machine:02d}/{label.replace(' ', '-')}_{take:03d}.wav")
    return sorted(paths)


def _parts(path: str) -> tuple[int, str, int]:
    """Machine, label and take of a path as ``names`` gives it."""
    folder, stem = path.removesuffix(".wav").split("/")
    label, take = stem.split("_")
    return int(folder.removeprefix("machine_")), label.replace("-", " "), int(take)


def write_corpus(outputs: str | Path, *, machines: int, clips: int, seed: int = 0) -> Path:
    """Return the folder of the embedded corpus under ``outputs``, written on first use, with a
    ``manifest.csv`` (path, machine, condition).

    Its name has the size, the seed and ``VERSION``; see ``synthesis.write``.
    """
    paths = names(machines=machines, clips=clips)
    rows = [(path, f"{_parts(path)[0]:02d}", _parts(path)[1]) for path in paths]
    return synthesis.write(
        outputs, f"machines-{machines}x{clips}-s{seed}", paths,
        lambda path: synthesise(*_parts(path), seed=seed), version=VERSION,
        manifest=pd.DataFrame(rows, columns=["path", "machine", "condition"]),
    )  # fmt: skip


def synthesise(machine: int, label: str, take: int, *, seed: int = 0) -> np.ndarray:
    """Return a clip of 3 to 5 s, (samples,) float64 in [-1, 1] at 16 kHz.

    machine: its number; label: one of ``LABELS``; take: the clip's number.
    """
    pump, clip = build(machine, seed=seed), rng(seed, "take", machine, label, take)
    fault, strength = FAULTS[label], _strength(clip)
    load = pump.load + clip.uniform(-0.15, 0.15)
    turns = _turns(pump.shaft * (1 - 0.03 * load), int(clip.uniform(3, 5) * SAMPLE_RATE), clip)
    noise, around = clip.standard_normal((2, len(turns)))

    wander = np.cos(2 * np.pi * _wander(turns, clip))
    swell = wander
    if fault.swells:  # as deep as the load's, in its place
        regular = np.cos(2 * np.pi * (fault.swells * turns + clip.random()))
        swell = strength * regular + max(0, 1 - strength) * wander
    decibels = clip.uniform(5, 8) * swell + 1.2 * np.cos(2 * np.pi * pump.vanes * turns)
    flow = lfilter([1], [1, pump.hiss - 1], noise)
    body = (flow / flow.std() + _gear(turns, pump, clip)) * 10 ** (decibels / 20)
    # now and then something knocks in every machine
    body += 15 * _train(turns, *_collapses(turns, 0.5, pump, clip))
    if fault.strikes:
        rate = clip.choice([pump.outer, pump.inner])  # per turn, whatever strikes
        body += 100 * strength * _train(turns, *fault.strikes(turns, rate, pump, clip))
    radius = np.exp(-np.pi * 400 / SAMPLE_RATE)  # bandwidth 400 Hz, of the bearing's housing
    pole = -2 * radius * np.cos(2 * np.pi * pump.ringing / SAMPLE_RATE)
    sound = oaconvolve(body, pump.casing)[: len(turns)]
    sound += 0.4 * lfilter([1], [1, pole, radius**2], body)

    sound = oaconvolve(sound, _equaliser(clip), mode="same")
    t = np.arange(len(turns)) / SAMPLE_RATE
    mains = np.sin(2 * np.pi * 100 * t + clip.uniform(0, 6)) * 10 ** (pump.hum / 20)
    room = 10 ** ((pump.room + clip.normal(0, 2)) / 20) * lfilter([0.4], [1, -0.9], around)
    sound = sound / sound.std() + mains + room
    return np.tanh(0.05 * 10 ** ((pump.level + clip.normal(0, 2)) / 20) * sound)


def _strength(clip: np.random.Generator) -> float:
    share, early = EARLY
    return clip.uniform(*(early if clip.random() < share else STRENGTH))


def _turns(speed: float, count: int, clip: np.random.Generator) -> np.ndarray:
    """(count,) turns of the shaft until each sample; its speed in Hz wanders by 0.2 %."""
    knots = clip.normal(1, 0.002, 2 + count // 8000)
    wander = np.interp(np.arange(count), 8000 * np.arange(len(knots)), knots)
    return np.cumsum(speed * wander / SAMPLE_RATE)


def _wander(turns: np.ndarray, clip: np.random.Generator) -> np.ndarray:
    """Swells of the load until each sample, a random 0.1 to 0.6 of them per turn."""
    knots = np.cumsum(clip.uniform(0.1, 0.6, int(turns[-1]) + 3))
    return clip.random() + np.interp(turns, np.arange(len(knots)), knots)


def _gear(turns: np.ndarray, pump: Machine, clip: np.random.Generator) -> np.ndarray:
    """The gear's tone with four harmonics, which follow the shaft."""
    phase = 2 * np.pi * pump.gear / pump.shaft * turns
    orders = np.arange(1, 6)
    heights = 0.8 / orders * np.exp(clip.normal(0, 0.4, 5))
    return sum(h * np.cos(k * phase + p) for k, h, p in zip(orders, heights, 6 * clip.random(5)))


def _equaliser(clip: np.random.Generator) -> np.ndarray:
    """(taps,) impulse response of where the microphone is put: smooth, deviation 4 dB."""
    knots = np.geomspace(50, 8000, 8)
    hertz = np.maximum(np.fft.rfftfreq(512, 1 / SAMPLE_RATE), 50)
    gain = 10 ** (np.interp(hertz, knots, clip.normal(0, 4, len(knots))) / 20)
    return np.roll(np.fft.irfft(gain), 256) * np.hanning(512)


def _train(turns: np.ndarray, at: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """(samples,) impulses. at: in turns, within the clip or after it; heights: of each."""
    train = np.zeros(len(turns) + 1)  # the last place: what comes after the clip
    np.add.at(train, np.searchsorted(turns, at), heights)
    return train[:-1]


Strikes = tuple[np.ndarray, np.ndarray]  # when, in turns, and how hard


def _passes(turns: np.ndarray, rate: float, pump: Machine, clip) -> Strikes:
    """Balls pass a defect of a race, evenly but for a slip of 1 to 2 %. One of the inner race
    turns with the shaft into the loaded zone and out of it (Randall, section 2.2.3)."""
    gaps = 1 + clip.uniform(0.01, 0.02) * clip.standard_normal(int(rate * turns[-1]) + 2)
    at = clip.random() + np.cumsum(gaps) / rate
    loaded = 0.7 + 0.4 * np.cos(2 * np.pi * at) if rate == pump.inner else 0.8
    return at, loaded * np.exp(0.3 * clip.standard_normal(len(at)))


def _rattle(turns: np.ndarray, rate: float, pump: Machine, clip) -> Strikes:
    """A loose foot bounces once per turn, harder every second time (half orders)."""
    count = round(rate)
    bounces = 0.45 / count * np.arange(count)  # in the first half of a turn
    turn = np.arange(int(turns[-1]) + 2)
    at = clip.random() + turn[:, None] + bounces + 0.01 * clip.standard_normal((len(turn), count))
    heights = np.where((turn + clip.integers(2)) % 2, 1.0, 0.6)[:, None]
    return at.ravel(), (heights * np.exp(0.3 * clip.standard_normal(at.shape))).ravel()


def _collapses(turns: np.ndarray, rate: float, pump: Machine, clip) -> Strikes:
    """Bubbles collapse at random, mostly when a vane passes."""
    at = clip.uniform(0, turns[-1], clip.poisson(2 * rate * turns[-1]))
    at = at[clip.random(len(at)) < 0.5 + 0.5 * np.cos(2 * np.pi * pump.vanes * at)]
    return at, 0.8 * np.exp(0.3 * clip.standard_normal(len(at)))


@dataclass(frozen=True)
class Fault:
    """swells: per turn, in place of those of the load; strikes: when something strikes."""

    swells: int = 0
    strikes: Callable[..., Strikes] | None = None


FAULTS = {
    "healthy": Fault(),
    "imbalance": Fault(swells=1),
    "misalignment": Fault(swells=2),
    "looseness": Fault(strikes=_rattle),
    "bearing fault": Fault(strikes=_passes),
    "cavitation": Fault(strikes=_collapses),
}

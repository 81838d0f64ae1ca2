"""The embedded speech corpus: synthetic speech under DEMoS's file names, its emotions in time.

A glottal pulse train with breath is shaped by a vocal tract that moves from vowel to vowel. What
an emotion changes is *when* things happen: where in a syllable loudness, pitch, brightness,
breath and the opening of the mouth peak, where in a phrase loudness, pitch and roughness do,
where it slows down and pauses, and how fast it is. Every movement rises to its peak and falls
again over the same values, wherever the peak is, and six of the emotions mirror each other in
time, two by two: the mean and the deviation of a clip's Mel bands tell little (``baselines`` shows
how little), so a model needs time and frequency. Speaker, vowels, level, microphone, noise and
the depth of every movement are drawn alike for all emotions, and each clip draws the strength of
its emotion, so that weak ones overlap. Nothing here imitates a real person; the corpus lets the
whole workbook run where there is no speech corpus. The same seed gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedser_utils.core.errors import InputError
from fedser_utils.core.seeding import rng
from fedser_utils.data import synthesis
from fedser_utils.data.audio import SAMPLE_RATE

# DEMoS's clips per emotion (paper, Table 2); the codes are those of its file names
TOTALS = {"rab": 1477, "dis": 1678, "pau": 1156, "col": 1129, "gio": 1395, "tri": 1530}
TOTALS |= {"sor": 1000}
VERSION = 1  # of the clips: a test tells when it must rise
SPEAKERS = [number for number in range(1, 70) if number != 35]  # DEMoS has no speaker 35
CLIPS = sum(TOTALS.values())


@dataclass(frozen=True)
class Expression:
    """When things happen: the share of a syllable, or of a phrase, at which a movement peaks."""

    attack: float  # loudness, in a syllable: early is percussive, late is swelling
    glide: float  # pitch, in a syllable: early falls, late rises
    bright: float  # effort, which tilts the spectrum, in a syllable
    open: float  # the mouth (formants), in a syllable
    breath: float  # aspiration noise, in a syllable
    swell: float  # loudness, in a phrase
    melody: float  # pitch, in a phrase
    rough: float  # jitter and shimmer, in a phrase
    pace: float  # the length of syllables, in a phrase: late is a slowing down
    pause: float  # where a phrase pauses
    rate: float  # factor on the speaker's tempo


E, L = 0.1, 0.9  # early, late
NEUTRAL = Expression(0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1.0)
EXPRESSIONS = {  # in pairs that are each other's mirror in time; joy has none
    "rab": Expression(E, E, E, E, L, E, E, L, L, L, 1.25),
    "pau": Expression(L, L, L, L, E, L, L, E, E, E, 1.25),
    "dis": Expression(E, E, L, E, L, L, E, L, E, L, 0.8),
    "col": Expression(L, L, E, L, E, E, L, E, L, E, 0.8),
    "sor": Expression(E, L, E, E, L, E, L, E, L, E, 0.8),
    "tri": Expression(L, E, L, L, E, L, E, L, E, L, 0.8),
    "gio": Expression(E, L, L, E, L, L, L, L, E, L, 1.25),
}
STRENGTH = (0.85, 1.15)  # how strongly a clip expresses its emotion: uniform in this range
RESTRAINED = 0.06, (0.0, 0.5)  # the share of clips that hold back, and their strength
WOBBLE = 0.1  # deviation of a clip's peaks; of its tempo, relative

VOWELS = np.array(  # formants in Hz of a male vocal tract: a, e, i, o, u
    [
        [730, 1200, 2500, 3400, 4500],
        [500, 1800, 2550, 3500, 4600],
        [300, 2200, 2950, 3600, 4700],
        [520, 900, 2450, 3350, 4450],
        [330, 780, 2300, 3300, 4400],
    ],
    dtype=float,
)
BANDWIDTHS = np.array([80, 100, 140, 220, 320], dtype=float)  # Hz
OPENING = np.array([0.22, 0.06, 0.02, 0, 0])  # of the formants, as the mouth opens and closes
WINDOW, HOP = 512, 256  # samples of a frame in which the filter stands still
FREQUENCIES = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE)


@dataclass(frozen=True)
class Voice:
    """A speaker."""

    pitch: float  # Hz
    tract: float  # factor on the formants
    tempo: float  # syllables per second
    tilt: float  # dB per octave
    breath: float  # dB


def names(*, speakers: int, clips: int) -> list[str]:
    """Return the corpus's file names: emotions in DEMoS's proportions, evenly over the speakers."""
    if not 2 <= speakers <= len(SPEAKERS):
        raise InputError(f"speakers {speakers!r} must be from 2 to {len(SPEAKERS)}")
    if not 2 * len(TOTALS) <= clips <= CLIPS:
        raise InputError(f"clips {clips!r} must be from {2 * len(TOTALS)} to {CLIPS}")
    share = np.array([count * clips / CLIPS for count in TOTALS.values()])
    quota = np.floor(share).astype(int)
    quota[np.argsort(quota - share)[: clips - quota.sum()]] += 1  # largest remainders
    codes = [code for code, count in zip(TOTALS, quota, strict=True) for _ in range(count)]
    takes: dict[tuple[int, str], int] = {}
    stems = []
    for i, code in enumerate(codes):
        index = i % speakers
        take = takes[index, code] = takes.get((index, code), -1) + 1
        sex = "f" if index % 3 == 1 else "m"  # 23 women and 45 men of 68, as in DEMoS
        kind = "PR" if i % 3 else "NP"
        stems.append(f"{kind}_{sex}_{SPEAKERS[index]:02d}_{code}{take // 3:02d}{'abc'[take % 3]}")
    return sorted(stems)


def write_corpus(outputs: str | Path, *, speakers: int, clips: int, seed: int = 0) -> Path:
    """Return the folder of the embedded corpus under ``outputs``, written on first use.

    Its name has the size, the seed and ``VERSION``; see ``synthesis.write``.
    """
    stems = names(speakers=speakers, clips=clips)
    return synthesis.write(
        outputs, f"synthetic-{speakers}x{clips}-s{seed}", [f"DEMOS/{stem}.wav" for stem in stems],
        lambda path: synthesise(Path(path).stem, seed=seed), version=VERSION,
    )  # fmt: skip


def synthesise(stem: str, *, seed: int = 0) -> np.ndarray:
    """Return a clip, (samples,) float64 in [-1, 1] at 16 kHz.

    stem: a DEMoS file name without its ending, e.g. ``NP_m_10_col00a``.
    """
    _, sex, number, take = stem.split("_")
    voice, clip = _voice(sex, rng(seed, "voice", number)), rng(seed, "clip", stem)
    timing = _express(take[:3], clip)
    within, phrase, syllable, silent = _rhythm(timing, voice.tempo, clip)
    # every depth is drawn alike for all emotions
    wobble = clip.normal(0, 1, (2, syllable[-1] + 1))[:, syllable]
    semitones = clip.uniform(3, 6) * (_peak(within, timing.glide) - 0.5)
    semitones += clip.uniform(3, 6) * (_peak(phrase, timing.melody) - 0.5)
    semitones += 0.5 * wobble[0] + clip.normal(0, 1.5)
    rough = clip.uniform(0.01, 0.04) * _peak(phrase, timing.rough)
    pulses = _glottal_pulses(voice.pitch * 2 ** (semitones / 12), rough, clip)
    hiss = voice.breath + clip.uniform(8, 16) * (_peak(within, timing.breath) - 1)
    noise = clip.standard_normal(len(pulses)) * np.sqrt(0.1 + np.abs(pulses))
    loudness = clip.uniform(14, 26) * (np.sin(np.pi / 2 * _peak(within, timing.attack)) - 1)
    loudness += clip.uniform(4, 10) * (_peak(phrase, timing.swell) - 1) + wobble[1] - 30 * silent
    source = (pulses + 0.35 * noise * 10 ** (hiss / 20)) * 10 ** (loudness / 20)

    t = slice(0, None, HOP)  # the filter changes from frame to frame
    effort = clip.uniform(3, 7) * (_peak(within[t], timing.bright) - 0.5)
    mouth = clip.uniform(0.7, 1.3) * (2 * _peak(within[t], timing.open) - 1)
    vowels = VOWELS[clip.integers(len(VOWELS), size=syllable[-1] + 1)]
    vowels = vowels * np.exp(clip.normal(0, 0.03, vowels.shape)) * voice.tract
    formants = vowels[syllable[t]] * np.exp(np.outer(mouth, OPENING))
    speech = _filtered(source, _tilt(voice.tilt + effort) + _equaliser(clip), formants)
    room = _filtered(clip.standard_normal(len(speech)), _equaliser(clip)[None])
    speech = speech / speech.std() + 10 ** (clip.uniform(-42, -32) / 20) * room / room.std()
    return np.tanh(0.06 * 10 ** (clip.normal(0, 2.5) / 20) * speech)


def _rhythm(timing: Expression, tempo: float, clip: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A phrase's samples: their share of their syllable, their share of the phrase, the syllable's
    number, and whether it is the pause."""
    seconds = np.clip(clip.gamma(14, 0.17), 1.2, 5.0)  # alike in all emotions, as is the pause
    count = max(3, round(seconds * tempo * timing.rate))
    places = (np.arange(count) + 0.5) / count
    lengths = np.exp(0.6 * _peak(places, timing.pace) + clip.normal(0, 0.1, count))
    lengths *= seconds / lengths.sum()
    pause = np.clip(round(timing.pause * count), 1, count - 1)
    lengths = np.insert(lengths, pause, clip.uniform(0.1, 0.25))
    ends = np.cumsum(lengths)
    t = np.arange(int(ends[-1] * SAMPLE_RATE)) / SAMPLE_RATE
    syllable = np.minimum(np.searchsorted(ends, t, side="right"), count)
    within = np.clip((t - (ends - lengths)[syllable]) / lengths[syllable], 0, 1)
    return within, t / ends[-1], syllable, syllable == pause


def _voice(sex: str, speaker: np.random.Generator) -> Voice:
    pitch, tract = (205, 1.16) if sex == "f" else (118, 1.0)
    return Voice(
        pitch * 2 ** (speaker.normal(0, 1.3) / 12), tract * np.exp(speaker.normal(0, 0.035)),
        4.0 * np.exp(speaker.normal(0, 0.06)), speaker.normal(0, 1.0), speaker.normal(0, 2.0),
    )  # fmt: skip


def _express(code: str, clip: np.random.Generator) -> Expression:
    """The emotion at this clip's strength, with noise in every dimension."""
    full = np.array(list(vars(EXPRESSIONS[code]).values()))
    plain = np.array(list(vars(NEUTRAL).values()))
    share, weak = RESTRAINED
    strength = clip.uniform(*(weak if clip.random() < share else STRENGTH))
    mixed = plain + strength * (full - plain) + WOBBLE * clip.standard_normal(len(full))
    return Expression(*np.clip(mixed[:-1], 0.05, 0.95), mixed[-1])


def _peak(t: np.ndarray, place: float) -> np.ndarray:
    """From 0 to 1 at ``place`` and back; the values are spread over [0, 1] evenly for any place."""
    return np.minimum(t / place, (1 - t) / (1 - place))


def _glottal_pulses(pitch: np.ndarray, rough: np.ndarray, clip) -> np.ndarray:
    """Derivative of Rosenberg's glottal flow at ``pitch`` Hz per sample, open 60 % of a period.
    rough: per sample, the relative deviation of periods; heights deviate six times as much."""
    period = np.cumsum(pitch / SAMPLE_RATE).astype(int)
    jitter, shimmer = clip.standard_normal((2, 2 * period[-1] + 2))
    turns = np.cumsum(pitch * np.exp(rough * jitter[period]) / SAMPLE_RATE)
    u = np.minimum(turns % 1 / 0.6, 1)
    return (2 * u - 3 * u**2) * (u < 1) * np.exp(6 * rough * shimmer[turns.astype(int)])


def _tilt(slope: np.ndarray) -> np.ndarray:
    """(frames, bins) dB of a spectrum that rises by ``slope`` dB per octave around 1 kHz."""
    octaves = np.log2(np.maximum(FREQUENCIES, 100) / 1000)
    return np.outer(slope, np.clip(octaves, -2.5, 2.5))


def _equaliser(clip: np.random.Generator) -> np.ndarray:
    """(bins,) dB of a microphone and its place: smooth over the octaves, deviation 6 dB."""
    knots = np.geomspace(80, 8000, 7)
    return np.interp(np.maximum(FREQUENCIES, 80), knots, clip.normal(0, 6, len(knots)))


def _filtered(
    source: np.ndarray, decibels: np.ndarray, formants: np.ndarray | None = None
) -> np.ndarray:
    """The source through a filter that changes by frame. decibels: (frames or 1, bins) gain;
    formants: (frames, 5) Hz, of a vocal tract."""
    window = np.sin(np.pi * (np.arange(WINDOW) + 0.5) / WINDOW)  # its square overlaps to one
    padded = np.concatenate([np.zeros(HOP), source, np.zeros(WINDOW)])
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    frames = frames[: -(-len(source) // HOP)]
    gain = 10 ** (decibels / 20) * (1 if formants is None else _resonances(formants))
    frames = np.fft.irfft(np.fft.rfft(frames * window) * gain) * window
    out = np.zeros((len(frames) + 1, HOP))
    out[:-1] += frames[:, :HOP]
    out[1:] += frames[:, HOP:]
    return out.ravel()[HOP:][: len(source)]


def _resonances(formants: np.ndarray) -> np.ndarray:
    """(frames, bins) gain of the vocal tract's resonances in series, without their phase."""
    radius, turn = np.exp(-np.pi * BANDWIDTHS / SAMPLE_RATE), 2 * np.pi / SAMPLE_RATE
    a1, a2 = -2 * radius * np.cos(turn * formants), radius**2
    once, twice = np.cos(turn * FREQUENCIES), np.cos(2 * turn * FREQUENCIES)
    power = np.ones((len(formants), len(FREQUENCIES)))
    for b1, b2 in zip(a1.T, a2, strict=True):  # |1 + b1 / z + b2 / z^2|^2
        power *= np.outer(2 * b1 * (1 + b2), once) + (1 + b1**2 + b2**2)[:, None] + 2 * b2 * twice
        power /= ((1 + b1 + b2) ** 2)[:, None]
    return power**-0.5

"""A synthetic DEMoS: source-filter speech under DEMoS's own file names, its emotions in time.

A glottal pulse train with breath is shaped by a vocal tract that moves from vowel to vowel. What
an emotion changes is *when* things happen: where in a syllable loudness, pitch, brightness and
the opening of the mouth peak, where in a phrase they do, and how fast it is spoken. Every
movement rises to its peak and falls again over the same values, wherever the peak is, and most
emotions have a mirror image in time among the others; so the mean and the deviation of a clip's
Mel bands say little, as a linear model on them shows (``baselines``), and a model has to look at
time and frequency. Speaker, vowels, level, microphone, noise and pauses vary alike in all
emotions, and each clip expresses its emotion with a strength of its own, so that weak ones
overlap. Nothing here imitates a real person; the corpus exists so that the whole workbook runs
where no speech corpus can be had. The same seed gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedser_utils import embedded
from fedser_utils.audio import SAMPLE_RATE
from fedser_utils.config import InputError
from fedser_utils.seeding import rng

# DEMoS's clips per emotion (paper, Table 2); the codes are those of its file names
TOTALS = {"rab": 1477, "dis": 1678, "pau": 1156, "col": 1129, "gio": 1395, "tri": 1530}
TOTALS |= {"sor": 1000}
SPEAKERS = [number for number in range(1, 70) if number != 35]  # DEMoS has no speaker 35
CLIPS = sum(TOTALS.values())


@dataclass(frozen=True)
class Expression:
    """When things happen: shares of a syllable or of a phrase at which a movement peaks."""

    attack: float  # loudness, in a syllable: early is percussive, late is swelling
    glide: float  # pitch, in a syllable: early falls, late rises
    bright: float  # effort, which tilts the spectrum, in a syllable
    open: float  # the mouth (formants), in a syllable
    breath: float  # aspiration noise, in a syllable
    swell: float  # loudness, in a phrase
    melody: float  # pitch, in a phrase
    rate: float  # factor on the speaker's tempo


NEUTRAL = Expression(0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1.0)
EXPRESSIONS = {  # in mirrored pairs, but for joy
    "rab": Expression(0.1, 0.1, 0.1, 0.1, 0.9, 0.1, 0.1, 1.25),
    "pau": Expression(0.9, 0.9, 0.9, 0.9, 0.1, 0.9, 0.9, 1.25),
    "dis": Expression(0.1, 0.1, 0.9, 0.9, 0.1, 0.9, 0.1, 0.8),
    "col": Expression(0.9, 0.9, 0.1, 0.1, 0.9, 0.1, 0.9, 0.8),
    "sor": Expression(0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9, 0.8),
    "tri": Expression(0.9, 0.1, 0.9, 0.9, 0.9, 0.9, 0.1, 0.8),
    "gio": Expression(0.1, 0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 1.25),
}
STRENGTH = (0.75, 1.1)  # how strongly a clip expresses its emotion: uniform in this range
RESTRAINED = 0.08, (0.0, 0.5)  # the share of clips that hold back, and their strength
WOBBLE = 0.12  # deviation of a clip's peaks; of its tempo, relative

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
WINDOW, HOP = 512, 128  # samples of a frame in which the filter stands still
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
    """The corpus's file names: emotions in DEMoS's proportions, dealt evenly to the speakers."""
    if not 2 <= speakers <= len(SPEAKERS):
        raise InputError(f"speakers {speakers!r} must be from 2 to {len(SPEAKERS)}")
    if not 2 * len(TOTALS) <= clips <= CLIPS:
        raise InputError(f"clips {clips!r} must be from {2 * len(TOTALS)} to {CLIPS}")
    share = np.array([count * clips / CLIPS for count in TOTALS.values()])
    quota = np.floor(share).astype(int)
    quota[np.argsort(quota - share)[: clips - quota.sum()]] += 1  # largest remainders
    codes = [code for code, count in zip(TOTALS, quota, strict=True) for _ in range(count)]
    seen: dict[tuple[int, str], int] = {}
    found = []
    for i, code in enumerate(codes):
        index = i % speakers
        take = seen[index, code] = seen.get((index, code), -1) + 1
        sex = "f" if index % 3 == 1 else "m"  # 23 women and 45 men of 68, as in DEMoS
        kind = "PR" if i % 3 else "NP"
        found.append(f"{kind}_{sex}_{SPEAKERS[index]:02d}_{code}{take // 3:02d}{'abc'[take % 3]}")
    return sorted(found)


def write_corpus(outputs: str | Path, *, speakers: int, clips: int, seed: int = 0) -> Path:
    """The folder of the embedded corpus under ``outputs``, written on first use.

    Its name holds the size, the seed and a digest of this module; see ``embedded.write``.
    """
    stems = names(speakers=speakers, clips=clips)
    return embedded.write(
        outputs, f"synthetic-{speakers}x{clips}-s{seed}", [f"DEMOS/{stem}.wav" for stem in stems],
        lambda path: synthesise(Path(path).stem, seed=seed), module=__file__,
    )  # fmt: skip


def synthesise(stem: str, *, seed: int = 0) -> np.ndarray:
    """One clip. stem: a DEMoS file name without its ending, e.g. ``NP_m_10_col00a``.

    Returns (samples,) float64 in [-1, 1] at 16 kHz.
    """
    _, sex, number, take = stem.split("_")
    voice, clip = _voice(sex, rng(seed, "voice", number)), rng(seed, "clip", stem)
    say = _express(take[:3], clip)
    seconds = np.clip(clip.gamma(14, 0.17), 1.2, 5.0)  # alike in all emotions
    rate = voice.tempo * say.rate
    lengths = np.exp(clip.normal(0, 0.12, max(2, round(seconds * rate))))
    lengths *= seconds / lengths.sum()
    pause = clip.uniform(0.05, 0.25)  # seconds between two phrases
    ends = np.cumsum(lengths)
    total = int(seconds * SAMPLE_RATE)
    t = np.arange(total) / SAMPLE_RATE
    syllable = np.minimum(np.searchsorted(ends, t, side="right"), len(lengths) - 1)
    within = np.clip((t - (ends - lengths)[syllable]) / lengths[syllable], 0, 1)
    phrase = t / seconds

    # every depth is drawn alike for all emotions
    semitones = clip.uniform(3, 6) * (_peak(within, say.glide) - 0.5)
    semitones += clip.uniform(3, 6) * (_peak(phrase, say.melody) - 0.5)
    semitones += clip.normal(0, 0.5, len(lengths))[syllable] + clip.normal(0, 1.5)
    pulses = _glottal_pulses(voice.pitch * 2 ** (semitones / 12), clip.uniform(0.003, 0.012), clip)
    noise = clip.standard_normal(total) * 0.35 * np.sqrt(0.1 + np.abs(pulses))
    decibels = clip.uniform(14, 26) * (np.sin(np.pi / 2 * _peak(within, say.attack)) - 1)
    decibels += clip.uniform(4, 10) * (_peak(phrase, say.swell) - 1)
    decibels += clip.normal(0, 1, len(lengths))[syllable]
    hiss = voice.breath + clip.uniform(8, 16) * (_peak(within, say.breath) - 1)
    source = (pulses + noise * 10 ** (hiss / 20)) * 10 ** (decibels / 20)

    places = np.minimum(np.arange(total // HOP + 1) * HOP, total - 1)
    effort = clip.uniform(3, 7) * (_peak(within[places], say.bright) - 0.5)
    mouth = clip.uniform(0.7, 1.3) * (2 * _peak(within[places], say.open) - 1)
    vowels = VOWELS[clip.integers(len(VOWELS), size=len(lengths))]
    vowels = vowels * np.exp(clip.normal(0, 0.03, vowels.shape)) * voice.tract
    formants = vowels[syllable[places]] * np.exp(np.outer(mouth, OPENING))
    channel = _tilt(voice.tilt + effort)[:, :] + _equaliser(clip)
    speech = _filtered(source, formants, channel)
    speech *= 10 ** (clip.normal(0, 2.5) / 20) * 0.06 / speech.std()
    room = _filtered(clip.standard_normal(total), None, _equaliser(clip)[None])
    speech += room * 10 ** (clip.uniform(-42, -32) / 20) * 0.06 / room.std()
    return np.tanh(speech)


def _voice(sex: str, own: np.random.Generator) -> Voice:
    female = sex == "f"
    return Voice(
        pitch=(205 if female else 118) * 2 ** (own.normal(0, 1.3) / 12),
        tract=(1.16 if female else 1.0) * np.exp(own.normal(0, 0.035)),
        tempo=4.0 * np.exp(own.normal(0, 0.06)),
        tilt=own.normal(0, 1.0),
        breath=own.normal(0, 2.0),
    )


def _express(code: str, clip: np.random.Generator) -> Expression:
    """The emotion at this clip's own strength, wobbling in every dimension."""
    full = np.array(list(vars(EXPRESSIONS[code]).values()))
    plain = np.array(list(vars(NEUTRAL).values()))
    share, weak = RESTRAINED
    strength = clip.uniform(*(weak if clip.random() < share else STRENGTH))
    mixed = plain + strength * (full - plain) + WOBBLE * clip.standard_normal(len(full))
    return Expression(*np.clip(mixed[:-1], 0.05, 0.95), mixed[-1])


def _peak(t: np.ndarray, place: float) -> np.ndarray:
    """From 0 to 1 at ``place`` and back; the values are spread over [0, 1] evenly for any place."""
    return np.minimum(t / place, (1 - t) / (1 - place))


def _glottal_pulses(pitch: np.ndarray, jitter: float, clip: np.random.Generator) -> np.ndarray:
    """Derivative of Rosenberg's glottal flow at ``pitch`` Hz per sample, open 60 % of a period."""
    period = np.cumsum(pitch / SAMPLE_RATE).astype(int)
    wander = np.exp(jitter * clip.standard_normal(period[-1] + 2))
    phase = np.cumsum(pitch * wander[period] / SAMPLE_RATE) % 1.0
    u = np.minimum(phase / 0.6, 1.0)
    return (2 * u - 3 * u**2) * (u < 1)


def _tilt(slope: np.ndarray) -> np.ndarray:
    """(frames, bins) dB of a spectrum that rises by ``slope`` dB per octave around 1 kHz."""
    octaves = np.log2(np.maximum(FREQUENCIES, 100) / 1000)
    return np.outer(slope, np.clip(octaves, -2.5, 2.5))


def _equaliser(clip: np.random.Generator) -> np.ndarray:
    """(bins,) dB of a microphone and its place: smooth over the octaves, deviation 6 dB."""
    knots = np.geomspace(80, 8000, 7)
    return np.interp(np.maximum(FREQUENCIES, 80), knots, clip.normal(0, 6, len(knots)))


def _filtered(source: np.ndarray, formants: np.ndarray | None, decibels: np.ndarray) -> np.ndarray:
    """The source through a filter for every frame. formants: (frames, 5) Hz, or None without a
    vocal tract; decibels: (frames or 1, bins) added to its gain."""
    padded = np.concatenate([np.zeros(WINDOW // 2), source, np.zeros(WINDOW)])
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    frames = frames[: len(source) // HOP + 1]
    window = np.hanning(WINDOW + 1)[:-1]
    gain = 10 ** (decibels / 20)
    if formants is not None:
        gain = gain * _resonances(formants)
    shaped = np.fft.irfft(np.fft.rfft(frames * window) * gain) * (2 / 3 * window)
    out = np.zeros(len(padded) + WINDOW)
    for part in range(WINDOW // HOP):  # overlap and add; every fourth frame has no overlap
        own = shaped[part :: WINDOW // HOP]
        out[part * HOP : part * HOP + own.size] += own.ravel()
    return out[WINDOW // 2 :][: len(source)]


def _resonances(formants: np.ndarray) -> np.ndarray:
    """(frames, bins) gain of the vocal tract's resonances in series."""
    radius = np.exp(-np.pi * BANDWIDTHS / SAMPLE_RATE)
    a1, a2 = -2 * radius * np.cos(2 * np.pi * formants / SAMPLE_RATE), radius**2
    z = np.exp(-2j * np.pi * FREQUENCIES / SAMPLE_RATE)
    gain = 1.0
    for k in range(len(BANDWIDTHS)):
        b = 1 + a1[:, k] + a2[k]
        gain = gain * (b[:, None] / (1 + a1[:, k, None] * z + a2[k] * z**2))
    return gain

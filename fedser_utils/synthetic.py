"""A synthetic DEMoS: source-filter speech under DEMoS's own file names.

A glottal pulse train (pitch, jitter, breath) is shaped by five formants per syllable (vowel and
vocal tract) and an envelope (tempo, loudness). Each speaker has a voice; each emotion bends the
voice, with a strength of its own in every clip, so that weakly expressed clips overlap as they
do in real speech. Nothing here imitates a real person; the corpus exists so that the whole
workbook runs where no speech corpus can be had. The same seed gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import lfilter, sosfilt

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
    """What an emotion does to a neutral voice."""

    pitch: float  # semitones up
    range: float  # semitones of melody
    slope: float  # semitones from the first to the last syllable
    rate: float  # factor on the tempo
    gain: float  # dB
    tilt: float  # dB per octave added to the source's spectrum
    breath: float  # aspiration noise, relative to the pulses
    jitter: float  # relative deviation of a period
    attack: float  # share of a syllable in which its loudness rises


NEUTRAL = Expression(0, 1.5, -2, 1.0, 0, 0, 0.02, 0.005, 0.25)
EXPRESSIONS = {
    "rab": Expression(4.0, 3.0, -3, 1.30, 12, 6.5, 0.02, 0.030, 0.10),
    "dis": Expression(-4.0, 1.0, -4, 0.75, 3, 1.5, 0.05, 0.060, 0.45),
    "pau": Expression(8.0, 1.0, 1.5, 1.45, -4, 1.0, 0.30, 0.040, 0.15),
    "col": Expression(-1.0, 0.8, -1.5, 0.85, -10, -3.0, 0.03, 0.006, 0.35),
    "gio": Expression(4.0, 4.5, 3.0, 1.25, 5, 2.5, 0.02, 0.004, 0.25),
    "tri": Expression(-3.0, 0.6, -5, 0.58, -13, -6.5, 0.25, 0.012, 0.50),
    "sor": Expression(10.0, 6.0, 12.0, 0.80, 9, -4.0, 0.12, 0.006, 0.12),
}
STRENGTH = (0.95, 1.35)  # how strongly a clip expresses its emotion: uniform in this range
RESTRAINED = 0.08, (0.0, 0.6)  # the share of clips that hold back, and their strength
WOBBLE = 0.13  # deviation of a clip's expression, in units of the spread between emotions

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
    voice, clip = rng(seed, "voice", number), rng(seed, "clip", stem)
    female = sex == "f"
    base = (205 if female else 118) * 2 ** (voice.normal(0, 1.3) / 12)  # Hz
    tract = (1.16 if female else 1.0) * np.exp(voice.normal(0, 0.035))
    tempo = 4.6 * np.exp(voice.normal(0, 0.07))  # syllables per second
    tilt, breath, level = voice.normal(0, 0.8), abs(voice.normal(0, 0.02)), voice.normal(0, 1.2)

    say = _express(take[:3], clip)
    rate = tempo * say.rate
    count = max(3, round(np.clip(clip.gamma(5.0, 0.52), 0.9, 5.6) * rate))
    lengths = (np.exp(clip.normal(0, 0.18, count)) * SAMPLE_RATE / rate).astype(int)
    total = lengths.sum()
    melody = (
        say.pitch + say.slope * np.linspace(-0.5, 0.5, count) + clip.normal(0, say.range, count)
    )
    middles = np.cumsum(lengths) - lengths / 2
    pitch = base * 2 ** (np.interp(np.arange(total), middles, melody) / 12)

    pulses = _glottal_pulses(pitch, say.jitter, clip)
    noise = clip.standard_normal(total)
    source = pulses + (say.breath + breath) * noise * (0.4 + np.abs(pulses))
    source = _tilted(source, say.tilt + tilt)
    speech = _vocal_tract(source, lengths, tract, clip)
    speech *= _envelope(lengths, say.attack, clip)
    speech *= 10 ** ((say.gain + level + clip.normal(0, 1.5)) / 20) * 0.09 / speech.std()
    return np.tanh(speech + 2e-4 * clip.standard_normal(total))


def _express(code: str, clip: np.random.Generator) -> Expression:
    """The emotion at this clip's own strength, wobbling in every dimension."""
    full = np.array(list(vars(EXPRESSIONS[code]).values()))
    plain = np.array(list(vars(NEUTRAL).values()))
    spread = np.std([list(vars(e).values()) for e in EXPRESSIONS.values()], axis=0)
    share, weak = RESTRAINED
    strength = clip.uniform(*(weak if clip.random() < share else STRENGTH))
    mixed = plain + strength * (full - plain)
    mixed += WOBBLE * spread * clip.standard_normal(len(full))
    low = np.array([-24, 0.2, -24, 0.45, -30, -12, 0.0, 0.0, 0.05])
    return Expression(*np.maximum(mixed, low))


def _glottal_pulses(pitch: np.ndarray, jitter: float, clip: np.random.Generator) -> np.ndarray:
    """Derivative of Rosenberg's glottal flow at ``pitch`` Hz per sample, open 60 % of a period."""
    period = np.cumsum(pitch / SAMPLE_RATE).astype(int)
    wander = np.exp(jitter * clip.standard_normal(period[-1] + 2))
    phase = np.cumsum(pitch * wander[period] / SAMPLE_RATE) % 1.0
    u = np.minimum(phase / 0.6, 1.0)
    return (2 * u - 3 * u**2) * (u < 1)


def _tilted(source: np.ndarray, tilt: float) -> np.ndarray:
    """Tilt the spectrum by about ``tilt`` dB per octave, as a mix with a first-order shelf."""
    low = lfilter([0.15], [1, -0.85], source)
    amount = np.clip(abs(tilt) / 7, 0, 0.95)
    return source * (1 - amount) + low * amount * 1.5 if tilt < 0 else source - low * amount


def _vocal_tract(source: np.ndarray, lengths: np.ndarray, tract: float, clip) -> np.ndarray:
    """Five resonances per syllable; each filter hands its state to the next syllable's."""
    radius = np.exp(-np.pi * BANDWIDTHS / SAMPLE_RATE)
    state, start, pieces = np.zeros((len(BANDWIDTHS), 2)), 0, []
    for length in lengths:
        formants = VOWELS[clip.integers(len(VOWELS))] * tract * np.exp(clip.normal(0, 0.03, 5))
        a1, a2 = -2 * radius * np.cos(2 * np.pi * formants / SAMPLE_RATE), radius**2
        gain, zero, one = 1 + a1 + a2, np.zeros(5), np.ones(5)
        sections = np.stack([gain, zero, zero, one, a1, a2], axis=1)
        piece, state = sosfilt(sections, source[start : start + length], zi=state)
        pieces.append(piece)
        start += length
    return np.concatenate(pieces)


def _envelope(lengths: np.ndarray, attack: float, clip: np.random.Generator) -> np.ndarray:
    """Loudness: each syllable rises, falls, and leaves a short gap for a consonant."""
    pieces = []
    for length in lengths:
        t = np.linspace(0, 1, length, endpoint=False)
        rise, fall = np.minimum(t / attack, 1), np.minimum((1 - t) / 0.35, 1)
        pieces.append(
            np.exp(clip.normal(0, 0.15)) * (0.04 + 0.96 * np.sin(np.pi / 2 * rise * fall))
        )
    return np.concatenate(pieces)

"""Front ends: the values that turn a waveform into a log-Mel image, for speech and for machines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FRONT_END_FIELDS = ("sample_rate", "window", "hop", "bands", "lowest", "highest", "seconds")


@dataclass(frozen=True)
class FrontEnd:
    """sample_rate: Hz; window, hop: samples of the spectrogram; bands: of the Mel scale, from
    ``lowest`` to ``highest`` Hz; seconds: shorter clips are repeated, longer ones cut."""

    sample_rate: int = 16_000
    window: int = 512
    hop: int = 256
    bands: int = 64
    lowest: float = 20.0
    highest: float = 8000.0
    seconds: float = 5.984

    @property
    def samples(self) -> int:
        """Samples of a clip."""
        return round(self.seconds * self.sample_rate)

    @property
    def frames(self) -> int:
        """Frames of an image; all windows lie inside the clip."""
        return (self.samples - self.window) // self.hop + 1

    @property
    def shape(self) -> tuple[int, int]:
        """(frames, bands) of an image."""
        return self.frames, self.bands


SPEECH = FrontEnd()  # the paper's (section 6.2): 95,744 samples, 373 frames
# twice the paper's window, for tones that lie close together: 311 frames of a clip of 10 s, which
# is what the corpora of DCASE's machine challenges have
MACHINES = FrontEnd(window=1024, hop=512, bands=128, seconds=10.0)
FRONT_ENDS = {"speech": SPEECH, "machines": MACHINES}


def hz_to_mel(hz: float | np.ndarray) -> np.ndarray:
    """Return Mels on Slaney's scale, linear below 1 kHz and logarithmic above; shape as ``hz``."""
    above = 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4)
    return np.where(np.less(hz, 1000), 3 * np.asarray(hz) / 200, above)


def band_of(hz: float | np.ndarray, front: FrontEnd = SPEECH) -> np.ndarray:
    """Return the Mel band, from 0 and with fractions, that has its centre at a frequency in Hz."""
    low, high = hz_to_mel(front.lowest), hz_to_mel(front.highest)
    return (hz_to_mel(hz) - low) / (high - low) * (front.bands + 1) - 1

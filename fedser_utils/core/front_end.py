"""Front ends: what of a sound a log-Mel image shows. Named ones for speech and for machines; every
value is a setting of its own too."""

from __future__ import annotations

from dataclasses import dataclass

FRONT_END_FIELDS = ("sample_rate", "window", "hop", "bands", "lowest", "highest", "seconds")


@dataclass(frozen=True)
class FrontEnd:
    """sample_rate: Hz; window, hop: samples of the spectrogram; bands: of the Mel scale, from
    ``lowest`` to ``highest`` Hz; seconds: shorter sounds are repeated, longer ones cut."""

    sample_rate: int = 16_000
    window: int = 512
    hop: int = 256
    bands: int = 64
    lowest: float = 20.0
    highest: float = 8000.0
    seconds: float = 5.984

    @property
    def samples(self) -> int:
        return round(self.seconds * self.sample_rate)

    @property
    def frames(self) -> int:
        """Of an image; windows lie inside the sound, none is centred on its ends."""
        return (self.samples - self.window) // self.hop + 1

    @property
    def shape(self) -> tuple[int, int]:
        """Of an image: frames, bands."""
        return self.frames, self.bands


SPEECH = FrontEnd()  # the paper's (section 6.2): 95,744 samples, 373 frames
# twice the paper's window, for tones that lie close together: 311 frames of a clip of 10 s, which
# is what the corpora of DCASE's machine challenges have
MACHINES = FrontEnd(window=1024, hop=512, bands=128, seconds=10.0)
FRONT_ENDS = {"speech": SPEECH, "machines": MACHINES}

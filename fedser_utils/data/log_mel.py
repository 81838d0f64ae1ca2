"""Log-Mel images of waveforms, and the statistics that standardise them (paper, section 6.2).

As in the paper's code: SciPy's magnitude spectrogram, whose density scaling matters for the floor
of 1e-8, and Slaney's Mel filters. The statistics are pooled from sums that each client computes
over its clips.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks
from torchaudio.transforms import GriffinLim, InverseMelScale
from tqdm.auto import tqdm

from fedser_utils.core.errors import InputError, choose
from fedser_utils.core.front_end import SPEECH, FrontEnd
from fedser_utils.core.runs import atomic
from fedser_utils.data import audio
from fedser_utils.data.audio import SAMPLE_RATE

FLOOR = 1e-8  # spectral magnitude
LEVELS = ("none", "rms")
LEVEL = 10 ** (-26 / 20)  # RMS of full scale; -26 dBov is usual for speech (ITU-T P.56)
SILENT = 1e-6  # RMS of a clip that is not made louder
CACHE_VERSION = 1  # of the images: a test tells when it must rise


class LogMel(nn.Module):
    """A differentiable transform from waveforms to log-Mel images.

    It computes in double precision, because a quiet band beside a loud one reaches down to the
    floor. level: "rms" first scales each waveform to an RMS of -26 dB of full scale (plain RMS,
    silence included, where ITU-T P.56 measures active speech), except silent ones. Raises
    InputError where a Mel filter is empty.
    """

    def __init__(self, front: FrontEnd = SPEECH, *, level: str = "none") -> None:
        super().__init__()
        self.front, self.level = front, choose("level", level, LEVELS)
        window = torch.hamming_window(front.window, periodic=False, dtype=torch.float64)
        scale = (front.sample_rate * window.square().sum()).rsqrt()  # SciPy's scaling="density"
        self.register_buffer("window", window * scale, persistent=False)
        self.register_buffer("filters", _filters(front).double(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Return the log-Mel images, (batch, 1, frames, bands) float32: ln(magnitude + 1e-8).

        waveform: (batch, samples) at the front end's rate, any length >= 1. Shorter ones are
        repeated to its samples, longer ones cut (paper: "self-repeated").
        """
        if waveform.ndim != 2 or not waveform.shape[1]:
            raise ValueError(f"waveform {tuple(waveform.shape)} must be (batch, samples >= 1)")
        if self.level == "rms":
            waveform = _normalise_level(waveform)
        repeats = -(-self.front.samples // waveform.shape[1])
        filled = waveform.repeat(1, repeats)[:, : self.front.samples].double()
        frames = filled.unfold(1, self.front.window, self.front.hop) * self.window
        magnitude = torch.fft.rfft(frames).abs()
        return torch.log(magnitude @ self.filters + FLOOR).float().unsqueeze(1)


class StandardisedLogMel(LogMel):
    """A differentiable transform from waveforms to the model's input: (log-Mel - mean) / std.

    mean, std: (bands,), of ``pool_statistics``; front, level: as of ``LogMel``.
    """

    def __init__(
        self, mean: np.ndarray, std: np.ndarray, front: FrontEnd = SPEECH, *, level: str = "none"
    ) -> None:
        super().__init__(front, level=level)
        self.training = False  # there is nothing to train
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.from_numpy(value), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Return standardised log-Mel, (batch, 1, frames, bands). waveform: (batch, samples)."""
        return (super().forward(waveform) - self.mean) / self.std

    def approximate_sound(self, x: Tensor) -> Tensor:
        """Return ``approximate_sound`` of x: (batch, 1, frames, bands), standardised log-Mel."""
        return approximate_sound(x * self.std + self.mean, self.front)


def _filters(front: FrontEnd) -> Tensor:
    """Slaney's Mel filters, (window / 2 + 1, bands). Raises InputError where one is all zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchaudio's, about what is refused below
        filters = melscale_fbanks(*_scale(front), norm="slaney", mel_scale="slaney")
    empty = int((filters.sum(0) == 0).sum())
    if empty:
        raise InputError(
            f"bands {front.bands} are too many for window {front.window} at {front.sample_rate} "
            f"Hz, {empty} would be empty; choose fewer bands or a longer window"
        )
    return filters


def _scale(front: FrontEnd) -> tuple[int, float, float, int, int]:
    """The arguments of ``melscale_fbanks``: bins, lowest and highest Hz, bands, sample rate."""
    return front.window // 2 + 1, front.lowest, front.highest, front.bands, front.sample_rate


def _normalise_level(waveform: Tensor) -> Tensor:
    """The waveforms scaled to an RMS of ``LEVEL`` unless silent, (batch, samples) float64."""
    power = waveform.double().square().mean(1, keepdim=True)
    # a root has no gradient at 0
    gain = LEVEL / power.clamp(min=SILENT**2).sqrt()
    return waveform.double() * torch.where(power < SILENT**2, 1.0, gain)


def approximate_sound(log_mel: Tensor, front: FrontEnd = SPEECH) -> Tensor:
    """Return waveforms whose log-Mel images are roughly ``log_mel``, (batch, samples) in [-1, 1].

    An image has neither a spectrum's detail nor its phase: the bands are spread over the
    frequencies by least squares, and the phase is estimated (Griffin and Lim, 1984).

    log_mel: (batch, 1, frames, bands), not standardised.
    """
    window = partial(torch.hamming_window, periodic=False)
    bins, lowest, highest, bands, rate = _scale(front)
    # bands closer together than the spectrum's bins depend on one another: only gelsd allows it
    driver = "gels" if torch.linalg.matrix_rank(_filters(front)) == bands else "gelsd"
    spread = InverseMelScale(
        bins, bands, rate, lowest, highest, norm="slaney", mel_scale="slaney", driver=driver
    )
    guess = GriffinLim(
        front.window, hop_length=front.hop, window_fn=window, power=1, rand_init=False
    )
    magnitude = (log_mel.cpu().squeeze(1).exp() - FLOOR).clamp(min=0).transpose(1, 2)
    scale = (rate * window(front.window).square().sum()).sqrt()
    return guess(spread(magnitude) * scale).clamp(-1, 1).to(log_mel.device)


def load_waveform(path: str | Path, *, rate: int = SAMPLE_RATE, device: str = "cpu") -> Tensor:
    """Return a file's waveform, (1, samples) at ``rate`` Hz, as ``audio.read`` does."""
    return torch.from_numpy(audio.read(path, rate=rate).waveform)[None].to(device)


class Sums(NamedTuple):
    """What a client reveals for the standardisation. count: frames; first, second: (bands,)
    float64 sums of the values and of their squares."""

    count: int
    first: np.ndarray
    second: np.ndarray


def client_sums(log_mels: np.ndarray) -> Sums:
    """Return the sums of a client's training clips. log_mels: (clips, frames, bands)."""
    bands = log_mels.shape[2]
    total = Sums(0, np.zeros(bands), np.zeros(bands))
    for image in log_mels:  # clip by clip: a client's clips need not fit in memory
        x = image.astype(np.float64)
        total = Sums(total.count + len(x), total.first + x.sum(0), total.second + (x**2).sum(0))
    return total


def pool_statistics(sums: Iterable[Sums]) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation over all clients' frames, (bands,) float32 each."""
    sums = list(sums)
    count = sum(s.count for s in sums)
    mean = np.sum([s.first for s in sums], axis=0) / count
    variance = np.sum([s.second for s in sums], axis=0) / count - mean**2
    return mean.astype(np.float32), np.sqrt(np.maximum(variance, 1e-12)).astype(np.float32)


def cached_log_mels(
    root: Path,
    paths: Sequence[str],
    digests: Sequence[str],
    *,
    cache: Path,
    front: FrontEnd = SPEECH,
    level: str = "none",
) -> np.ndarray:
    """Return the log-Mel images of a corpus's clips, from ``cache`` or computed and written there.

    root, paths: the files; digests: of their bytes; front, level: as of ``LogMel``. The cache
    file's name is a digest of ``CACHE_VERSION``, the front end, the level and the clips' bytes.

    Returns (clips, frames, bands) float32, memory-mapped and read-only.
    """
    text = "\n".join([str(CACHE_VERSION), repr(front), level, *digests])
    key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    path = cache / f"logmel-{key}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _extract([root / p for p in paths], path, LogMel(front, level=level))
    return np.load(path, mmap_mode="r")


def _extract(files: list[Path], path: Path, log_mel: LogMel) -> None:
    """Write the clips' log-Mel images in turn, so that few are in memory at a time."""
    front = log_mel.front

    def image(file: Path) -> np.ndarray:
        with torch.inference_mode():
            return log_mel(load_waveform(file, rate=front.sample_rate))[0, 0].numpy()

    header = {"descr": "<f4", "fortran_order": False, "shape": (len(files), *front.shape)}
    with atomic(path) as partial, open(partial, "wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in tqdm(range(0, len(files), 64), "log-Mels", unit="64 clips", leave=False):
                for one in pool.map(image, files[start : start + 64]):
                    out.write(np.ascontiguousarray(one, "<f4").tobytes())

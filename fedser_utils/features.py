"""Waveform -> standardised log-Mel image, the paper's input (section 6.2).

Extraction follows the lineage of the paper's own code: SciPy's magnitude spectrogram (whose
density scaling matters for the floor of 1e-8) and Slaney's Mel filters. The statistics for the
standardisation are pooled from sums that each client computes on its own clips.
"""

from __future__ import annotations

import hashlib
import os
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

from fedser_utils import audio
from fedser_utils.audio import SAMPLE_RATE
from fedser_utils.runs import atomic

SAMPLES = 95_744  # 5.984 s at 16 kHz: (95744 - 512) / 256 + 1 = 373 frames
WINDOW, HOP, MELS = 512, 256, 64
FRAMES = (SAMPLES - WINDOW) // HOP + 1
LOWEST, HIGHEST, FLOOR = 20.0, 8000.0, 1e-8  # Hz, Hz, spectral magnitude


class LogMel(nn.Module):
    """Log-Mel images of waveforms; differentiable, computed in double precision because a quiet
    band beside a loud one reaches down to the floor."""

    def __init__(self) -> None:
        super().__init__()
        window = torch.hamming_window(WINDOW, periodic=False, dtype=torch.float64)
        filters = melscale_fbanks(
            WINDOW // 2 + 1, LOWEST, HIGHEST, MELS, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
        scale = (SAMPLE_RATE * window.square().sum()).rsqrt()  # SciPy's scaling="density"
        self.register_buffer("window", window * scale, persistent=False)
        self.register_buffer("filters", filters.double(), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """waveform: (batch, samples) at 16 kHz, any length >= 1. Shorter ones are repeated to
        95,744 samples, longer ones cut (paper: "self-repeated").

        Returns (batch, 1, 373, 64) float32: frames x Mel bands, ln(magnitude + 1e-8).
        """
        if waveform.ndim != 2 or not waveform.shape[1]:
            raise ValueError(f"waveform {tuple(waveform.shape)} must be (batch, samples >= 1)")
        repeats = -(-SAMPLES // waveform.shape[1])
        filled = waveform.repeat(1, repeats)[:, :SAMPLES].double()
        frames = filled.unfold(1, WINDOW, HOP) * self.window
        magnitude = torch.fft.rfft(frames).abs()
        return torch.log(magnitude @ self.filters + FLOOR).float().unsqueeze(1)


class StandardisedLogMel(LogMel):
    """From a waveform to the model's input: log-Mel, then (x - mean) / std per Mel band.

    mean, std: (64,), as ``pool`` gives them.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray) -> None:
        super().__init__()
        self.training = False  # there is nothing to train
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.from_numpy(value), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """waveform: (batch, samples) at 16 kHz. Returns (batch, 1, 373, 64) standardised."""
        return (super().forward(waveform) - self.mean) / self.std

    def approximate_sound(self, x: Tensor) -> Tensor:
        """``approximate_sound`` of standardised log-Mel, x: (batch, 1, frames, 64)."""
        return approximate_sound(x * self.std + self.mean)


def approximate_sound(log_mel: Tensor) -> Tensor:
    """A sound whose log-Mel is roughly ``log_mel``: an approximation, not a recording.

    64 Mel bands hold neither a spectrum's detail nor its phase: the bands are spread over the
    frequencies by least squares, and the phase is guessed (Griffin and Lim, 1984).

    log_mel: (batch, 1, frames, 64), not standardised. Returns (batch, samples) in [-1, 1].
    """
    window = partial(torch.hamming_window, periodic=False)
    spread = InverseMelScale(
        WINDOW // 2 + 1, MELS, SAMPLE_RATE, LOWEST, HIGHEST, norm="slaney", mel_scale="slaney"
    )
    guess = GriffinLim(WINDOW, hop_length=HOP, window_fn=window, power=1, rand_init=False)
    magnitude = (log_mel.cpu().squeeze(1).exp() - FLOOR).clamp(min=0).transpose(1, 2)
    scale = (SAMPLE_RATE * window(WINDOW).square().sum()).sqrt()
    return guess(spread(magnitude) * scale).clamp(-1, 1).to(log_mel.device)


def sound(path: str | Path, *, device: str = "cpu") -> Tensor:
    """(1, samples) at 16 kHz of one file. Raises BadClipError as ``audio.read`` does."""
    return torch.from_numpy(audio.read(path).waveform)[None].to(device)


class Sums(NamedTuple):
    """What one client reveals for the standardisation. count: frames; first, second: (64,)
    float64 sums of the values and of their squares, per Mel band."""

    count: int
    first: np.ndarray
    second: np.ndarray


def client_sums(log_mels: np.ndarray) -> Sums:
    """The sums of one client's training clips. log_mels: (clips, 373, 64)."""
    total = Sums(0, np.zeros(MELS), np.zeros(MELS))
    for image in log_mels:  # clip by clip: a client's clips need not fit in memory
        x = image.astype(np.float64)
        total = Sums(total.count + len(x), total.first + x.sum(0), total.second + (x**2).sum(0))
    return total


def pool(sums: Iterable[Sums]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per Mel band, (64,) float32 each, over all clients' frames."""
    sums = list(sums)
    count = sum(s.count for s in sums)
    mean = np.sum([s.first for s in sums], axis=0) / count
    variance = np.sum([s.second for s in sums], axis=0) / count - mean**2
    return mean.astype(np.float32), np.sqrt(np.maximum(variance, 1e-12)).astype(np.float32)


def cached_log_mels(
    root: Path, paths: Sequence[str], digests: Sequence[str], *, cache: Path
) -> np.ndarray:
    """Log-Mels of a corpus's clips, from ``cache`` or extracted into it.

    root, paths: the files; digests: of their bytes. The cache file's name is a digest of the
    clips' bytes, in order, and of this module, and it appears whole or not at all.

    Returns (clips, 373, 64) float32, memory-mapped and read-only.
    """
    key = hashlib.blake2b(Path(__file__).read_bytes(), digest_size=8)
    key.update("\n".join(digests).encode())
    path = cache / f"logmel-{key.hexdigest()}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _extract([root / p for p in paths], path)
    return np.load(path, mmap_mode="r")


def _extract(files: list[Path], path: Path) -> None:
    """Write the clips' log-Mels one after the other, so that few are in memory at a time."""
    log_mel = LogMel()

    def image(file: Path) -> np.ndarray:
        with torch.inference_mode():
            return log_mel(torch.from_numpy(audio.read(file).waveform)[None])[0, 0].numpy()

    header = {"descr": "<f4", "fortran_order": False, "shape": (len(files), FRAMES, MELS)}
    with atomic(path) as partial, open(partial, "wb") as out:
        np.lib.format.write_array_header_1_0(out, header)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in tqdm(range(0, len(files), 64), "log-Mels", unit="64 clips", leave=False):
                for one in pool.map(image, files[start : start + 64]):
                    out.write(np.ascontiguousarray(one, "<f4").tobytes())

"""Reading audio files as checked mono waveforms, and writing WAVs.

libsndfile opens some damaged files with a wrong length or rate without an error, so the decoded
samples are compared with the header: WAV by its chunk sizes and byte rate, FLAC by
its stream's MD5 and the rate in its first frame, everything else by the announced length.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from fedser_utils.core.front_end import SPEECH

SAMPLE_RATE = SPEECH.sample_rate
EXTENSIONS = (".wav", ".flac", ".mp3")
RATES = range(1_000, 768_001)  # Hz; anything else is a damaged header
PLAYABLE = range(8_000, 48_001)  # Hz that every browser plays
SILENCE = 2.0**-15  # one step of a 16-bit recording

_FLAC_RATES = {1: 88_200, 2: 176_400, 3: 192_000, 4: 8_000, 5: 16_000, 6: 22_050, 7: 24_000}
_FLAC_RATES |= {8: 32_000, 9: 44_100, 10: 48_000, 11: 96_000}


class BadClipError(ValueError):
    """A clip cannot be used; the text is the reason."""


@dataclass(frozen=True)
class Clip:
    """A decoded clip. waveform: (samples,) float32, resampled; seconds and rate (Hz): of the
    file; digest: hex BLAKE2 of the file's bytes."""

    waveform: np.ndarray
    seconds: float
    digest: str
    rate: int


def read(path: str | Path, *, rate: int = SAMPLE_RATE) -> Clip:
    """Return one file decoded, checked, mixed down to mono and resampled to ``rate`` Hz.

    Raises BadClipError when the file cannot be read, is empty or silent, has samples that are or
    become NaN or infinite, or contradicts its header.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadClipError(f"cannot be opened: {error.strerror}") from error
    if not data:
        raise BadClipError("empty file")
    samples, original_rate = _decode(data)
    mono = samples.mean(axis=1)
    if not len(mono):
        raise BadClipError("empty: no samples")
    if not np.isfinite(mono).all():
        raise BadClipError("contains NaN or infinite samples")
    if np.ptp(mono) < SILENCE:
        raise BadClipError("silent")
    waveform = soxr.resample(mono, original_rate, rate)
    if not np.isfinite(waveform).all():  # a filter overshoots, and float32 ends at 3.4e38
        raise BadClipError(f"too large to be resampled: samples up to {np.abs(mono).max():.2g}")
    digest = hashlib.blake2b(data, digest_size=16).hexdigest()
    return Clip(waveform, len(mono) / original_rate, digest, original_rate)


def write(path: Path, waveform: np.ndarray, *, rate: int = SAMPLE_RATE) -> Path:
    """Write a 16-bit WAV and its folder. Returns the path, with "-" for characters that no file
    name should have. waveform: (samples,) in [-1, 1]; rate: Hz."""
    path = path.with_name(re.sub(r"[^\w.]+", "-", path.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, rate, subtype="PCM_16")
    return path


def playable(waveform: np.ndarray, *, rate: int = SAMPLE_RATE) -> bytes:
    """Return a 16-bit WAV for a browser, at ``rate`` Hz, or at 16 kHz if it is not ``PLAYABLE``.
    waveform: (samples,); scaled down where it exceeds [-1, 1], as it may after resampling."""
    if rate not in PLAYABLE:
        waveform, rate = soxr.resample(waveform, rate, SAMPLE_RATE), SAMPLE_RATE
    wav, peak = io.BytesIO(), max(1.0, float(np.abs(waveform).max(initial=0)))
    soundfile.write(wav, waveform / peak, rate, format="WAV", subtype="PCM_16")
    return wav.getvalue()


def _decode(data: bytes) -> tuple[np.ndarray, int]:
    """Samples (frames, channels) float32 and rate in Hz, checked against the header."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate, announced, subtype = file.samplerate, file.frames, file.subtype
            if data[:4] == b"fLaC":
                exact = file.read(dtype="int32", always_2d=True)
                samples = (exact / 2.0**31).astype(np.float32)
                _check_flac(data, exact, rate, subtype)
            else:
                samples = file.read(dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise BadClipError(f"cannot be decoded: {error.error_string.strip()}") from error
    if rate not in RATES:
        raise BadClipError(f"header claims an impossible rate of {rate} Hz")
    if len(samples) != announced:
        raise BadClipError(f"header announces {announced} samples, {len(samples)} decoded")
    if data[:4] == b"RIFF":
        _check_wav(data)
    return samples, rate


def _check_wav(data: bytes) -> None:
    """Raise BadClipError if the format's fields disagree, or data chunk and file size."""
    position = 12
    while position + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, position)
        body = position + 8
        if name == b"fmt " and body + 16 <= len(data):
            tag, channels, rate, byte_rate, block, bits = struct.unpack_from("<HHIIHH", data, body)
            plain = tag in (1, 3, 0xFFFE)  # PCM, float, extensible: fixed bytes per sample
            if plain and (block != channels * ((bits + 7) // 8) or byte_rate != rate * block):
                raise BadClipError(f"header contradicts itself: {rate} Hz, {byte_rate} bytes/s")
        if name == b"data":
            streamed = size >= 0x7FFFFFFF  # written to a pipe: the length was never known
            if not streamed and body + size > len(data):
                raise BadClipError(
                    f"header announces {size} bytes of audio, {len(data) - body} present"
                )
            return
        position = body + size + size % 2
    raise BadClipError("header has no data chunk")


def _check_flac(data: bytes, samples: np.ndarray, rate: int, subtype: str) -> None:
    """Raise BadClipError if STREAMINFO's MD5 or the first frame's rate contradict the samples."""
    position, info = 4, None
    while position + 4 <= len(data):
        kind, size = data[position], int.from_bytes(data[position + 1 : position + 4], "big")
        if kind & 0x7F == 0:
            info = data[position + 4 : position + 4 + size]
        position += 4 + size
        if kind & 0x80:
            break
    if info is None or len(info) < 34:
        raise BadClipError("header has no stream information")
    frame_rate = _FLAC_RATES.get(data[position + 2] & 0x0F) if position + 2 < len(data) else None
    if frame_rate not in (None, rate):
        raise BadClipError(f"header claims {rate} Hz, its frames {frame_rate} Hz")
    width = {"PCM_S8": 1, "PCM_16": 2, "PCM_24": 3}.get(subtype)
    if width and any(info[18:34]):
        little = np.ascontiguousarray(samples).astype("<i4").view(np.uint8).reshape(-1, 4)
        if hashlib.md5(little[:, 4 - width :].tobytes()).digest() != info[18:34]:
            raise BadClipError(
                f"the {len(samples)} decoded samples contradict the header's checksum"
            )

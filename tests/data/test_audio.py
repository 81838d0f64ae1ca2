"""Damaged and odd files: each must be read right or refused with its reason."""

import io
import struct

import numpy as np
import pytest
import soundfile

from fedser_utils.data import audio
from fedser_utils.data.audio import BadClipError


@pytest.fixture
def tone():
    return 0.3 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)


def write(path, samples, rate=16_000, **options):
    soundfile.write(path, samples, rate, **options)
    return path


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_formats_and_rates(tmp_path, ending, rate):
    tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    clip = audio.read(write(tmp_path / f"a.{ending}", tone, rate))
    slack = 0.2 if ending == "mp3" else 0.001  # an MP3 encoder pads
    assert clip.seconds == pytest.approx(1, abs=slack)
    assert len(clip.waveform) == pytest.approx(16_000, abs=16_000 * slack + 1)
    spectrum = np.abs(np.fft.rfft(clip.waveform[:16_000], 16_000))
    assert spectrum.argmax() == pytest.approx(440, abs=2)
    assert clip.waveform.dtype == np.float32


def test_another_rate(tmp_path, tone):
    clip = audio.read(write(tmp_path / "a.wav", tone), rate=4_000)
    assert (clip.rate, clip.seconds, len(clip.waveform)) == (16_000, 1, 4_000)
    path = audio.write(tmp_path / "b.wav", clip.waveform, rate=4_000)
    again = audio.read(path, rate=4_000)
    assert again.rate == 4_000
    np.testing.assert_allclose(again.waveform, clip.waveform, atol=2**-15)


@pytest.mark.parametrize(("rate", "played"), [(4_000, 16_000), (8_000, 8_000), (96_000, 16_000)])
def test_what_browsers_play(rate, played):
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    samples, found = soundfile.read(io.BytesIO(audio.playable(1.5 * tone, rate=rate)))
    assert (found, len(samples)) == (played, played)
    assert np.abs(samples).max() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
def test_sound_flac_passes_its_checksum(tmp_path, tone, subtype):
    stereo = np.stack([tone, 0.5 * tone], 1)
    assert audio.read(write(tmp_path / "a.flac", stereo, subtype=subtype)).seconds == 1


def test_stereo_is_mixed_down(tmp_path, tone):
    clip = audio.read(write(tmp_path / "a.wav", np.stack([tone, 0 * tone], 1), subtype="FLOAT"))
    np.testing.assert_allclose(clip.waveform, tone / 2, atol=1e-6)


def test_a_prime_rate_is_resampled(tmp_path, tone):
    clip = audio.read(write(tmp_path / "a.wav", tone, 11_127))
    assert len(clip.waveform) == pytest.approx(16_000 * 16_000 / 11_127, abs=2)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(0), "empty: no samples"),
        (np.zeros(16_000), "silent"),
        (np.full(16_000, 0.25), "silent"),
        (np.stack([np.sin(np.arange(999)), -np.sin(np.arange(999))], 1), "silent"),
        (np.r_[np.sin(np.arange(99)), np.nan], "NaN"),
        (np.r_[np.sin(np.arange(99)), np.inf], "infinite"),
        (
            3.3e38 * np.sign(np.sin(np.arange(999))),
            r"too large to be resampled: .* up to 3\.3e\+38",
        ),
    ],
)
def test_useless_samples_are_refused(tmp_path, samples, reason):
    with pytest.raises(BadClipError, match=reason):
        audio.read(write(tmp_path / "a.wav", samples, 44_100, subtype="FLOAT"))


def test_unreadable_files_are_refused(tmp_path):
    for name, content in (("empty.wav", b""), ("text.wav", b"not audio at all" * 99)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadClipError, match=r"empty file|cannot be decoded"):
            audio.read(tmp_path / name)
    with pytest.raises(BadClipError, match="cannot be opened"):
        audio.read(tmp_path / "missing.wav")


@pytest.mark.parametrize("ending", ["wav", "flac", "mp3"])
def test_a_cut_file_is_refused(tmp_path, tone, ending):
    path = write(tmp_path / f"a.{ending}", np.tile(tone, 3))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadClipError):
        audio.read(path)


def test_a_wav_with_a_false_rate_is_refused(tmp_path, tone):
    path = write(tmp_path / "a.wav", tone)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 24, 44_100)  # the byte rate still says 16 kHz
    path.write_bytes(data)
    with pytest.raises(BadClipError, match="contradicts itself"):
        audio.read(path)


def test_a_flac_with_a_false_rate_is_refused(tmp_path, tone):
    path = write(tmp_path / "a.flac", tone)
    data = bytearray(path.read_bytes())
    rate = 32_000 << 4 | data[20] & 0x0F  # 20 bits from byte 18, before channels and width
    data[18:21] = rate.to_bytes(3, "big")
    path.write_bytes(data)
    with pytest.raises(BadClipError, match="claims 32000 Hz, its frames 16000 Hz"):
        audio.read(path)


def test_a_flac_with_a_false_length_is_refused(tmp_path, tone):
    path = write(tmp_path / "a.flac", tone)
    data = bytearray(path.read_bytes())
    data[25] ^= 0x08  # total samples, lowest byte
    path.write_bytes(data)
    with pytest.raises(BadClipError):
        audio.read(path)


def test_a_flipped_bit_in_a_flac_is_refused(tmp_path):
    path = write(tmp_path / "a.flac", np.random.default_rng(0).normal(0, 0.1, 16_000))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(BadClipError):
        audio.read(path)


def test_a_wav_written_to_a_pipe_is_read(tmp_path, tone):
    path = write(tmp_path / "a.wav", tone)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 40, 0xFFFFFFFF)
    path.write_bytes(data)
    assert audio.read(path).seconds == pytest.approx(1, abs=0.01)

"""Log-Mels against SciPy and librosa, and against NumPy; statistics against the pooled data."""

import dataclasses
import itertools
import math

import figures
import librosa
import numpy as np
import pytest
import scipy.signal
import soundfile
import torch

from fedser_utils.core.errors import InputError
from fedser_utils.core.front_end import FRONT_ENDS, MACHINES, SPEECH, FrontEnd
from fedser_utils.data import audio
from fedser_utils.data import log_mel as log_mel_module

SLOW = FrontEnd(sample_rate=4000, window=256, hop=100, bands=40, highest=2000.0, seconds=2.0)
NARROW = FrontEnd(sample_rate=96_000, window=4096, hop=2048, bands=20, lowest=200, highest=20_000)
FRONTS = {"speech": SPEECH, "machines": MACHINES, "slow": SLOW, "narrow": NARROW}


def reference(waveform, rate=16_000, samples=95_744, window=512, hop=256, bands=64, highest=8000):
    """The lineage of the paper's code, written with SciPy and librosa in double precision."""
    filled = np.tile(waveform.astype(np.float64), -(-samples // len(waveform)))[:samples]
    spectrum = scipy.signal.spectrogram(
        filled, fs=rate, window=np.hamming(window), nperseg=window, noverlap=window - hop,
        detrend=False, mode="magnitude",
    )[2]  # fmt: skip
    bands = {"n_mels": bands, "fmin": 20, "fmax": highest}
    filters = librosa.filters.mel(sr=rate, n_fft=window, dtype=np.float64, **bands)
    return np.log(filters @ spectrum + 1e-8).T


def plain(waveform, front):
    """A log-Mel by its formulas, with NumPy alone: triangles equally wide on Slaney's Mel scale,
    which is linear below 1 kHz, and of equal area in Hz."""

    def mel(hz):
        return 3 * hz / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)

    mels = np.linspace(mel(front.lowest), mel(front.highest), front.bands + 2)
    corners = np.where(mels < 15, 200 * mels / 3, 1000 * 6.4 ** ((mels - 15) / 27))  # Hz
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    hz = np.linspace(0, front.sample_rate / 2, front.window // 2 + 1)[:, None]
    sides = np.minimum((hz - low) / (middle - low), (high - hz) / (high - middle))
    filters = np.maximum(sides, 0) * 2 / (high - low)
    window = np.hamming(front.window)
    window /= np.sqrt(front.sample_rate * np.square(window).sum())
    filled = np.resize(waveform.astype(float), front.samples)  # repeated, or cut
    frames = np.lib.stride_tricks.sliding_window_view(filled, front.window)[:: front.hop] * window
    return np.log(np.abs(np.fft.rfft(frames)) @ filters + 1e-8)


def waveforms():
    draw = np.random.default_rng(0)
    yield "noise", draw.normal(0, 0.1, 95_744)
    yield "short", draw.normal(0, 0.1, 7_001)
    yield "long", draw.normal(0, 0.1, 200_000)
    yield "one sample", np.array([0.1])
    yield "quiet", draw.normal(0, 2e-5, 50_000)
    yield "a loud tone beside silence", np.sin(2 * np.pi * 300 * np.arange(95_744) / 16_000)


@pytest.mark.parametrize(("name", "waveform"), list(waveforms()))
def test_equals_scipy_and_librosa(name, waveform):
    ours = log_mel_module.LogMel()(torch.from_numpy(waveform)[None])
    assert ours.shape == (1, 1, 373, 64)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours[0, 0].numpy(), reference(waveform), atol=1e-3)


def test_equals_scipy_and_librosa_on_speech(speech):
    for path in sorted((speech / "emovo").rglob("*.flac"))[::60]:
        waveform = audio.read(path).waveform
        ours = log_mel_module.LogMel()(torch.from_numpy(waveform)[None])[0, 0].numpy()
        np.testing.assert_allclose(ours, reference(waveform), atol=1e-3)


@pytest.mark.parametrize("front", [MACHINES, SLOW], ids=["machines", "slow"])
def test_another_front_end_equals_scipy_and_librosa(front):
    waveform = np.random.default_rng(0).normal(0, 0.1, 3 * front.samples // 4)
    ours = log_mel_module.LogMel(front)(torch.from_numpy(waveform)[None])
    assert ours.shape == (1, 1, *front.shape)
    expected = reference(
        waveform, front.sample_rate, front.samples, front.window, front.hop, front.bands,
        front.highest,
    )  # fmt: skip
    np.testing.assert_allclose(ours[0, 0].numpy(), expected, atol=1e-3)


@pytest.mark.parametrize("share", [0.3, 1.2], ids=["repeated", "cut"])
@pytest.mark.parametrize("front", FRONTS.values(), ids=FRONTS)
def test_equals_numpys_on_every_front_end(front, share):
    waveform = np.random.default_rng(0).normal(0, 0.1, int(share * front.samples))
    waveform = waveform.astype(np.float32)
    ours = log_mel_module.LogMel(front)(torch.from_numpy(waveform)[None])[0, 0].numpy()
    np.testing.assert_allclose(ours, plain(waveform, front), atol=1e-4)


def test_a_machines_image_is_311_by_128():
    assert log_mel_module.LogMel(MACHINES)(torch.randn(2, 9_000)).shape == (2, 1, 311, 128)


@pytest.mark.parametrize("front", [MACHINES, SLOW], ids=["machines", "slow"])
def test_a_tone_is_in_its_band(front):
    tone = torch.sin(2 * torch.pi * 900 * torch.arange(front.samples) / front.sample_rate)
    log_mel = log_mel_module.LogMel(front)
    loudest = log_mel(tone[None]).mean((0, 1, 2)).argmax()
    hertz = torch.linspace(0, front.sample_rate / 2, len(log_mel.filters), dtype=torch.float64)
    band = log_mel.filters[:, loudest]
    assert float((band * hertz).sum() / band.sum()) == pytest.approx(900, abs=40)


def test_an_empty_filter_is_refused():
    front = dataclasses.replace(SPEECH, window=256, bands=128)
    with pytest.raises(
        InputError, match="bands 128 are too many for window 256 at 16000 Hz, 12 would be"
    ):
        log_mel_module.LogMel(front)
    log_mel_module.LogMel(dataclasses.replace(front, window=512))


def test_the_level_is_that_of_the_recording():
    sound = torch.randn(1, 40_000, dtype=torch.float64)
    sound /= sound.square().mean().sqrt()
    pair = torch.cat([0.2 * sound, 0.02 * sound])  # 20 dB apart
    one, other = log_mel_module.LogMel(level="rms")(pair)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    torch.testing.assert_close(one, log_mel_module.LogMel()(10**-1.3 * sound)[0], rtol=0, atol=1e-4)
    one, other = log_mel_module.LogMel(level="none")(pair)
    louder = torch.full_like(one, math.log(10))
    torch.testing.assert_close(one - other, louder, rtol=0, atol=0.05)  # the floor takes a little


def test_the_level_is_differentiable_and_spares_silence():
    log_mel = log_mel_module.LogMel(level="rms")
    hushed = torch.cat([torch.zeros(1, 9_000), torch.full((1, 9_000), 9e-7)])
    torch.testing.assert_close(log_mel(hushed), log_mel_module.LogMel()(hushed))
    waveform = torch.cat([hushed, torch.randn(1, 9_000)]).requires_grad_()
    log_mel(waveform).sum().backward()
    assert torch.isfinite(waveform.grad).all()
    with pytest.raises(ValueError, match="level 'loud' is unknown; choose from none, rms"):
        log_mel_module.LogMel(level="loud")


def test_bands_closer_than_bins_still_sound():
    front = dataclasses.replace(SPEECH, bands=128)  # 117 of them are independent
    tone = 0.1 * torch.sin(2 * torch.pi * 900 * torch.arange(front.samples) / front.sample_rate)
    image = log_mel_module.LogMel(front)(tone[None])
    again = log_mel_module.LogMel(front)(log_mel_module.approximate_sound(image, front))
    assert again.mean((0, 1, 2)).argmax() == image.mean((0, 1, 2)).argmax()


def test_is_differentiable_and_rejects_no_samples():
    waveform = torch.randn(2, 30_000, requires_grad=True)
    log_mel_module.LogMel()(waveform).sum().backward()
    assert torch.isfinite(waveform.grad).all()
    with pytest.raises(ValueError, match=r"waveform \(1, 0\)"):
        log_mel_module.LogMel()(torch.zeros(1, 0))


def test_statistics_from_sums_equal_the_pooled_ones(federation):
    train = federation.log_mels[federation.table("train").index].astype(np.float64)
    np.testing.assert_allclose(federation.mean, train.mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(federation.std, train.std((0, 1)), atol=1e-5)


def test_other_images_need_a_new_cache_version(tmp_path):
    """Of each front end and level, as cached: of a clip that is short, at another rate and in
    stereo, of one that is long, and of one too quiet to be made louder; see ``figures``."""
    draws = np.random.default_rng(0)
    swelling = 10 ** np.linspace(-3, -1, 11 * 16_000) * draws.normal(0, 1, 11 * 16_000)
    for name, wave, rate in (
        ("short", draws.normal(0, 0.1, (30_000, 2)), 44_100),
        ("long", swelling, 16_000),
        ("quiet", 1e-4 * (np.arange(50_000) == 20_000), 16_000),
    ):
        soundfile.write(tmp_path / f"{name}.wav", wave, rate, subtype="FLOAT")
    names = ["short.wav", "long.wav", "quiet.wav"]
    found = {}
    for (kind, front), level in itertools.product(FRONT_ENDS.items(), log_mel_module.LEVELS):
        images = log_mel_module.cached_log_mels(
            tmp_path, names, names, cache=tmp_path, front=front, level=level
        )
        for name, image in zip(names, images, strict=True):
            found[f"{kind} {level} {name}"] = figures.of_image(image)
    figures.check(
        "log_mel", log_mel_module.CACHE_VERSION, found,
        "raise CACHE_VERSION in data/log_mel.py", abs=1e-3, rel=0,
    )  # fmt: skip


def test_the_cache_keeps_front_ends_and_levels_apart(tmp_path):
    rate, seconds = 8000, 2.5
    wave = np.random.default_rng(0).normal(0, 0.01, int(rate * seconds))
    soundfile.write(tmp_path / "a.wav", wave, rate)
    found = {
        (front, level): log_mel_module.cached_log_mels(
            tmp_path, ["a.wav"], ["x"], cache=tmp_path / "cache", front=front, level=level
        )
        for front in (SPEECH, SLOW)
        for level in ("none", "rms")
    }
    assert len(list((tmp_path / "cache").iterdir())) == 4
    for (front, level), images in found.items():
        assert images.shape == (1, *front.shape)
        sound = log_mel_module.load_waveform(tmp_path / "a.wav", rate=front.sample_rate)
        assert sound.shape[1] == pytest.approx(seconds * front.sample_rate, abs=1)
        own = log_mel_module.LogMel(front, level=level)(sound)[0]
        np.testing.assert_array_equal(images, own.numpy())
        sums = log_mel_module.client_sums(images)
        assert (sums.count, sums.first.shape) == (front.frames, (front.bands,))
        listen = log_mel_module.StandardisedLogMel(
            *log_mel_module.pool_statistics([sums]), front, level=level
        )
        np.testing.assert_allclose(listen(sound).mean((0, 1, 2)), 0, atol=1e-3)
        assert listen.approximate_sound(listen(sound)).shape[1] > 0.9 * front.samples


def test_cache_is_keyed_by_content_and_written_once(tmp_path, tiny, federation, monkeypatch):
    corpus, table = federation.corpus, federation.clips.head(3)
    arguments = (corpus.root, list(table["path"]), list(table["digest"]))
    first = log_mel_module.cached_log_mels(*arguments, cache=tmp_path, front=tiny.front_end)
    assert isinstance(first, np.memmap)
    assert not first.flags.writeable
    np.testing.assert_array_equal(first, federation.log_mels[:3])
    monkeypatch.setattr(log_mel_module, "_extract", None)  # a second extraction would fail
    log_mel_module.cached_log_mels(*arguments, cache=tmp_path, front=tiny.front_end)
    with pytest.raises(TypeError):
        log_mel_module.cached_log_mels(corpus.root, arguments[1], ["x", "y", "z"], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1

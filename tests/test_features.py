"""Log-Mels against SciPy and librosa; statistics against the pooled data."""

import librosa
import numpy as np
import pytest
import scipy.signal
import torch

from fedser_utils import audio, features


def reference(waveform):
    """The lineage of the paper's code, written with SciPy and librosa in double precision."""
    filled = np.tile(waveform.astype(np.float64), -(-95_744 // len(waveform)))[:95_744]
    spectrum = scipy.signal.spectrogram(
        filled, fs=16_000, window=np.hamming(512), nperseg=512, noverlap=256, detrend=False,
        mode="magnitude",
    )[2]  # fmt: skip
    bands = {"n_mels": 64, "fmin": 20, "fmax": 8000}
    filters = librosa.filters.mel(sr=16_000, n_fft=512, dtype=np.float64, **bands)
    return np.log(filters @ spectrum + 1e-8).T


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
    ours = features.LogMel()(torch.from_numpy(waveform)[None])
    assert ours.shape == (1, 1, 373, 64)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours[0, 0].numpy(), reference(waveform), atol=1e-3)


def test_equals_scipy_and_librosa_on_speech(speech):
    for path in sorted((speech / "emovo").rglob("*.flac"))[::60]:
        waveform = audio.read(path).waveform
        ours = features.LogMel()(torch.from_numpy(waveform)[None])[0, 0].numpy()
        np.testing.assert_allclose(ours, reference(waveform), atol=1e-3)


def test_is_differentiable_and_rejects_no_samples():
    waveform = torch.randn(2, 30_000, requires_grad=True)
    features.LogMel()(waveform).sum().backward()
    assert torch.isfinite(waveform.grad).all()
    with pytest.raises(ValueError, match=r"waveform \(1, 0\)"):
        features.LogMel()(torch.zeros(1, 0))


def test_statistics_from_sums_equal_the_pooled_ones(federation):
    train = federation.log_mels[federation.table("train").index].astype(np.float64)
    np.testing.assert_allclose(federation.mean, train.mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(federation.std, train.std((0, 1)), atol=1e-5)


def test_cache_is_keyed_by_content_and_written_once(tmp_path, federation, monkeypatch):
    corpus, table = federation.corpus, federation.clips.head(3)
    arguments = (corpus.root, list(table["path"]), list(table["digest"]))
    first = features.cached_log_mels(*arguments, cache=tmp_path)
    assert isinstance(first, np.memmap)
    assert not first.flags.writeable
    np.testing.assert_array_equal(first, federation.log_mels[:3])
    monkeypatch.setattr(features, "_extract", None)  # a second extraction would fail
    features.cached_log_mels(*arguments, cache=tmp_path)
    with pytest.raises(TypeError):
        features.cached_log_mels(corpus.root, arguments[1], ["x", "y", "z"], cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1

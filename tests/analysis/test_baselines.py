import importlib.util
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from fedser_utils.analysis import baselines
from fedser_utils.core.errors import InputError

CLASSES, SPEAKERS = np.arange(4).repeat(30), np.tile(np.arange(6), 20)
TRAIN = np.tile([True, True, False, False, True], 24)  # 18 training clips of 30 per class


def log_mels(seed=0):
    """Noise: (clips, frames, bands)."""
    return np.random.default_rng(seed).normal(size=(len(CLASSES), 20, 5)).astype(np.float32)


def scored(images, **options):
    rows = baselines.table(CLASSES, SPEAKERS, TRAIN, log_mels=images, **options)
    return rows.set_index("baseline")["uar"]


def test_features_by_hand():
    image = np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0], [2.0, 1.0]])
    assert baselines.mean_level([image]).tolist() == [[1.5]]
    assert baselines.band_statistics([image]) == pytest.approx(np.array([[2, 1, 2**0.5, 0]]))


def test_bands_that_tell_the_class_are_found():
    images = log_mels()
    images[:, :, :4] += 5 * np.eye(4)[CLASSES][:, None]
    assert scored(images)["linear on bands"] == 100


def test_deviations_that_tell_the_class_are_found_and_the_level_says_nothing():
    images = log_mels()
    images -= images.mean(axis=1, keepdims=True)
    images[:, :, :4] *= 1 + 3 * np.eye(4)[CLASSES][:, None]
    images += np.random.default_rng(1).normal(size=(len(CLASSES), 1, 1))  # how loud a clip is
    found = scored(images)
    assert found["linear on bands"] > 95
    assert found["mean level"] < 45


def test_noise_is_near_chance():
    found = [scored(log_mels(seed)) for seed in range(5)]
    assert np.mean([one["linear on bands"] for one in found]) == pytest.approx(25, abs=8)
    assert np.mean([one["mean level"] for one in found]) == pytest.approx(25, abs=8)


def test_the_order_of_frames_does_not_matter():
    images = log_mels()
    images[:, :, 1] += np.linspace(0, 3, 20)[None] * (CLASSES % 2 * 2 - 1)[:, None]
    for features in (baselines.mean_level, baselines.band_statistics):
        assert features(images) == pytest.approx(features(images[:, ::-1]))


def test_a_constant_feature_is_no_trouble():
    images = log_mels()
    images[:, :, 3] = 7
    assert np.isfinite(scored(images)).all()


def test_the_table_says_what_it_was_judged_on():
    rows = baselines.table(CLASSES, SPEAKERS, TRAIN, log_mels=log_mels())
    assert list(rows.columns) == baselines.COLUMNS
    assert rows["features"].tolist() == [1, 10]
    assert (rows["n"] == 48).all()
    assert (rows["n_train"] == 72).all()
    assert (rows["chance"] == 25).all()
    assert (rows["low"] <= rows["uar"]).all()
    assert (rows["uar"] <= rows["high"]).all()
    again = baselines.table(CLASSES, SPEAKERS, TRAIN, log_mels=log_mels())
    assert rows.equals(again)


def test_units_do_not_matter():
    features = baselines.band_statistics(log_mels())
    features[:, 0] += 0.2 * CLASSES
    other = features * np.logspace(-4, 4, 10) + 5
    said = [baselines.decisions(one, CLASSES, TRAIN) for one in (features, other)]
    assert (said[0] == said[1]).all()


def test_only_the_training_clips_teach():
    """Where the test clips' labels are turned round, what is said about them stays the same."""
    features = baselines.band_statistics(log_mels())
    other = np.where(TRAIN, CLASSES, 3 - CLASSES)
    said = [baselines.decisions(features, labels, TRAIN) for labels in (CLASSES, other)]
    assert (said[0] == said[1]).all()


def test_the_svm_finds_what_is_there():
    features = np.random.default_rng(0).normal(size=(len(CLASSES), 20))
    features[:, 7:11] += 6 * np.eye(4)[CLASSES]
    model = baselines.BASELINES["linear on eGeMAPS"].model
    said = baselines.decisions(features, CLASSES, TRAIN, model=model)
    assert (said == CLASSES[~TRAIN]).all()


def test_what_cannot_be_judged_is_refused():
    features = baselines.band_statistics(log_mels())
    with pytest.raises(InputError, match="120 training clips of 4 classes and 0 test clips"):
        baselines.decisions(features, CLASSES, np.ones(120))
    with pytest.raises(InputError, match="30 training clips of 1 classes and 90 test clips"):
        baselines.decisions(features, CLASSES, CLASSES == 0)
    with pytest.raises(InputError, match="baselines need one of log_mels, waveforms"):
        baselines.table(CLASSES, SPEAKERS, TRAIN)
    features[5, 3] = np.nan
    with pytest.raises(InputError, match="the features of clip 5 are not finite"):
        baselines.decisions(features, CLASSES, TRAIN)


def test_without_opensmile_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "opensmile", None)  # importing it raises ImportError
    with pytest.raises(InputError, match="need the package opensmile") as one:
        baselines.functionals([np.zeros(16_000)])
    assert "\n" not in str(one.value)


@pytest.mark.skipif(not importlib.util.find_spec("opensmile"), reason="opensmile is optional")
def test_functionals_hear_the_pitch():
    time = np.arange(16_000) / 16_000
    low, high = (np.sign(np.sin(2 * np.pi * hertz * time)) for hertz in (110, 220))
    found = baselines.functionals([0.1 * low, 0.1 * high])
    assert found.shape == (2, 88)
    assert found[1, 0] - found[0, 0] == pytest.approx(12, abs=0.5)  # mean F0 in semitones


def test_baselines_need_neither_torch_nor_the_corpora():
    code = "import sys; from fedser_utils.analysis import baselines; "
    code += "sys.exit(bool({'torch', 'fedser_utils.data.corpora', 'fedser_utils.data.log_mel', "
    code += (
        "'fedser_utils.data.federation', 'fedser_utils.data.synthetic_speech'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_corpus_is_compared_without_opensmile(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "opensmile", None)
    split = np.where(TRAIN, "train", "test")
    clips = pd.DataFrame({"emotion": CLASSES, "speaker": SPEAKERS, "split": split})
    rows = baselines.compare(clips, log_mels=log_mels(), waveforms=iter(()))
    expected = baselines.table(CLASSES, SPEAKERS, TRAIN, log_mels=log_mels())
    pd.testing.assert_frame_equal(rows, expected)
    assert "eGeMAPS functionals need the package opensmile" in caplog.text

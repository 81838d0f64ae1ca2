import hashlib

import figures
import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from scipy.stats import skew

from fedser_utils.analysis import baselines
from fedser_utils.core.errors import InputError
from fedser_utils.data import federation, readers, synthetic_speech
from fedser_utils.data.log_mel import LogMel


@pytest.fixture(scope="module")
def demo():
    """The demo's clips: a table (clip, speaker, code) and their sounds."""
    names = synthetic_speech.names(speakers=8, clips=280)
    parts = [name.split("_") for name in names]
    table = pd.DataFrame({"clip": names, "speaker": [part[2] for part in parts]})
    return table.assign(code=[part[3][:3] for part in parts]), [
        *map(synthetic_speech.synthesise, names)
    ]


def spread(values, table):
    """From the smallest to the largest mean over the clips of an emotion."""
    means = pd.Series(values).groupby(table["code"]).mean()
    return means.max() - means.min()


def test_full_size_has_demos_proportions():
    names = synthetic_speech.names(speakers=68, clips=9365)
    assert len(set(names)) == 9365
    clips, rejected = readers.read_names(names, reader="demos")
    assert rejected.empty
    counts = clips["emotion"].value_counts()
    assert counts["anger"] == 1477
    assert counts["surprise"] == 1000
    genders = clips.drop_duplicates("speaker")["gender"].value_counts()
    assert genders.to_dict() == {"m": 45, "f": 23}
    assert clips["speaker"].value_counts().between(137, 138).all()


def test_same_seed_same_bytes(tmp_path):
    one, two, other = (
        synthetic_speech.write_corpus(tmp_path / n, speakers=2, clips=28, seed=s)
        for n, s in (("a", 0), ("b", 0), ("c", 1))
    )

    def digest(folder):
        files = sorted((folder / "DEMOS").iterdir())
        assert len(files) == 28
        return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()

    assert digest(one) == digest(two) != digest(other)


def test_a_linear_model_of_means_and_deviations_learns_little(demo):
    table, clips = demo
    log_mel = LogMel()
    sounds = [torch.from_numpy(clip)[None] for clip in clips]
    log_mels = torch.cat([log_mel(sound)[:, 0] for sound in sounds]).numpy()
    rows = [
        baselines.table(table["code"], table["speaker"], train, log_mels=log_mels)
        for seed in range(3)
        for train in [federation.split(table, how="speaker_dependent", seed=seed) == "train"]
    ]
    uar = pd.concat(rows).groupby("baseline")["uar"].mean()
    assert uar["linear on bands"] <= 45
    assert uar["mean level"] < 25  # chance is 14.3


def test_emotions_are_equally_loud_and_long(demo):
    table, clips = demo
    assert spread([20 * np.log10(clip.std()) for clip in clips], table) < 3
    assert spread([len(clip) / 16_000 for clip in clips], table) < 0.5


def test_anger_strikes_and_fear_swells(demo):
    """In time, they are each other's mirror: loudness rises faster than it falls, or slower."""
    table, clips = demo
    edges = []
    for clip in clips:
        frames = clip[: len(clip) // 256 * 256].reshape(-1, 256)
        edges.append(skew(np.diff(np.log(frames.std(axis=1) + 1e-4))))
    found = pd.Series(edges).groupby(table["code"]).median()
    assert found["rab"] > 0.5
    assert found["pau"] < -0.5


def test_a_movement_takes_the_same_values_wherever_its_peak_is():
    t = (np.arange(1000) + 0.5) / 1000
    for place in (0.05, 0.3, 0.5, 0.9):
        assert np.sort(synthetic_speech._peak(t, place)) == pytest.approx(t, abs=2e-3)
    assert synthetic_speech._peak(t, 0.1) == pytest.approx(synthetic_speech._peak(t, 0.9)[::-1])


def test_mirrored_emotions_are_mirrored():
    for one, other in (("rab", "pau"), ("dis", "col"), ("sor", "tri")):
        *first, rate = vars(synthetic_speech.EXPRESSIONS[one]).values()
        *second, also = vars(synthetic_speech.EXPRESSIONS[other]).values()
        assert np.add(first, second) == pytest.approx(1)
        assert rate == also


def test_clips_are_speech_like(demo):
    _, clips = demo
    seconds = np.array([len(clip) for clip in clips]) / 16_000
    assert 1.5 < seconds.mean() < 3.5
    assert seconds.max() < 8
    assert all(np.abs(clip).max() <= 1 and clip.std() > 1e-3 for clip in clips)


def test_other_clips_need_a_new_version(tmp_path):
    """Every emotion, of two voices, as written; see ``figures``."""
    folder = synthetic_speech.write_corpus(tmp_path, speakers=2, clips=14) / "DEMOS"
    found = {
        path.stem: figures.of_clip(soundfile.read(path)[0]) for path in sorted(folder.iterdir())
    }
    assert {name.split("_")[3][:3] for name in found} == set(synthetic_speech.EXPRESSIONS)
    assert {name.split("_")[1] for name in found} == {"m", "f"}
    figures.check(
        "synthetic_speech", synthetic_speech.VERSION, found,
        "raise VERSION in data/synthetic_speech.py", rel=1e-3,
    )  # fmt: skip


def test_sizes_are_checked():
    with pytest.raises(InputError, match="speakers 69 must be from 2 to 68"):
        synthetic_speech.names(speakers=69, clips=100)
    with pytest.raises(InputError, match="clips 3 must be from"):
        synthetic_speech.names(speakers=2, clips=3)

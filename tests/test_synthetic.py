import hashlib

import numpy as np
import pytest

from fedser_utils import readers, synthetic
from fedser_utils.config import InputError


def test_full_size_has_demos_proportions():
    names = synthetic.names(speakers=68, clips=9365)
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
        synthetic.write_corpus(tmp_path / n, speakers=2, clips=28, seed=s)
        for n, s in (("a", 0), ("b", 0), ("c", 1))
    )

    def digest(folder):
        files = sorted((folder / "DEMOS").iterdir())
        assert len(files) == 28
        return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()

    assert digest(one) == digest(two) != digest(other)


def test_clips_are_speech_like():
    clips = [synthetic.synthesise(name) for name in synthetic.names(speakers=4, clips=84)]
    seconds = np.array([len(clip) for clip in clips]) / 16_000
    assert 1.5 < seconds.mean() < 3.5
    assert seconds.max() < 8
    assert all(np.abs(clip).max() <= 1 and clip.std() > 1e-3 for clip in clips)


def test_sizes_are_checked():
    with pytest.raises(InputError, match="speakers 69 must be from 2 to 68"):
        synthetic.names(speakers=69, clips=100)
    with pytest.raises(InputError, match="clips 3 must be from"):
        synthetic.names(speakers=2, clips=3)

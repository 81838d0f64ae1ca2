import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from fedser_utils.core import runs
from fedser_utils.core.errors import InputError
from fedser_utils.data import corpora, readers
from fedser_utils.data.federation import federate, federation_of, load_federation, split


def test_demos_is_split_as_in_the_paper(speech):
    names = (speech / "demos_file_names.txt").read_text().split()
    clips, _ = readers.read_names(names, reader="demos")
    for seed in (0, 1):
        parts = split(clips, how="speaker_dependent", seed=seed)
        assert parts.value_counts().to_dict() == {"train": 7491, "test": 1874}
    assert clips.loc[parts == "train", "speaker"].nunique() == 68


def test_split_depends_on_the_seed_alone():
    clips = pd.DataFrame({"clip": [f"c{i:03d}" for i in range(60)], "speaker": [*"abc"] * 20})
    one = split(clips, how="speaker_dependent", seed=0)
    again = split(clips.sample(frac=1, random_state=1), how="speaker_dependent", seed=0)
    pd.testing.assert_series_equal(one, again.sort_index())
    assert not one.equals(split(clips, how="speaker_dependent", seed=1))
    assert (one == "test").groupby(clips["speaker"]).sum().tolist() == [4, 4, 4]


def test_speaker_independent_holds_out_speakers():
    clips = pd.DataFrame({"clip": [f"c{i}" for i in range(50)], "speaker": [*"abcdefghij"] * 5})
    parts = split(clips, how="speaker_independent", seed=0)
    by_speaker = parts.groupby(clips["speaker"]).nunique()
    assert (by_speaker == 1).all()
    assert (parts == "test").sum() == 10


def test_tensors_are_standardised_and_labelled(speakers4):
    federation = speakers4
    x, y = federation.tensors(federation.table("train"))
    assert x.shape[1:] == (1, 373, 64)
    np.testing.assert_allclose(x.mean((0, 1, 2)).numpy(), 0, atol=1e-3)
    np.testing.assert_allclose(x.std((0, 1, 2)).numpy(), 1, atol=1e-3)
    table = federation.table("train")
    assert [federation.classes[i] for i in y] == table["emotion"].tolist()
    assert set(federation.clients) == set(table["speaker"])


def test_too_small_a_corpus_is_refused(federation, tiny):
    small = federation.corpus.clips.groupby("speaker").head(2)
    corpus = corpora.Corpus(federation.corpus.root, "demos", small, federation.classes, None)
    with pytest.raises(InputError, match="too small for split 'speaker_dependent'"):
        federate(corpus, tiny)


def test_pooled_clips_are_one_clients_and_all_else_is_the_same(tiny, federation):
    pooled = load_federation(dataclasses.replace(tiny, clients="pooled"))
    assert pooled.clients == ("pooled",)
    assert len(pooled.table("train", "pooled")) == len(federation.table("train"))
    assert pooled.clips["split"].equals(federation.clips["split"])
    assert (pooled.mean == federation.mean).all()
    assert (pooled.std == federation.std).all()


def test_validation_clips_are_training_clips_of_every_speaker(federation):
    chosen = federation.validation_clips(share=0.2, seed=0)
    assert set(chosen["split"]) == {"train"}
    assert set(chosen["speaker"]) == set(federation.clients)
    assert chosen.index.is_unique
    assert len(chosen) == pytest.approx(0.2 * len(federation.table("train")), abs=3)
    assert not chosen.equals(federation.validation_clips(share=0.2, seed=1))


@pytest.fixture(scope="module")
def two_corpora(tmp_path_factory, speech_like):
    """Two folders with recordings that differ by their level, one speaker each way twice."""
    return speech_like(tmp_path_factory.mktemp("two"), loud=0.5, quiet=0.01)


@pytest.mark.parametrize("by", ["all", "corpus", "client"])
def test_each_group_is_standardised_by_its_own_statistics(tiny, two_corpora, by):
    settings = dataclasses.replace(tiny, corpus=two_corpora, standardisation=by)
    data = load_federation(settings)
    assert set(data.clips["corpus"]) == {"loud", "quiet"}
    column = {"all": "split", "corpus": "corpus", "client": "client"}[by]
    for _, rows in data.table("train").groupby(column):
        x, _ = data.tensors(rows)
        np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=2e-3)
        np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=2e-2)
    loud, quiet = (data.tensors(rows)[0].mean() for _, rows in data.clips.groupby("corpus"))
    assert (loud - quiet > 0.5) == (by == "all")
    index = data.clips.index[-1]
    heard = data.input_transform(index)(data.waveform(index))
    torch.testing.assert_close(heard, data.tensors(data.clips.loc[[index]])[0], atol=1e-4, rtol=0)


def test_equal_levels_take_the_difference_of_levels_away(tiny, two_corpora):
    data = load_federation(dataclasses.replace(tiny, corpus=two_corpora, level="rms"))
    loud, quiet = (data.tensors(rows)[0].mean() for _, rows in data.clips.groupby("corpus"))
    assert abs(loud - quiet) < 0.2


def test_clips_of_a_speaker_put_aside_are_standardised_by_themselves(tiny, two_corpora):
    settings = dataclasses.replace(
        tiny, corpus=two_corpora, standardisation="client", split="speaker_independent"
    )
    data = load_federation(settings)
    x, _ = data.tensors(data.table("test"))
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=2e-3)


def test_a_federation_may_be_thinned(tiny, two_corpora):
    data = load_federation(dataclasses.replace(tiny, corpus=two_corpora, clips_per_speaker=4))
    assert (data.clips.groupby("speaker").size() == 4).all()
    assert (data.clips.groupby("speaker")["emotion"].nunique() == 2).all()
    assert (
        data.corpus.fingerprint
        != load_federation(dataclasses.replace(tiny, corpus=two_corpora)).corpus.fingerprint
    )


def test_other_partitions_deal_the_same_clips_out(tiny, federation):
    settings = dataclasses.replace(tiny, partition="dirichlet", skew_alpha=0.3, client_count=5)
    data = load_federation(settings)
    assert data.clients == tuple(f"client-{i:02d}" for i in range(5))
    assert data.clips["split"].equals(federation.clips["split"])
    assert (data.mean == federation.mean).all()
    assert sum(len(data.table("train", client)) for client in data.clients) == len(
        federation.table("train")
    )


def test_a_run_on_another_corpus_than_there_is_now_is_refused(tiny, tmp_path):
    """As after a change of the embedded corpus's synthesiser, under the same file names."""
    settings = dataclasses.replace(tiny, outputs=str(tmp_path))
    former = runs.open_run(settings, "0ld", device="cpu")
    with pytest.raises(InputError, match="was trained on a corpus with fingerprint 0ld; 'synth"):
        federation_of(former)
    fingerprint = load_federation(settings).corpus.fingerprint
    now = runs.open_run(settings, fingerprint, device="cpu")
    assert federation_of(now).corpus.fingerprint == fingerprint

"""Readers, manifests and refusals, on names alone and on small files."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from fedser_utils.core.errors import InputError
from fedser_utils.data import readers
from fedser_utils.data.corpora import load_corpora, load_corpus, subsample
from fedser_utils.data.readers import READERS


def make(root, *names, rate=16_000):
    """Short files, each with sound of its own."""
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).normal(0, 0.1, rate // 4)
        soundfile.write(path, noise, rate)
    return root


@pytest.mark.parametrize(
    ("reader", "stem", "speaker", "gender", "emotion"),
    [
        ("demos", "NP_m_10_col00a", "10", "m", "guilt"),
        ("demos", "PR_f_01_sor12b", "01", "f", "surprise"),
        ("demos", "f_07_tri03", "07", "f", "sadness"),
        ("demos", "m_07_neu03", "07", "m", None),
        ("emovo", "gio-f2-b3", "f2", "f", "happiness"),
        ("emovo", "neu-m1-n4", "m1", "m", "neutral"),
        ("emodb", "03a01Fa", "03", "m", "happiness"),
        ("emodb", "16b10Wb", "16", "f", "anger"),
        ("ravdess", "03-01-06-01-02-01-12", "12", "f", "fear"),
        ("ravdess", "03-02-06-01-02-01-11", "11", "m", None),
        ("cremad", "1001_DFA_ANG_XX", "1001", None, "anger"),
        ("cremad", "1076_MTI_SAD_HI", "1076", None, "sadness"),
        ("nemo", "EB0_surprised_13", "EB0", None, "surprise"),
    ],
)
def test_names_are_parsed(reader, stem, speaker, gender, emotion):
    parts = READERS[reader].parse(stem)
    assert parts == {"speaker": speaker, "gender": gender, "emotion": emotion}
    assert [key for key, other in READERS.items() if other.parse(stem)] == [reader]


def test_names_of_demos_give_table_2(speech):
    names = (speech / "demos_file_names.txt").read_text().split()
    assert readers.recognise(names) == "demos"
    clips, rejected = readers.read_names(names, reader="demos")
    assert len(clips) == 9365
    assert rejected.empty
    totals = {"anger": 1477, "disgust": 1678, "fear": 1156, "guilt": 1129, "happiness": 1395}
    assert clips["emotion"].value_counts().to_dict() == totals | {"sadness": 1530, "surprise": 1000}
    genders = clips.groupby("speaker")["gender"].agg(["first", "nunique"])
    assert genders["first"].value_counts().to_dict() == {"m": 45, "f": 23}
    assert (genders["nunique"] == 1).all()


@pytest.mark.parametrize(
    ("folder", "reader", "clips", "speakers", "classes"),
    [("emovo", "emovo", 588, 6, 7), ("ravdess", "ravdess", 1440, 24, 8)],
)
def test_real_corpora(speech, folder, reader, clips, speakers, classes):
    corpus = load_corpus(speech / folder)
    assert corpus.reader == reader
    assert len(corpus.clips) == clips
    assert corpus.clips["speaker"].nunique() == speakers
    assert len(corpus.classes) == classes
    assert corpus.rejected.empty
    assert corpus.clips["seconds"].between(0.5, 20).all()


def test_what_does_not_fit_is_listed_with_its_reason(tmp_path, caplog):
    good = [f"DEMOS/NP_m_0{s}_{e}0{n}a.wav" for s in (1, 2) for e in ("col", "gio") for n in (0, 1)]
    make(tmp_path, *good, "DEMOS/NP_m_01_xyz00a.wav", "NEU/m_01_neu00.wav", "DEMOS/notes.wav")
    soundfile.write(tmp_path / "DEMOS" / "NP_m_01_col09a.wav", np.zeros(4000), 16_000)
    (tmp_path / "DEMOS" / "NP_m_01_col08a.wav").write_bytes(b"RIFF")
    corpus = load_corpus(tmp_path)
    assert sorted(corpus.clips["clip"]) == sorted(good)
    reasons = dict(corpus.rejected.itertuples(index=False))
    assert len(reasons) == 5
    assert "pattern of demos" in reasons["DEMOS/NP_m_01_xyz00a.wav"]
    assert "pattern of demos" in reasons["DEMOS/notes.wav"]
    assert "neutral" in reasons["NEU/m_01_neu00.wav"]
    assert reasons["DEMOS/NP_m_01_col09a.wav"] == "silent"
    assert "cannot be decoded" in reasons["DEMOS/NP_m_01_col08a.wav"]
    assert "1 clips rejected: silent" in caplog.text


def test_other_rates_and_endings(tmp_path):
    names = [f"{s:02d}a0{i}{e}a.flac" for s in (3, 8) for e in "WF" for i in (1, 2)]
    corpus = load_corpus(make(tmp_path, *names, rate=44_100))
    assert corpus.reader == "emodb"
    assert corpus.classes == ("anger", "happiness")
    assert corpus.clips["seconds"].round(3).unique() == [0.25]


def test_a_manifest_describes_anything_else(tmp_path):
    names = [f"s{i}.wav" for i in range(8)]
    make(tmp_path, *names)
    table = pd.DataFrame({"Path": names, " speaker": [*"aabbaabb"], "emotion": [*"xxxxyyyy"]})
    table.loc[8] = ["s7.wav", "a", "x"]
    table.loc[9] = ["s6.wav", None, "x"]
    table.loc[10] = ["gone.wav", "a", "x"]
    table.to_csv(tmp_path / "manifest.csv", index=False)
    for root in (tmp_path, tmp_path / "manifest.csv"):
        corpus = load_corpus(root)
        assert corpus.reader == "manifest"
        assert corpus.classes == ("x", "y")
        assert len(corpus.clips) == 8
        reasons = set(corpus.rejected["reason"])
        assert "listed twice" in reasons
        assert "path, client or label is missing" in reasons
        assert any(reason.startswith("cannot be opened") for reason in reasons)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "holds no .wav, .flac, .mp3 file"),
        (["a.wav", "b.wav"], "no file name (such as 'a') has the pattern of demos, emovo"),
        (["dis-f1-b1.wav", "gio-f1-b1.wav"], "has one speaker (f1)"),
        (["dis-f1-b1.wav", "dis-f2-b1.wav"], "has one class (disgust)"),
        (["dis-f1-b1.wav", "dis-f2-b1.wav", "gio-f2-b1.wav"], "class happiness has one clip"),
    ],
)
def test_no_experiment_is_possible(tmp_path, names, words):
    make(tmp_path, *names)
    with pytest.raises(InputError) as refusal:
        load_corpus(tmp_path)
    assert words in str(refusal.value)


def test_bad_manifests_and_readers(tmp_path):
    make(tmp_path, "a.wav")
    with pytest.raises(InputError, match="does not exist"):
        load_corpus(tmp_path / "nowhere")
    with pytest.raises(InputError, match="reader 'demo' is unknown; choose from demos, emovo"):
        load_corpus(tmp_path, reader="demo")
    (tmp_path / "manifest.csv").write_text("path,emotion\na.wav,x\n")
    with pytest.raises(InputError, match="has no column speaker"):
        load_corpus(tmp_path)


def test_equal_corpora_have_equal_fingerprints(tmp_path):
    names = [f"{e}-{s}-b{i}.wav" for e in ("dis", "gio") for s in ("f1", "m1") for i in (1, 2)]
    one, two = (load_corpus(make(tmp_path / name, *names)) for name in ("one", "two"))
    assert one.fingerprint == two.fingerprint
    Path(tmp_path / "two" / names[0]).unlink()
    assert load_corpus(tmp_path / "two").fingerprint != one.fingerprint


def emovo_like(root, *codes):
    names = [f"{code}-{s}-b{i}.wav" for code in codes for s in ("f1", "m1") for i in (1, 2)]
    return make(root, *names)


def manifest(root, labels, *, columns=("path", "speaker", "label")):
    """A folder with two clips of each label by each of two speakers, listed."""
    rows = [(f"{s}-{y}-{i}.wav", s, y) for s in "AB" for y in labels for i in (1, 2)]
    make(root, *(path for path, *_ in rows), rate=8_000)
    pd.DataFrame(rows, columns=columns).to_csv(root / "manifest.csv", index=False)
    return root


def test_several_corpora_have_one_vocabulary(tmp_path, caplog):
    places = {
        "it": emovo_like(tmp_path / "a" / "it", "gio", "rab", "sor"),
        "en": manifest(tmp_path / "en", ["Joy", "angry", "calm", "boredom"]),
    }
    corpus = load_corpora(places)
    assert corpus.classes == ("anger", "happiness")
    assert corpus.name == "en + it"
    assert corpus.clips.groupby("corpus")["language"].unique().map(list).to_dict() == {
        "en": [""], "it": ["Italian"]
    }  # fmt: skip
    assert set(corpus.clips["speaker"]) == {"en-A", "en-B", "it-f1", "it-m1"}
    assert corpus.clips["clip"].str.split("/").str[0].equals(corpus.clips["corpus"])
    assert all((corpus.root / path).is_file() for path in corpus.clips["path"])
    left_out = corpus.rejected["reason"].value_counts().to_dict()
    assert left_out == {
        "class boredom is left out where corpora are joined": 4,
        "class calm is left out where corpora are joined": 4,
        "class surprise is not of all corpora": 4,
    }
    assert "4 clips rejected: class calm is left out where corpora are joined" in caplog.text
    assert "the lower ones lack high bands: 8 of 16000 Hz, 8 of 8000 Hz" in caplog.text
    every = load_corpora(places, classes="all")
    assert every.classes == ("anger", "boredom", "calm", "happiness", "surprise")
    assert "4 speakers have no clip of some class, such as en-A: surprise" in caplog.text


def test_names_may_be_the_same_in_several_corpora(tmp_path):
    places = {name: emovo_like(tmp_path / name, "gio", "rab") for name in ("one", "two")}
    corpus = load_corpora(places)
    assert corpus.clips["clip"].is_unique
    assert corpus.clips["speaker"].nunique() == 4
    assert len(corpus.clips) == 16


def test_corpora_that_share_nothing_are_refused(tmp_path):
    places = {
        "it": emovo_like(tmp_path / "it", "gio", "rab"),
        "pumps": manifest(
            tmp_path / "pumps", ["healthy", "leak"], columns=["path", "machine", "state"]
        ),
    }
    with pytest.raises(InputError) as refusal:
        load_corpora(places)
    assert str(refusal.value) == (
        "corpora it, pumps share 0 classes, not two or more: it has anger, happiness; "
        "pumps has healthy, leak"
    )


@pytest.mark.parametrize(
    "columns", [("path", "client", "class"), ("path", "Machine", "fault"), ("path", "speaker", "x")]
)
def test_a_manifest_needs_no_emotions(tmp_path, columns):
    corpus = load_corpus(manifest(tmp_path, ["healthy", "leak"], columns=columns))
    assert corpus.classes == ("healthy", "leak")
    assert set(corpus.clips["speaker"]) == {"A", "B"}


def test_a_label_that_could_be_two_columns_is_refused(tmp_path):
    manifest(tmp_path, ["healthy", "leak"], columns=("path", "machine", "fault"))
    table = pd.read_csv(tmp_path / "manifest.csv").assign(load=1)
    table.to_csv(tmp_path / "manifest.csv", index=False)
    with pytest.raises(
        InputError, match=r"has no column emotion or label or class; .* has path, mach"
    ):
        load_corpus(tmp_path)


def test_folders_may_say_client_and_class(tmp_path):
    names = [
        f"fan/id_0{i}/{y}/{k}.wav" for i in (0, 2) for y in ("normal", "abnormal") for k in (0, 1)
    ]
    make(tmp_path, *names, "loose/0.wav")
    with pytest.raises(
        InputError, match=r"or, if the files lie in \.\.\./client/class/, give reader folders"
    ):
        load_corpus(tmp_path)
    corpus = load_corpus(tmp_path, reader="folders")
    assert corpus.classes == ("abnormal", "normal")
    assert set(corpus.clips["speaker"]) == {"fan-id_00", "fan-id_02"}
    assert list(corpus.rejected["clip"]) == ["loose/0.wav"]


def test_thinning_takes_as_evenly_as_it_can(tmp_path):
    corpus = load_corpus(emovo_like(tmp_path, "gio", "rab", "tri"))
    few = subsample(corpus, 4)
    counts = pd.crosstab(few.clips["speaker"], few.clips["emotion"])
    assert (counts.sum(axis=1) == 4).all()
    assert counts.to_numpy().min() == 1
    assert few.fingerprint != corpus.fingerprint
    assert subsample(corpus, 100).clips.equals(corpus.clips)


def test_two_real_corpora_make_one_federation(speech):
    corpus = load_corpora({name: speech / name for name in ("emovo", "ravdess")})
    assert corpus.clips["speaker"].nunique() == 30
    assert len(corpus.clips) == 588 + 1440 - 192
    assert corpus.clips.groupby("language")["speaker"].nunique().to_dict() == {
        "English": 24, "Italian": 6
    }  # fmt: skip
    assert corpus.classes == (
        "anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"
    )  # fmt: skip

"""A study's results from its runs' folders, and the files written of them."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fedser_utils import analysis
from fedser_utils.analysis import figures, metrics
from fedser_utils.core import runs
from fedser_utils.core.errors import InputError
from fedser_utils.core.presets import load_settings


@pytest.fixture
def settings(tmp_path):
    """A study of two seeds, 4 test clips of two corpora, whose second seed is always right."""
    settings = load_settings("smoke", outputs=str(tmp_path))
    clips = pd.DataFrame(
        {"clip": [*"pqrs"], "emotion": [*"xyxy"], "split": "test", "client": [*"aabb"],
         "corpus": ["one", "one", "two", "two"], "language": ""}
    )  # fmt: skip
    clips = pd.concat([clips, clips.assign(clip=[*"PQRS"], split="train")], ignore_index=True)
    for seed in (0, 1):
        run = f"smoke-nature-s{seed}"
        config = {
            "run": run, "study": "smoke", "model": "nature", "setting": "abcd", "device": "A CPU",
            "fingerprint": "f", "bf16": False, "commit": "abc", "started": f"2026-01-0{seed + 1}",
            "settings": settings.values() | {"seed": seed},
        }  # fmt: skip
        (tmp_path / run).mkdir()
        (tmp_path / run / "config.json").write_text(json.dumps(config))
        (tmp_path / run / "model.safetensors").touch()
        rows = clips[clips["split"] == "test"][["clip", "emotion", "client"]].assign(
            run=run, model="nature", round=2, attack="none", condition="original", draw=0,
            y_pred=[*"xyxy"] if seed else [*"xyyx"],
        )  # fmt: skip
        written = runs.Run(tmp_path / run, config)
        written.write("clips.parquet", clips)
        rows = rows.rename(columns={"emotion": "y_true", "client": "speaker"})
        written.write("predictions.parquet", rows)
        written.write("rounds.csv", pd.DataFrame({"round": [2], "uar": [50.0 + 50 * seed]}))
    return settings


def test_a_study_is_read_with_its_origin(settings):
    results = analysis.read_study(settings)
    assert results.predictions["seed"].tolist() == [0] * 4 + [1] * 4
    assert results.rounds["uar"].tolist() == [50, 100]
    assert results.terms == ("class", "client")
    assert results.hardware == {"processor": "A CPU", "precision": "fp32"}
    assert results.caption == (
        "Study smoke on corpus synthetic: 2 clients, n = 4 test clips, 2 rounds, 2 runs, "
        "mean of seeds 0, 1, trained on A CPU in fp32."
    )
    assert "smoke-nature-s0, smoke-nature-s1; made with abc" in results.origin
    with pytest.raises(InputError, match="study 'smoke' has no complete run"):
        analysis.read_study(load_settings("smoke", outputs=settings.outputs + "/none"))


def test_a_table_is_written_with_its_hardware_and_its_caption(settings):
    results = analysis.read_study(settings)
    table = analysis.table3(results.predictions)
    assert analysis.save_table(results, table, "table3", "UAR.").equals(table)
    written = pd.read_csv(results.folder / "table3.csv")
    assert written["uar"].tolist() == [75]
    assert written[["processor", "precision"]].to_numpy().tolist() == [["A CPU", "fp32"]]
    assert "UAR. Study smoke on corpus" in (results.folder / "table3.tex").read_text()
    counts = analysis.table2(results.clips)
    analysis.save_table(results, counts, "table2", "Clips.", label="clips", hardware=False)
    assert list(pd.read_csv(results.folder / "table2.csv")) == ["class", "train", "test", "sum"]
    assert r"\label{tab:clips}" in (results.folder / "table2.tex").read_text()
    analysis.save_table(results, table[:0], "nothing", "Nothing.")
    assert not [*results.folder.glob("nothing.*")]


def test_several_corpora_have_a_row_each(settings):
    results = analysis.read_study(settings)
    table = analysis.uar_by_corpus(results).set_index("name")["uar"]
    assert table["one"] == 100
    assert table["two"] == 50  # right with the second seed only
    alone = results.clips.assign(corpus="one")
    one = {**vars(results), "clips": alone}
    assert analysis.uar_by_corpus(type(results)(**one)).empty


def test_the_stored_example_is_read(settings):
    results = analysis.read_study(settings)
    assert analysis.read_examples(results) == {}
    image = np.ones((3, 2), np.float32)
    runs.save_arrays(results.folder / "examples.safetensors", {"original": image})
    assert analysis.read_examples(results)["original"].shape == (3, 2)


def test_a_summary_by_hand():
    rows = pd.DataFrame(
        {"seed": [0, 0, 1, 1, 1, 1], "draw": [0, 0, 0, 0, 1, 1], "speaker": [*"ababab"],
         "y_true": [*"xyxyxy"], "y_pred": [*"xyxxxy"]}
    )  # fmt: skip
    row = metrics.summary(rows, seed="seed")
    assert (row["n"], row["speakers"], row["seeds"]) == (2, 2, 2)
    assert row["uar"] == (100 + (50 + 100) / 2) / 2
    assert metrics.mean_interval([3.0] * 5) == (3, 3)
    low, high = metrics.mean_interval([0.0, 1.0] * 50)
    assert 0.3 < low < 0.5 < high < 0.7


def test_a_difference_of_confusion_matrices():
    names = ["x", "y", "z"]
    first, second = (
        pd.DataFrame(counts, index=names, columns=names)
        for counts in ([[3, 1, 0], [0, 2, 2], [0, 0, 0]], [[2, 2, 0], [0, 2, 2], [0, 0, 0]])
    )
    texts = []
    for minus in (None, second):
        figure, axes = plt.subplots()
        figures.confusion_matrix(axes, first, minus, names=[*"abc"])
        texts.append([text.get_text() for text in axes.texts])
        assert [label.get_text() for label in axes.get_yticklabels()] == [*"abc"]
        plt.close(figure)
    assert texts[0] == ["75\n(3)", "25\n(1)", "0\n(0)", "0\n(0)", "50\n(2)", "50\n(2)"] + 3 * [
        "–\n(0)"
    ]
    assert texts[1] == ["+25", "−25", "0", "0", "0", "0", "–", "–", "–"]

import shutil
import subprocess

import pandas as pd
import pytest

from fedser_utils.analysis import comparisons, diagrams, figures, labels, tables
from fedser_utils.core import runs
from fedser_utils.core.count_tables import clips_from_counts
from fedser_utils.data import synthetic_machines
from fedser_utils.data.readers import READERS


@pytest.fixture
def predictions():
    """Three rounds of a nature and a PGD-trained model, two classes, ten clips."""
    rows = []
    rights = {"original": 9, "randomised": 8, "adversarial": 2, "randomised_adversarial": 5}
    for model, attacks in (("nature", ("fgsm", "pgd", "deepfool")), ("pgd", ("pgd",))):
        for number in (1, 2, 3):
            for attack in ("none", *attacks):
                for condition in list(rights)[:2] if attack == "none" else list(rights)[2:]:
                    right = min(10, rights[condition] + 3 * (model == "pgd")) - (number < 3)
                    rows += [
                        (f"study-{model}", model, number, attack, condition, 0, f"c{i}",
                         f"s{i % 3}", "anger" if i % 2 else "guilt",
                         "anger" if (i % 2) == (i < right) else "guilt")
                        for i in range(10)
                    ]  # fmt: skip
    columns = ["run", "model", "round", "attack", "condition", "draw", "clip", "speaker"]
    return pd.DataFrame(rows, columns=[*columns, "y_true", "y_pred"]).assign(seed=0)


@pytest.fixture
def several(predictions):
    """The same with a second seed, whose nature model is always right, and with centralised
    models, one of them of an unknown kind."""
    second = predictions.assign(seed=1, run=predictions["run"] + "-s1")
    second["y_pred"] = second["y_pred"].where(second["model"] == "pgd", second["y_true"])
    nature = predictions[predictions["model"] == "nature"]
    extra = [nature.assign(model=m, run=m) for m in ("new", "centralised-pgd", "centralised")]
    return pd.concat([second, *extra, predictions], ignore_index=True)


def test_table_2():
    clips = pd.DataFrame(
        {"emotion": [*"aab"], "split": ["train", "test", "train"], "speaker": [*"xyz"]}
    )
    found = tables.table2(clips).set_index("class")
    assert found.loc["a"].tolist() == [1, 1, 2]
    assert found.loc["b"].tolist() == [1, 0, 1]
    assert found.loc["sum"].tolist() == [2, 1, 3]
    clips["emotion"] = ["anger", "anger", "fear"]
    assert list(tables.table2(clips).columns) == ["emotion", "train", "test", "sum"]


def test_words_follow_the_labels():
    known = {name for reader in READERS.values() for name in reader.emotions.values() if name}
    assert labels.terms(known) == ("emotion", "speaker")
    for classes in (synthetic_machines.LABELS, ["anger", "healthy"], "ab"):
        assert labels.terms(classes) == ("class", "client")


@pytest.mark.parametrize(
    ("classes", "box", "row"),
    [
        (["anger", "fear"], "emotion", "client (one speaker),"),
        (["healthy", "looseness"], "class", "client, and its clips"),
    ],
)
def test_pictures_say_what_the_labels_are(several, classes, box, row):
    words = labels.terms(classes)
    said = [text.get_text() for text in diagrams.framework(words).axes[0].texts]
    assert {"emotion", "class"} & set(said) == {box}
    assert row in diagrams.notation(words)
    assert ("emotions;" if box == "emotion" else "classes;") in diagrams.notation(words)
    each = comparisons.by_speaker(several)
    (legend,) = figures.speakers(each, client=words.client).legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[:2] == [f"a {words.client}", f"mean over {words.client}s"]


def test_table_3_is_the_last_round_with_the_papers_numbers(predictions):
    table = tables.table3(predictions)
    assert list(table.columns) == [
        "model", "attack", "condition", "uar", "deviation", "ci_low", "ci_high", "n", "seeds",
        "paper_uar", "difference",
    ]  # fmt: skip
    assert len(table) == 8 + 4
    uar = table.set_index(["model", "attack", "condition"])
    assert uar.loc[("nature", "none", "original"), "uar"] == 90
    assert uar.loc[("nature", "pgd", "adversarial"), "uar"] == 20
    assert uar.loc[("pgd", "pgd", "adversarial"), "uar"] == 50
    assert uar.loc[("nature", "deepfool", "randomised_adversarial"), "paper_uar"] == 71.34
    assert uar.loc[("pgd", "none", "original"), "paper_uar"] == 95.40
    assert uar.loc[("pgd", "pgd", "randomised_adversarial"), "paper_uar"] == 89.20
    assert (table["n"] == 10).all()
    assert ((table["ci_low"] <= table["uar"]) & (table["uar"] <= table["ci_high"])).all()
    assert table["deviation"].isna().all()
    assert uar.loc[("nature", "none", "original"), "difference"] == pytest.approx(90 - 94.08)


def test_table_3_over_seeds_and_with_other_models(several):
    table = tables.table3(several)
    assert list(table["model"].unique()) == [
        "nature", "pgd", "centralised", "centralised-pgd", "new"
    ]  # fmt: skip
    nature = table[table["model"] == "nature"]
    assert list(nature["attack"].unique()) == ["none", "fgsm", "pgd", "deepfool"]
    first = nature.iloc[0]
    assert (first["seeds"], first["n"], first["uar"]) == (2, 10, 95)
    assert first["deviation"] == pytest.approx(50**0.5)  # of 90 and 100
    others = table[~table["model"].isin(labels.MODELS)]
    assert others[["paper_uar", "difference", "deviation"]].isna().all(axis=None)


NASTY = r"50 % of_all & {more} #1 $5 ~x^2 a\b"


def test_latex_compiles(several, tmp_path):
    clips = pd.DataFrame({"emotion": ["a_b"], "split": ["train"], "speaker": ["x"]})
    made = {
        "clips": tables.table2(clips),
        "gains": comparisons.gains(several),
        "centralised": comparisons.centralised(several),
        "speakers": comparisons.speakers(comparisons.by_speaker(several)),
        "empty": pd.DataFrame({NASTY: [float("nan")], "p_z": [0.0001], "text": [NASTY]}),
    }
    texts = {name: tables.latex(t, caption=NASTY, label=name) for name, t in made.items()}
    texts["uar"] = tables.table3_latex(tables.table3(several), caption=NASTY)
    assert texts["uar"].count(r"\\") == 1 + 2 * (4 + 4)  # ours and the paper's; no centralised
    assert r"95.00 $\pm$ 7.07" in texts["uar"]
    assert "94.08" in texts["uar"]
    assert "-- & $<$0.001" in texts["empty"]
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    text = r"\documentclass{article}\begin{document}" + "".join(texts.values())
    (tmp_path / "t.tex").write_text(text + r"\end{document}")
    command = ["pdflatex", "-halt-on-error", "t.tex"]
    done = subprocess.run(
        command, cwd=tmp_path, stdin=subprocess.DEVNULL, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_a_caption_states_what_it_must(several):
    clips = pd.DataFrame({"split": ["train", "train", "test"], "client": [*"xyx"]})
    clips["clip"] = [*"abc"]
    where = {"processor": "A CPU, AVX2", "precision": "fp32"}
    given = {"study": "demo-my", "corpus": "/some/where/my_corpus,/b/c", "hardware": where}
    found = tables.caption(several, clips, **given)
    assert found == (
        "Study demo-my on corpus my_corpus + c: 2 clients, n = 1 test clips, 3 rounds, 7 runs, "
        "mean of seeds 0, 1, trained on A CPU, AVX2 in fp32."
    )
    given = {"study": "demo", "corpus": "synthetic", "hardware": where}
    one = tables.caption(several[several["seed"] == 1], clips, **given)
    assert one.startswith("Study demo on corpus synthetic: ")
    counted = clips_from_counts({"x": {"joy": [1, 1]}})
    assert tables.caption(several, counted, **given).startswith("Study demo on its clients' rec")
    assert one.endswith(", 2 runs, seed 1, trained on A CPU, AVX2 in fp32.")


def test_figures_show_what_the_rows_say(predictions, tmp_path):
    rounds = predictions.assign(uar=50.0).drop_duplicates(["run", "round", "attack", "condition"])
    fig4 = figures.uar_by_round(rounds, caption="n = 10")
    lines = fig4.axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["Nature", "AdvTrain PGD"]
    assert lines[0].get_xdata().tolist() == [1, 2, 3]
    fig5 = figures.four_conditions(rounds)
    assert [len(axes.get_lines()) for axes in fig5.axes] == [2, 2, 4, 4]
    fig6 = figures.confusions(predictions)
    assert len(fig6.axes) == 1  # PGD, the one adversarially trained model
    texts = [t.get_text() for t in fig6.axes[0].texts]
    assert sum(int(t.split("(")[1][:-1]) for t in texts) == 10
    made = runs.Run(tmp_path / "demo-pgd-s0", {"commit": "abc+", "device": "A CPU", "bf16": False})
    for name, figure in (("fig4", fig4), ("fig5", fig5), ("fig6", fig6)):
        figures.save(figure, tmp_path, name, origin=runs.origin([made]))
    pdf = (tmp_path / "fig4.pdf").read_bytes()
    assert b"runs demo-pgd-s0; made with abc+ on A CPU, fp32; drawn with " in pdf
    assert b"/Type3" not in pdf  # journals refuse such fonts
    assert len(list(tmp_path.iterdir())) == 6


def test_figures_take_several_seeds_and_other_models(several):
    rounds = several.assign(uar=50.0).drop_duplicates(["run", "round", "attack", "condition"])
    fig4 = figures.uar_by_round(rounds)
    lines = fig4.axes[0].get_lines()
    names = ["Nature", "AdvTrain PGD", "Centralised", "Centralised AdvTrain PGD", "new"]
    assert [line.get_label() for line in lines] == names
    looks = [(x.get_color(), x.get_linestyle(), x.get_marker(), x.get_markersize()) for x in lines]
    assert len(set(looks)) == 5
    assert len(fig4.axes[0].collections) == 2  # bands, of the two models with two seeds
    assert len(figures.confusions(several).axes) == 1  # PGD, federated
    nature = several[several["model"] == "nature"]
    assert len(figures.confusions(nature).axes) == 3  # one for each attack
    each = comparisons.by_speaker(several)
    picture = figures.speakers(each, caption="n = 10")
    rows = [len(axes.get_yticks()) for axes in picture.axes]
    assert rows == [5, 5, 13, 13]
    # per row the speakers, their mean, and the worst
    speakers, mean, worst = picture.axes[0].get_lines()[:3]
    assert worst.get_xdata()[0] == min(speakers.get_xdata())
    assert mean.get_xdata()[0] == pytest.approx(sum(speakers.get_xdata()) / 3)

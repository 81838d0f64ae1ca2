import shutil
import subprocess

import pandas as pd
import pytest

from fedser_utils import figures, tables


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
    return pd.DataFrame(rows, columns=[*columns, "y_true", "y_pred"])


def test_table_2():
    clips = pd.DataFrame(
        {"emotion": [*"aab"], "split": ["train", "test", "train"], "speaker": [*"xyz"]}
    )
    found = tables.table2(clips).set_index("emotion")
    assert found.loc["a"].tolist() == [1, 1, 2]
    assert found.loc["b"].tolist() == [1, 0, 1]
    assert found.loc["sum"].tolist() == [2, 1, 3]


def test_table_3_is_the_last_round_with_the_papers_numbers(predictions):
    table = tables.table3(predictions)
    assert list(table.columns) == [
        "model", "attack", "condition", "uar", "ci_low", "ci_high", "n", "seeds", "paper_uar",
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


def test_gains(predictions):
    gains = tables.gains(tables.table3(predictions)).set_index(["model", "attack", "defence"])
    assert gains.loc[("pgd", "pgd", "adversarial training"), "gain"] == 30
    assert gains.loc[("nature", "pgd", "randomisation"), "gain"] == 30
    assert len(gains) == 5


def test_latex_compiles(predictions, tmp_path):
    text = tables.table3_latex(tables.table3(predictions), caption="50 % of_all & more")
    assert text.count(r"\\") == 1 + 4 + 4
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    document = rf"\documentclass{{article}}\begin{{document}}{text}\end{{document}}"
    (tmp_path / "t.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "t.tex"], cwd=tmp_path, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0


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
    for name, figure in (("fig4", fig4), ("fig5", fig5), ("fig6", fig6)):
        figures.save(figure, tmp_path, name, origin="runs x; commit y")
    assert b"runs x; commit y" in (tmp_path / "fig4.pdf").read_bytes()
    assert len(list(tmp_path.iterdir())) == 6

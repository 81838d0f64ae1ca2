"""The pictures of README and docs/: older than what they show, left as they were, or drawn."""

import importlib.util
import json
import re
import shutil
from datetime import UTC, datetime

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from fedser_utils.core.settings import ROOT

PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]


@pytest.fixture(scope="module")
def pictures():
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path, pictures, monkeypatch):
    """Empty folders in the place of notebooks, outputs and reference."""
    for name in ("notebooks", "outputs", "reference"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(pictures.study_plan, "NOTEBOOKS", tmp_path / "notebooks")
    return tmp_path


def write_notebook(path, *, text="# A page", code="plot()", **facts):
    notebook = new_notebook(cells=[new_markdown_cell(text), new_code_cell(code)])
    if facts:
        notebook.metadata.papermill = {"exception": None, **facts}
        injected = new_code_cell("x = 1", metadata={"tags": ["injected-parameters"]})
        notebook.cells.insert(1, injected)
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)
    return notebook


def executed_study(folder, name="demo", notebook="05_analysis", figures=("fig4.png",), **cells):
    """A study's figures, and papermill's copy of the notebook that drew them."""
    for figure in figures:
        path = folder / "outputs" / name / figure
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"new")
    copy = folder / "outputs" / name / "notebooks" / f"{notebook}.ipynb"
    write_notebook(copy, end_time=datetime.now(UTC).isoformat(), **cells)


def draw(pictures, folder):
    pictures.draw(folder / "outputs", folder / "reference")
    path = folder / "reference" / pictures.RECORDS
    return json.loads(path.read_text())


def outdated(pictures, folder, name):
    """What is said about one picture, by itself."""
    return pictures.outdated_pictures(
        folder / "reference", folder / "notebooks", {name: pictures.PICTURES[name]}
    )


def test_no_picture_is_older_than_the_notebook_it_shows(pictures):
    sentences = pictures.outdated_pictures()
    assert not sentences, "\n".join(sentences)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_pictures_of_a_page_are_drawn_by_the_command(path, pictures):
    for name in re.findall(r"\]\([./]*outputs/reference/([^)]+)\)", path.read_text()):
        assert name in pictures.PICTURES, path.name


def test_a_figure_is_as_old_as_the_code_that_drew_it(pictures, folder, capsys):
    source = folder / "notebooks" / "05_analysis.ipynb"
    write_notebook(source)
    executed_study(folder)
    records = draw(pictures, folder)
    assert list(records) == ["fig4.png"]
    assert (folder / "reference" / "fig4.png").read_bytes() == b"new"
    assert outdated(pictures, folder, "fig4.png") == []
    write_notebook(source, text="# A page with another title")
    assert outdated(pictures, folder, "fig4.png") == []
    write_notebook(source, code="plot(colour=red)")
    (sentence,) = outdated(pictures, folder, "fig4.png")
    assert sentence == "fig4.png is older than 05_analysis.ipynb, which it shows; run make pictures"
    draw(pictures, folder)  # the study is of the former code: drawing anew is not enough
    assert outdated(pictures, folder, "fig4.png") == [sentence]
    executed_study(folder, code="plot(colour=red)")
    draw(pictures, folder)
    assert outdated(pictures, folder, "fig4.png") == []


def test_a_figure_that_new_code_draws_the_same_is_declared_so(pictures, folder):
    source = folder / "notebooks" / "05_analysis.ipynb"
    write_notebook(source)
    executed_study(folder)
    first = draw(pictures, folder)["fig4.png"]["sha256"]
    for code in ("plot_it()", "plot_all()"):
        write_notebook(source, code=code)
        assert outdated(pictures, folder, "fig4.png")
        pictures.declare_unchanged("fig4.png", folder / "reference")
        assert outdated(pictures, folder, "fig4.png") == []
    record = json.loads((folder / "reference" / pictures.RECORDS).read_text())["fig4.png"]
    assert record["drawn_by"] == first != record["sha256"]
    executed_study(folder, code="plot_all()")
    assert draw(pictures, folder)["fig4.png"]["drawn_by"] == ""


def test_a_page_is_as_old_as_its_text(pictures, folder):
    source = folder / "notebooks" / "08_dashboard.ipynb"
    notebook, page = write_notebook(source), pictures.PICTURES["dashboard.png"]
    (folder / "reference" / "dashboard.png").write_bytes(b"")
    record = pictures.make_record(notebook, page)._asdict()
    (folder / "reference" / pictures.RECORDS).write_text(json.dumps({"dashboard.png": record}))
    assert outdated(pictures, folder, "dashboard.png") == []
    write_notebook(source, text="# A page with another title")
    (sentence,) = outdated(pictures, folder, "dashboard.png")
    assert sentence.startswith("dashboard.png is older than 08_dashboard.ipynb, which it shows")


def test_a_picture_without_record_source_or_command_is_noticed(pictures, folder):
    write_notebook(folder / "notebooks" / "05_analysis.ipynb")
    assert outdated(pictures, folder, "fig4.png") == ["fig4.png is missing; run make pictures"]
    for name in ("fig4.png", "odd.webp"):
        (folder / "reference" / name).write_bytes(b"")
    first, second = outdated(pictures, folder, "fig4.png")
    assert first.startswith("fig4.png is older than 05_analysis.ipynb")
    assert second.startswith("odd.webp is not among PICTURES")


def test_what_has_no_source_stays_and_is_named_in_a_line(pictures, folder, capsys):
    (folder / "reference" / "fig4.png").write_bytes(b"old")
    assert draw(pictures, folder) == {}
    lines = capsys.readouterr().out.splitlines()
    left = [line.split()[0] for line in lines if " left as it was: no " in line]
    assert sorted(left) == sorted([*pictures.PICTURES, *pictures.TABLES])
    assert lines[-1] == f"0 of {len(pictures.PICTURES)} pictures drawn"
    assert (folder / "reference" / "fig4.png").read_bytes() == b"old"


def test_a_figure_of_fewer_seeds_or_of_nobody_knows_what_stays(pictures, folder, capsys):
    executed_study(folder)
    pd.DataFrame({"seeds": [3]}).to_csv(folder / "reference" / "table3.csv")
    for seeds, drawn in ((1, []), (3, ["fig4.png"])):
        pd.DataFrame({"seeds": [seeds]}).to_csv(folder / "outputs" / "demo" / "table3.csv")
        assert list(draw(pictures, folder)) == drawn
    assert "fig4.png left as it was: demo has 1 seeds, the reference 3" in capsys.readouterr().out
    shutil.rmtree(folder / "outputs" / "demo" / "notebooks")
    draw(pictures, folder)
    assert "fig4.png left as it was: no executed copy of 05" in capsys.readouterr().out


def test_the_curves_of_several_corpora_are_of_such_a_study(pictures, folder):
    one = {"notebook": "07_heterogeneity", "figures": ["heterogeneity/learning.png"]}
    executed_study(folder, "demo", **one)
    assert draw(pictures, folder) == {}
    executed_study(folder, "demo-emovo+ravdess", **one)
    assert list(draw(pictures, folder)) == ["heterogeneity.png"]

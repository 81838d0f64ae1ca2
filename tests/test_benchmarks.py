"""The benchmarks' results are in order, and the README shows the newest of them."""

import ast
import importlib.util
import json

import pytest

from fedser_utils.config import ROOT

FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(p for p in FOLDER.glob("*.py") if p.stem not in ("report", "ceilings"))
RESULTS = sorted((FOLDER / "results").glob("*.json"))


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("report", FOLDER / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readmes_table_is_current(report):
    text = (ROOT / "README.md").read_text()
    shown = text.split(report.BEGIN)[1].split(report.END)[0]
    assert shown == f"\n{report.table()}\n", "run python benchmarks/report.py"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_opens_with_its_claim_and_can_be_quick(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)).startswith("Claim: ")
    assert f"python benchmarks/{path.name} [--quick]" in text


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_where_it_comes_from(path, report):
    result = json.loads(path.read_text())
    assert path.stem.startswith(f"{result['name']}-")
    assert path.stem.endswith(result["date"])
    assert (FOLDER / f"{result['name']}.py").exists()
    assert result["claim"].startswith("Claim: ")
    assert result["device"]
    assert result["versions"]["torch"]
    assert len(result["commit"].rstrip("+")) == 40
    for each in result["figures"]:
        assert each["key"].endswith(report.UNITS)
        assert each["how"] == "measured" or each["how"].startswith("extrapolated from ")


def test_only_the_newest_of_a_device_is_shown(report, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    for device, date, value in (("cpu", "2026-01-02", 2), ("cpu", "2026-01-01", 1),
                                ("h100", "2025-01-01", 3)):  # fmt: skip
        figures = [report.figure("train_clips_per_s", value, "Training"),
                   report.figure("train_percent", 5.0, "Training, of the ceiling")]  # fmt: skip
        found = {"name": "study", "device": device, "date": date, "figures": figures}
        (tmp_path / f"study-{device}-{date}.json").write_text(json.dumps(found))
    lines = report.table().splitlines()[2:]
    assert lines == [
        "| Training | 2 clips/s | measured | cpu, 2026-01-02, `study` |",
        "| Training | 3 clips/s | measured | h100, 2025-01-01, `study` |",
    ]


def test_a_figure_needs_a_unit(report):
    assert report.figure("study_minutes", 61.234, "A study")["value"] == 61.2
    assert report.figure("train_clips_per_s", 4512.7, "Training")["value"] == 4513
    with pytest.raises(ValueError, match="must end in one of clips_per_s"):
        report.figure("speed", 1.0, "Speed")

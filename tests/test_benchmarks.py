"""The benchmarks' result files are complete, and docs/performance.md shows the newest of them."""

import argparse
import ast
import dataclasses
import importlib.util
import json
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest

from fedser_utils.analysis.heterogeneity import interventions
from fedser_utils.core.presets import load_settings
from fedser_utils.core.settings import ROOT

FOLDER = ROOT / "benchmarks"
SCRIPTS = sorted(p for p in FOLDER.glob("*.py") if p.stem not in ("report", "ceilings"))
RESULTS = sorted((FOLDER / "results").glob("*.json"))


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("report", FOLDER / "report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_performance_is_current(report):
    text = (ROOT / "docs" / "performance.md").read_text()
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
    for line in result["figures"]:
        assert line["key"].endswith(report.UNITS)
        assert line["how"] == "measured" or line["how"].startswith("extrapolated from ")


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


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_runs_at_its_smallest(path, tmp_path, report):
    """As its docstring says, without any other argument and any earlier run, also where Ray is
    not (a result says which packages it had)."""
    command = [sys.executable, str(path), "--quick", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (written,) = tmp_path.glob("*.json")
    result = json.loads(written.read_text())
    assert (result["name"], result["quick"]) == (path.stem, True)
    assert result["rows"]
    assert all(each["key"].endswith(report.UNITS) for each in result["figures"])
    for row in result["rows"]:
        speeds = [v for key, v in row.items() if key.endswith("_per_s") and v is not None]
        assert all(speed > 0 for speed in speeds), row


def test_a_quick_benchmark_leaves_nothing_unless_it_is_told_where(report, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    save = partial(report.save, "study", "cpu", "Claim: x", [{"a": 1}], [])
    save(given=argparse.Namespace(quick=True, results=None))
    assert not (tmp_path / "results").exists()
    save(given=argparse.Namespace(quick=True, results=tmp_path / "here"))
    assert len(list((tmp_path / "here").glob("study-cpu-*.json"))) == 1


def test_a_result_is_saved_where_a_package_is_absent(report, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MODULES", {"ray": "no_such_module"})
    given = argparse.Namespace(quick=True, results=tmp_path)
    report.save("study", "cpu", "Claim: x", [{"a": 1}], [], given=given)
    (written,) = tmp_path.iterdir()
    versions = json.loads(written.read_text())["versions"]
    assert "torch" in versions
    assert "ray" not in versions


def test_a_figure_needs_a_unit(report):
    assert report.figure("study_minutes", 61.234, "A study")["value"] == 61.2
    assert report.figure("train_clips_per_s", 4512.7, "Training")["value"] == 4513
    with pytest.raises(ValueError, match="must end in one of clips_per_s"):
        report.figure("speed", 1.0, "Speed")


def test_runs_are_told_apart_by_their_intervention(monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    heterogeneity = importlib.import_module("heterogeneity")
    given = load_settings("smoke")
    names = ["group norm", "as given", "FedProx", "as given"]
    made = [dataclasses.replace(interventions.apply(given, n), seed=i) for i, n in enumerate(names)]
    made.append(dataclasses.replace(given, rounds=5))
    runs = [SimpleNamespace(id=str(i), settings=own) for i, own in enumerate(made)]
    found = heterogeneity.by_intervention(runs)
    assert list(found) == ["as given", "FedProx", "group norm"]
    assert [run.id for run in found["as given"]] == ["1", "3"]
    assert capsys.readouterr().out == "left out, no intervention: 4 (rounds 5)\n"


def test_a_result_is_filed_under_the_device_of_its_rows(report, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    given = argparse.Namespace(quick=False, results=None)
    save = partial(report.save, "study", "cpu", "Claim: x", [{"a": 1}], [])
    save(given=given, made_on="NVIDIA H100 80GB")
    path = next(tmp_path.glob("study-nvidia-h100-80gb-*.json"))
    assert json.loads(path.read_text())["device"] == "NVIDIA H100 80GB"

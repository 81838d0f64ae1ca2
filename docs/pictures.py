"""Draw the pictures of README and docs/ from an outputs folder; missing sources are named.

    python docs/pictures.py [outputs]      # make pictures
    python docs/pictures.py --unchanged heterogeneity.png

Figures and tables are copied from studies, pictures of widgets are drawn in Chromium by
tests/browser. ``outputs/reference/pictures.json`` records the notebook that each picture shows and
the SHA-256 of that notebook's cells: of its code for a figure, which a sentence does not change, of
all its text for a picture of the page itself. What has no source stays as it was. Where a notebook
has new code that draws the same figure, and the study takes hours, ``--unchanged`` records that
somebody says so, beside the digest of the code that drew it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import pandas as pd

from fedser_utils.core.runs import write_text
from fedser_utils.core.settings import ROOT
from fedser_utils.workbook.study import run_status, study_plan

REFERENCE = ROOT / "outputs" / "reference"
RECORDS = "pictures.json"
COMMAND = "make pictures"


class Picture(NamedTuple):
    """notebook: the one that the picture shows; source: the figure in the outputs folder, as a
    pattern, or "" where Chromium draws the page; table: one beside it that names its seeds."""

    notebook: str
    source: str = ""
    table: str = ""


PICTURES = {
    "fig4.png": Picture("05_analysis", "demo/fig4.png", "table3.csv"),
    "fig5.png": Picture("05_analysis", "demo/fig5.png", "table3.csv"),
    "fig6.png": Picture("05_analysis", "demo/fig6.png", "table3.csv"),
    "security.png": Picture("06_adaptive", "demo/security.png"),
    # of several corpora: their names are joined by +
    "heterogeneity.png": Picture("07_heterogeneity", "*+*/heterogeneity/learning.png"),
    "explorer.webp": Picture("03_attacks"),
    "confusions.png": Picture("05_analysis"),
    "dashboard.png": Picture("08_dashboard"),
}
TABLES = {
    "table3.csv": "demo/table3.csv",
    "gains.csv": "demo/gains.csv",
    "centralised.csv": "demo/centralised.csv",
    "baselines.csv": "demo/baselines.csv",
    "adaptive.csv": "demo/adaptive.csv",
}


class LeftError(Exception):
    """A picture stays as it was; the text says why."""


class Record(NamedTuple):
    """What a picture shows. cells: of the notebook, those that the digest is of (code or all);
    drawn_by: the digest of the code that drew it, where that is declared to draw the same."""

    notebook: str
    cells: str
    sha256: str
    drawn_by: str = ""


def make_record(notebook: Any, picture: Picture) -> Record:
    """The record of a picture that shows this notebook (read by nbformat)."""
    kinds = ("code",) if picture.source else ("code", "markdown")
    sources = [source.strip() for kind, source in study_plan.cells(notebook) if kind in kinds]
    digest = hashlib.sha256("\n\n".join(sources).encode()).hexdigest()
    return Record(picture.notebook, "code" if picture.source else "all", digest)


def outdated_pictures(
    folder: Path = REFERENCE,
    notebooks: Path = study_plan.NOTEBOOKS,
    pictures: Mapping[str, Picture] = PICTURES,
) -> list[str]:
    """A sentence on every picture in ``folder`` that is older than the notebook it shows, on every
    one that no command draws, and on those that are missing."""
    path = folder / RECORDS
    records = json.loads(path.read_text()) if path.exists() else {}
    files = {file.name for file in folder.glob("*") if file.suffix in (".png", ".webp")}
    sentences = [f"{name} is missing; run {COMMAND}" for name in sorted(pictures.keys() - files)]
    for name in sorted(files):
        if name not in pictures:
            sentences.append(f"{name} is not among PICTURES of docs/pictures.py; add or remove it")
            continue
        source = notebooks / f"{pictures[name].notebook}.ipynb"
        now = make_record(nbformat.read(source, 4), pictures[name])
        if records.get(name, {}) | {"drawn_by": ""} != now._asdict():
            sentences.append(f"{name} is older than {source.name}, which it shows; run {COMMAND}")
    return sentences


def copy_figure(name: str, picture: Picture, outputs: Path, folder: Path) -> Record:
    """Copy a figure from the newest study that has it. Raises LeftError unless the executed copy
    of the notebook that drew it stands beside it."""
    source = _newest(outputs, picture.source)
    study = outputs / source.relative_to(outputs).parts[0]
    copies = [*(study / "notebooks").glob(f"{picture.notebook}*.ipynb")]
    copy = max(copies, key=run_status.modified, default=None)
    executed = study_plan.executed_copy(copy) if copy else None
    if executed is None or run_status.modified(copy) < run_status.modified(source):
        raise LeftError(f"no executed copy of {picture.notebook} that drew it in {study.name}")
    if picture.table:
        _refuse_fewer_seeds(source.with_name(picture.table), folder / picture.table)
    shutil.copyfile(source, folder / name)
    return make_record(executed, picture)


def copy_table(name: str, pattern: str, outputs: Path, folder: Path) -> None:
    """Copy a table, unless it is of fewer seeds than the one that is there. Raises LeftError."""
    source = _newest(outputs, pattern)
    _refuse_fewer_seeds(source, folder / name)
    shutil.copyfile(source, folder / name)


def _newest(outputs: Path, pattern: str) -> Path:
    paths = sorted(outputs.glob(pattern), key=run_status.modified)
    if not paths:
        raise LeftError(f"no {pattern} in {outputs.name}/")
    return paths[-1]


def _refuse_fewer_seeds(source: Path, present: Path) -> None:
    new, old = _seeds(source), _seeds(present)
    if new < old:
        raise LeftError(f"{source.parent.name} has {new} seeds, the reference {old}")


def _seeds(path: Path) -> int:
    """The number of seeds in a table; 1 where it does not say, 0 if there is none."""
    if not path.exists():
        return 0
    table = pd.read_csv(path)
    return int(table["seeds"].max()) if "seeds" in table else len({*table.get("seed", [0])})


def draw_widgets(outputs: Path, folder: Path) -> dict[str, Record]:
    """Draw the pages by the tests in Chromium, on a finished study of make demo. Returns the
    records of those that were drawn; raises LeftError if none can be."""
    rows = run_status.missing_results(run_status.find_run_statuses(outputs), outputs)
    models = rows[(rows["study"] == "demo") & (rows["item"] != run_status.TABLES)]
    if models.empty or set(models["state"]) != {run_status.DONE}:
        raise LeftError(f"no finished study of make demo in {outputs.name}/")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "long", "tests/browser"]
    records = {}
    with tempfile.TemporaryDirectory() as drawn:
        environment = os.environ | {"FEDSER_FILM": str(outputs), "FEDSER_PICTURES": drawn}
        done = subprocess.run([*command, "-k", "not monitor"], cwd=ROOT, env=environment)
        if done.returncode:
            raise LeftError("the tests in Chromium that draw it failed")
        for name, picture in PICTURES.items():
            if not picture.source and (Path(drawn) / name).exists():
                shutil.copyfile(Path(drawn) / name, folder / name)
                notebook = study_plan.NOTEBOOKS / f"{picture.notebook}.ipynb"
                records[name] = make_record(nbformat.read(notebook, 4), picture)
    return records


def draw(outputs: Path, folder: Path = REFERENCE) -> None:
    """Draw and copy whatever ``outputs`` has; a line for each thing that stays as it was."""
    outputs, path = outputs.resolve(), folder / RECORDS
    records = json.loads(path.read_text()) if path.exists() else {}
    drawn: dict[str, Record] = {}
    for name, picture in PICTURES.items():
        try:
            if picture.source:
                drawn[name] = copy_figure(name, picture, outputs, folder)
        except LeftError as reason:
            print(f"{name} left as it was: {reason}")
    for name, pattern in TABLES.items():  # after the figures, which are of as many seeds
        try:
            copy_table(name, pattern, outputs, folder)
        except LeftError as reason:
            print(f"{name} left as it was: {reason}")
    pages, reason = [name for name in PICTURES if not PICTURES[name].source], "Chromium drew none"
    try:
        drawn |= draw_widgets(outputs, folder)
    except LeftError as error:
        reason = str(error)
    for name in pages:
        if name not in drawn:
            print(f"{name} left as it was: {reason}")
    records |= {name: record._asdict() for name, record in drawn.items()}
    write_text(path, json.dumps(records, indent=2, sort_keys=True) + "\n")
    print(f"{len(drawn)} of {len(PICTURES)} pictures drawn")


def declare_unchanged(name: str, folder: Path = REFERENCE) -> None:
    """Record that the notebook as it is now would draw the figure that is there."""
    records = json.loads((folder / RECORDS).read_text())
    notebook = nbformat.read(study_plan.NOTEBOOKS / f"{PICTURES[name].notebook}.ipynb", 4)
    drawn_by = records[name].get("drawn_by") or records[name]["sha256"]
    records[name] = make_record(notebook, PICTURES[name])._replace(drawn_by=drawn_by)._asdict()
    write_text(folder / RECORDS, json.dumps(records, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    figures = [name for name, picture in PICTURES.items() if picture.source]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("outputs", type=Path, nargs="?", default=ROOT / "outputs")
    parser.add_argument("--unchanged", choices=figures, help="new code draws the same figure")
    given = parser.parse_args()
    declare_unchanged(given.unchanged) if given.unchanged else draw(given.outputs)

"""The results of a study: its complete runs' rows joined, and its tables and figures on disk.

A study is the runs on the same corpora with one preset (``core.runs.study_runs``). No model is
loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from fedser_utils.analysis import figures, tables
from fedser_utils.analysis.heterogeneity.client_differences import uar_by_scope
from fedser_utils.analysis.labels import Terms, terms
from fedser_utils.core import runs
from fedser_utils.core.runs import Run
from fedser_utils.core.settings import Settings


@dataclass(frozen=True)
class StudyResults:
    """The joined rows of a study's complete runs.

    predictions: the runs' ``predictions.parquet`` with the column seed; rounds: their
    ``rounds.csv``; clips: the first run's ``clips.parquet``; folder: for tables and figures;
    origin: runs and commits, for the figures' metadata; hardware: the columns processor and
    precision; caption: a sentence with n, rounds, seeds and hardware; terms: the words for a label
    and for whom a clip is from.
    """

    runs: list[Run]
    predictions: pd.DataFrame
    rounds: pd.DataFrame
    clips: pd.DataFrame
    folder: Path
    origin: str
    hardware: dict[str, str]
    caption: str
    terms: Terms


def read_study(settings: Settings) -> StudyResults:
    """Return the results of the settings' study. Raises InputError without a complete run."""
    members = runs.study_runs(settings)
    predictions = pd.concat(
        [run.table("predictions").assign(seed=run.config["settings"]["seed"]) for run in members],
        ignore_index=True,
    )
    clips, hardware = members[0].table("clips"), runs.hardware(members)
    corpus = members[0].config["settings"]["corpus"]
    return StudyResults(
        runs=members, predictions=predictions, clips=clips, folder=settings.folder,
        rounds=pd.concat([run.table("rounds") for run in members], ignore_index=True),
        origin=runs.origin(members), hardware=hardware, terms=terms(clips["emotion"]),
        caption=tables.caption(
            predictions, clips, study=settings.study, corpus=corpus, hardware=hardware
        ),
    )  # fmt: skip


def save_table(
    results: StudyResults,
    table: pd.DataFrame,
    name: str,
    title: str,
    *,
    label: str = "",
    hardware: bool = True,
) -> pd.DataFrame:
    """Write ``name.csv``, with the hardware columns, and ``name.tex``, and return the table. Of a
    table without rows nothing is written.

    title: a sentence, before the study's caption; label: of LaTeX, otherwise ``name``; hardware:
    False for a table that no model had part in.
    """
    if table.empty:
        return table
    columns = results.hardware if hardware else {}
    runs.write_table(results.folder / f"{name}.csv", table.assign(**columns))
    caption = f"{title} {results.caption}"
    if "paper_uar" in table:
        text = tables.table3_latex(table, caption=caption)
    else:
        text = tables.latex(table, caption=caption, label=label or name)
    runs.write_text(results.folder / f"{name}.tex", text)
    return table


def save_figure(results: StudyResults, figure: Figure, name: str) -> Figure:
    """Write ``name.png`` and ``name.pdf`` into the study's folder, and return the figure."""
    return figures.save(figure, results.folder, name, origin=results.origin)


def read_examples(results: StudyResults) -> runs.Arrays:
    """Return the clip that ``03_attacks`` stored: "original" and each attack's name -> (frames,
    bands), standardised log-Mel; {} if it stored none."""
    path = results.folder / "examples.safetensors"
    return runs.load_arrays(path) if path.exists() else {}


def uar_by_corpus(results: StudyResults) -> pd.DataFrame:
    """Return the UAR of every corpus and language of several joined ones, a row each with the
    columns of ``client_differences.uar_by_scope`` and model; no rows for one corpus."""
    if len(set(results.clips.get("corpus", ()))) < 2:
        return pd.DataFrame()
    scopes = ["corpus", "language"]
    rows = [
        uar_by_scope(predictions, results.clips, scopes=scopes).assign(model=model)
        for model, predictions in results.predictions.groupby("model", sort=False)
    ]
    return pd.concat(rows, ignore_index=True)

"""The dashboard's text and tables as HTML: the same for the widgets and for their static twin.

A state is a word and a sign, and its colour comes on top. All text from files is escaped, and
nothing comes from a network.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fedser_utils.analysis.labels import ATTACK_NAMES, MODEL_NAMES
from fedser_utils.workbook.study.run_status import (
    PAPER_MODELS,
    RUNNING,
    STOPPED,
    TABLES,
    RunStatus,
    find_run_statuses,
    missing_results,
)

SIGNS = {  # state -> sign, and a light tint of Okabe and Ito's colours behind black text
    "done": ("✓", "#cfeae0"), "running": ("▸", "#cde3f2"), "stopped": ("■", "#fae3b8"),
    "missing": ("○", "#ffffff"), "outdated": ("↺", "#f8f3b5"), "damaged": ("✗", "#f5d2bf"),
}  # fmt: skip
LEGEND = (
    "running: a process of this machine holds the run's lock; stopped: the same command goes on "
    "from the newest checkpoint; outdated: a model is newer than the tables; damaged: see the "
    "note. UAR in percent after the last evaluated round; attacked: under the attack the model was "
    "trained with, otherwise under the one that leaves least."
)
STYLE = """<style>
table.fedser { border-collapse: collapse; font-size: 13px; line-height: 1.4; margin: 4px 0 12px }
table.fedser caption { text-align: left; font-weight: bold; font-size: 15px; padding: 6px 0;
  caption-side: top; white-space: nowrap }
table.fedser tr th, table.fedser tr td { text-align: left; vertical-align: top; padding: 3px 9px;
  border-bottom: 1px solid #767676; max-width: none; white-space: nowrap }
table.fedser tr td.wide { white-space: normal; overflow-wrap: anywhere; min-width: 16em }
table.fedser tr td.number { text-align: right; font-variant-numeric: tabular-nums }
table.fedser code { user-select: all; white-space: pre-wrap }
.fedser-state { color: #000; border: 1px solid #555; border-radius: 3px; padding: 0 6px;
  white-space: nowrap }
</style>"""


class Sections(NamedTuple):
    """The page's text and tables, as HTML; "" where there is nothing to show."""

    status: str
    runs: str = ""
    missing: str = ""
    commands: str = ""


def page_sections(outputs: str | Path, *, now: float | None = None) -> Sections:
    """The text and tables on the runs in ``outputs``. now: seconds since 1970, the present if
    None."""
    now = time.time() if now is None else now
    statuses = find_run_statuses(outputs)
    folder = f"<code>{escape(str(outputs))}</code>"
    if not statuses:
        return Sections(
            f"<p>No run in {folder} yet. <code>make demo</code> makes a study in minutes; for one "
            "training, in notebooks/: "
            "<code>papermill 02_fl_advtrain.ipynb out.ipynb -p attack pgd</code></p>"
        )
    counts = Counter(status.state for status in statuses)
    parts = ", ".join(f"{counts[state]} {_state(state)}" for state in SIGNS if counts[state])
    clock = datetime.fromtimestamp(now).strftime("%H:%M:%S")
    missing = missing_results(statuses, outputs)
    status = f"{STYLE}<p>Runs in {folder} at {clock}: {parts}</p>"
    return Sections(status, _runs(statuses, now), _missing(missing), _commands(missing))


def _runs(statuses: Iterable[RunStatus], now: float) -> str:
    rows = []
    for run in statuses:
        attack = f" ({ATTACK_NAMES.get(run.attack, run.attack)})" if run.attack else ""
        attacked = f"{run.attacked:.1f}{attack}" if run.attacked is not None else attack
        model, written = MODEL_NAMES.get(run.model, run.model), age(run.written, now)
        numbers = [_rounds(run), run.uar, attacked, written]
        rows.append([run.run, model, run.seed, _state(run.state), *numbers, Wide(escape(run.note))])
    heads = ["run", "model", "seed", "state", "round", "UAR", "attacked", "written", "note"]
    return _table("Runs", heads, rows) + f"<p><small>{escape(LEGEND)}</small></p>"


def _missing(results: pd.DataFrame) -> str:
    """The rows of ``missing_results`` as a grid: studies down, models across."""
    rows = []
    tables = results[results["item"] == TABLES].set_index("study")["state"]
    models = results[results["item"] != TABLES]
    for (study, setting, seed), group in models.groupby(["study", "setting", "seed"], sort=False):
        by_model = {row.item: row for row in group.itertuples(index=False)}
        states = [_progress(by_model.get(model)) for model in PAPER_MODELS]
        rows.append([study, setting, int(seed), *states, _state(tables[study])])
    heads = ["study", "setting", "seed", *(MODEL_NAMES[model] for model in PAPER_MODELS), "tables"]
    return _table("What the paper's tables need", heads, rows) if rows else ""


def _progress(row: Any) -> str:
    """The state of a model's run, with its rounds while there are rounds to come."""
    if row is None:
        return "--"
    return Html(f"{_state(row.state)} {_rounds(row) if row.state in (RUNNING, STOPPED) else ''}")


def _commands(results: pd.DataFrame) -> str:
    """How to make what is missing."""
    rows = []
    for row in results[results["command"] != ""].itertuples(index=False):
        place = "the repository" if row.command.startswith("make ") else "notebooks/"
        item, code = MODEL_NAMES.get(row.item, row.item), f"<code>{escape(row.command)}</code>"
        rows.append([row.study, item, _state(row.state), place, Wide(code)])
    heads = ["study", "what", "state", "in", "command"]
    return _table("Commands that make what is missing", heads, rows) if rows else ""


class Html(str):
    """Text that is HTML already."""


class Wide(Html):
    """HTML of a column that takes the room that is left."""


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An HTML table. heads: plain text; rows: numbers, None, plain text or Html."""
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<table class="fedser"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, int | float):
        return f'<td class="number">{value if isinstance(value, int) else f"{value:.1f}"}</td>'
    kind = ' class="wide"' if isinstance(value, Wide) else ""
    return f"<td{kind}>{value if isinstance(value, Html) else escape(value or '')}</td>"


def _state(state: str) -> Html:
    sign, colour = SIGNS[state]
    style = f'class="fedser-state" style="background: {colour}"'
    return Html(f'<span {style}><span aria-hidden="true">{sign}</span> {state}</span>')


def _rounds(status: Any) -> str:
    """status: anything with round and rounds, of which either may be None or NaN."""
    done, total = (0 if pd.isna(n) else int(n) for n in (status.round, status.rounds))
    return f"{done} of {total}" if total else ""


def age(moment: float | None, now: float) -> str:
    """How long ago: minutes, hours or days. Both in seconds since 1970; "" for NaN or None."""
    if pd.isna(moment):
        return ""
    minutes = (now - moment) / 60
    if minutes < 1:
        return "just now"
    if minutes < 60:
        return f"{minutes:.0f} min ago"
    return f"{minutes / 60:.0f} h ago" if minutes < 48 * 60 else f"{minutes / 1440:.0f} days ago"


def figure_caption(title: str, place: str, origin: str, age: str) -> str:
    """The caption below a figure. place: the study or run; origin: its runs and commits."""
    text = f"<b>{escape(title)}</b>, {escape(place)}, made {age}"
    return f"<p>{text}<br><small>{escape(origin)}</small></p>"

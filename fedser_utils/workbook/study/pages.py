"""The overview as HTML: the tables that the dashboard and its static twin both show.

A state is a word and a sign, and its colour comes on top. All text from files is escaped, and
nothing comes from a network.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fedser_utils.analysis.tables import ATTACK_NAMES, MODEL_NAMES
from fedser_utils.workbook.study import missing, run_status
from fedser_utils.workbook.study.missing import TABLES, WANTED
from fedser_utils.workbook.study.pictures import Picture

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


class Page(NamedTuple):
    """What widget and twin both show, as HTML."""

    status: str
    runs: str
    needs: str
    commands: str


def page(outputs: str | Path, *, now: float | None = None) -> Page:
    """The page's text and tables. now: seconds since 1970, the present if None."""
    now = time.time() if now is None else now
    seen = run_status.find_run_statuses(outputs)
    if not seen:
        return Page(_nothing(outputs), "", "", "")
    wanted = missing.missing_results(seen, outputs)
    table = run_status.table(seen)
    counts = table["state"].value_counts()
    parts = [f"{counts[state]} {_state(state)}" for state in SIGNS if state in counts]
    at = datetime.fromtimestamp(now).strftime("%H:%M:%S")
    status = f"<p>Runs in <code>{escape(str(outputs))}</code> at {at}: {', '.join(parts)}</p>"
    return Page(STYLE + status, _runs(table, now), _needs(wanted), _commands(wanted))


def _nothing(outputs: str | Path) -> str:
    return (
        f"<p>No run in <code>{escape(str(outputs))}</code> yet. <code>make demo</code> makes a "
        "study in minutes; for one training, in notebooks/: "
        "<code>papermill 02_fl_advtrain.ipynb out.ipynb -p attack pgd</code></p>"
    )


def _runs(table: pd.DataFrame, now: float) -> str:
    rows = []
    for run in table.itertuples(index=False):
        attack = f" ({ATTACK_NAMES.get(run.attack, run.attack)})" if run.attack else ""
        notes = ", ".join(note for note in (run.writer, run.note) if note)
        rows.append(
            [
                _cell(run.run), _cell(MODEL_NAMES.get(run.model, run.model)),
                _cell(_whole(run.seed), "number"), f"<td>{_state(run.state)}</td>",
                _cell(_of(run.round, run.rounds), "number"), _cell(_percent(run.uar), "number"),
                _cell(_percent(run.attacked) + attack), _cell(age(run.written, now), "number"),
                _cell(notes, "wide"),
            ]
        )  # fmt: skip
    heads = ["run", "model", "seed", "state", "round", "UAR", "attacked", "written", "note"]
    return _table("Runs", heads, rows) + f"<p><small>{escape(LEGEND)}</small></p>"


def _needs(wanted: pd.DataFrame) -> str:
    """The tidy rows of ``missing.needs`` as a grid: studies down, models across."""
    rows = []
    tables = wanted[wanted["item"] == TABLES].set_index("study")["state"]
    models = wanted[wanted["item"] != TABLES]
    for (study, setting, seed), own in models.groupby(["study", "setting", "seed"], sort=False):
        by_model = {each.item: each for each in own.itertuples(index=False)}
        cells = [_cell(study), _cell(setting), _cell(_whole(seed), "number")]
        for model in WANTED:
            each = by_model.get(model)
            partly = each is not None and each.state in ("running", "stopped")
            far = f" {_of(each.round, each.rounds)}" if partly else ""
            cells.append(f"<td>{_state(each.state) if each else '--'}{escape(far)}</td>")
        rows.append([*cells, f"<td>{_state(tables[study])}</td>"])
    heads = ["study", "setting", "seed", *(MODEL_NAMES[model] for model in WANTED), "tables"]
    return _table("What the paper's tables need", heads, rows) if rows else ""


def _commands(wanted: pd.DataFrame) -> str:
    """How to make what is missing."""
    rows = []
    for each in wanted[wanted["command"] != ""].itertuples(index=False):
        place = "the repository" if each.command.startswith("make ") else "notebooks/"
        name = MODEL_NAMES.get(each.item, each.item)
        code = f'<td class="wide"><code>{escape(each.command)}</code></td>'
        state = f"<td>{_state(each.state)}</td>"
        rows.append([_cell(each.study), _cell(name), state, _cell(place), code])
    heads = ["study", "what", "state", "in", "command"]
    return _table("Commands that make what is missing", heads, rows) if rows else ""


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table. heads: plain text; rows: cells that are HTML already."""
    top = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return (
        f'<table class="fedser"><caption>{escape(caption)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    )


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def _state(state: str) -> str:
    sign, colour = SIGNS[state]
    style = f'class="fedser-state" style="background: {colour}"'
    return f'<span {style}><span aria-hidden="true">{sign}</span> {state}</span>'


def _whole(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:.0f}"


def _of(value: Any, total: Any) -> str:
    return "" if pd.isna(total) else f"{_whole(value) or '0'} of {_whole(total)}"


def _percent(value: Any) -> str:
    return "" if pd.isna(value) else f"{value:.1f}"


def age(moment: float, now: float) -> str:
    """How long ago: minutes, hours or days. Both in seconds since 1970; "" for NaN."""
    if pd.isna(moment):
        return ""
    minutes = (now - moment) / 60
    if minutes < 1:
        return "just now"
    if minutes < 60:
        return f"{minutes:.0f} min ago"
    return f"{minutes / 60:.0f} h ago" if minutes < 48 * 60 else f"{minutes / 1440:.0f} days ago"


def caption(picture: Picture, origin: str, *, now: float) -> str:
    """What stands below a figure, as HTML."""
    since = age(picture.path.stat().st_mtime, now)
    text = f"<b>{escape(picture.title)}</b>, {escape(picture.place)}, made {since}"
    return f"<p>{text}<br><small>{escape(origin)}</small></p>"

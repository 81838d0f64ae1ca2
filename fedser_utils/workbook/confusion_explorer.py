"""ConfusionExplorer: which class is taken for which, under any attack, after any round.

The matrix is a grid of plain buttons: a keyboard reaches every cell, Enter opens it, and no
JavaScript of ours is needed. ``twin`` shows the same where there is no kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any

import ipywidgets as widgets
import pandas as pd
from IPython.display import HTML

from fedser_utils.analysis import confusion_data
from fedser_utils.analysis.confusion_data import Decisions, Setting
from fedser_utils.analysis.labels import terms
from fedser_utils.analysis.study_results import StudyResults
from fedser_utils.core import count_tables
from fedser_utils.workbook import confusion_plot, display
from fedser_utils.workbook.clip_media import NO_RECORDINGS, Recordings, clips_html, recordings_of
from fedser_utils.workbook.controls import SettingControls

MOST = 8  # clips shown of a cell
SELECTED = "fedser-chosen"
_CSS = (  # rings outside the cell, visible on any colour
    "<style>.fedser-cell:focus-visible{outline:3px solid #D55E00!important;outline-offset:1px}"
    ".fedser-chosen{box-shadow:0 0 0 2px var(--jp-layout-color0,#fff),"
    "0 0 0 5px var(--jp-ui-font-color0,#000)!important;z-index:1}</style>"
)
_CELL_TEXTS = (
    "A cell: how many of the clips of a true {label} were given this decision; darker: more.",
    f"A cell of (a) − (b), in points of percent or in clips; {confusion_plot.LEGEND}.",
)


def explore_confusions(results: StudyResults, *, corpus: str) -> None:
    """Display the explorer of a study's decisions, or its static twin where widgets do not work.

    corpus: where the recordings are, as ``recordings_of`` takes it. Torch is imported when a
    recording is drawn: by the twin, and where somebody opens a cell.
    """
    recordings = recordings_of(results.runs[0], corpus=corpus)
    display.show(
        lambda: ConfusionExplorer(results.predictions, recordings),
        lambda: twin(results.predictions, recordings),
    )


class ConfusionExplorer(widgets.VBox):
    """Controls, a line with the UAR, the matrix, and the clips of the selected cell.

    predictions: rows of ``predictions.parquet`` of several runs, with the column seed;
    recordings: of the clips.
    """

    def __init__(self, predictions: pd.DataFrame, recordings: Recordings = NO_RECORDINGS) -> None:
        self._decisions, self._recordings = Decisions(predictions), recordings
        settings = self._decisions.settings
        first, second = confusion_data.default_settings(settings)
        self.first = SettingControls(settings, first, changed=self._show, name="(a)")
        self.second = SettingControls(settings, second or first, changed=self._show, name="(b)")
        self.compare = widgets.Checkbox(False, description="compare: (a) − (b)", indent=False)
        self.unit = widgets.ToggleButtons(
            options=confusion_plot.UNITS, style={"button_width": "90px"}
        )
        self.line, self.clips = widgets.HTML(), widgets.HTML()
        self.cells: dict[tuple[str, str], widgets.Button] = {}
        self.selected: widgets.Button | None = None
        self.compare.observe(self._show, "value")
        self.unit.observe(self._show, "value")
        switches = widgets.HBox([self.unit, self.compare], layout={"flex_flow": "row wrap"})
        grid = self._grid()
        self._show()
        top = [widgets.HTML(_CSS), self.first.box, switches, self.second.box]
        super().__init__([*top, self.line, grid, self.clips])
        self.add_class("fedser-confusions")

    def _grid(self) -> widgets.GridBox:
        """Return the matrix: a row of the decisions' names, then each truth and its buttons."""
        classes = self._decisions.classes
        parts = [widgets.HTML("true ↓ &nbsp; decision →")]
        parts += [_heading(decision, "center") for decision in classes]
        shape = widgets.Layout(width="auto", height="34px", margin="0")
        for truth in classes:
            parts.append(_heading(truth, "right"))
            for decision in classes:
                button = widgets.Button(layout=shape)
                button.add_class("fedser-cell")
                button.on_click(partial(self._open, (truth, decision)))
                self.cells[truth, decision] = button
                parts.append(button)
        columns = f"130px repeat({len(classes)}, minmax(64px, 84px))"
        layout = {"grid_template_columns": columns, "grid_gap": "2px", "overflow": "auto"}
        return widgets.GridBox(parts, layout=layout | {"padding": "6px"})

    @property
    def settings(self) -> list[Setting]:
        """The setting that is shown, or (a) and (b)."""
        shown = (self.first, self.second)[: 1 + self.compare.value]
        return [controls.setting for controls in shown]

    def _show(self, change: dict[str, Any] | None = None) -> None:
        """Write the matrix and the line of the chosen settings into the widgets."""
        self.second.box.layout.display = None if self.compare.value else "none"
        counts = [self._decisions.counts(setting) for setting in self.settings]
        rows = confusion_plot.cells(*counts, unit=self.unit.value)
        cells = (cell for row in rows for cell in row)
        for button, cell in zip(self.cells.values(), cells, strict=True):
            with button.hold_sync():  # one message for both
                button.description, button.tooltip = cell.text, cell.words
            with button.style.hold_sync():
                button.style.button_color = cell.background
                button.style.text_color = cell.foreground
        self.line.value = summary_html(self._decisions, self.settings)
        self._select(None)
        self.clips.value = "<p>Press a cell to list its clips.</p>"

    def _select(self, button: widgets.Button | None) -> None:
        if self.selected:
            self.selected.remove_class(SELECTED)
        self.selected = button
        if button:
            button.add_class(SELECTED)

    def _open(self, cell: tuple[str, str], button: widgets.Button) -> None:
        """List the clips of a cell, (truth, decision)."""
        self._select(button)
        shown = self._decisions, self.settings, cell, self._recordings
        self.clips.value = cell_html(*shown, most=MOST)


def _heading(text: str, side: str) -> widgets.HTML:
    """Return a row's or a column's name."""
    return widgets.HTML(f'<div style="text-align:{side};padding:0 4px"><b>{escape(text)}</b></div>')


def summary_html(decisions: Decisions, settings: Sequence[Setting]) -> str:
    """Return HTML with the UAR and interval of a setting, or of (a), (b) and their difference."""
    names = ("(a) ", "(b) ") if len(settings) > 1 else ("",)
    label, client = terms(decisions.classes)
    lines = []
    for name, setting in zip(names, settings, strict=True):
        text = confusion_plot.uar_text(decisions.score(setting), client=client)
        lines.append(f"<b>{name}{escape(confusion_plot.describe(setting))}</b>: {escape(text)}")
    if len(settings) > 1:
        try:
            gain = decisions.gain(settings[1], settings[0])
            difference = confusion_plot.gain_text(gain, client=client)
        except ValueError as error:
            difference = str(error)
        lines.append(f"<b>(a) − (b)</b>: {escape(difference)}")
    lines.append(_CELL_TEXTS[len(settings) - 1].format(label=label))
    return f'<div style="line-height:1.5">{"<br>".join(lines)}</div>'


def cell_html(
    decisions: Decisions, settings: Sequence[Setting], cell: tuple[str, str],
    recordings: Recordings, *, most: int,
) -> str:  # fmt: skip
    """Return HTML of the clips in a cell of one setting, or of two and in which of them each is.

    cell: (truth, decision); most: so many clips are shown.
    """
    rows = [decisions.rows(setting) for setting in settings]
    if count_tables.is_counted(rows[0]["clip"]):
        del rows[1:]  # counted clips cannot be matched with those of (b)
    tables = [confusion_data.in_cell(part, *cell) for part in rows]
    clips = confusion_data.in_either(*tables) if len(tables) > 1 else tables[0]
    where = confusion_plot.describe(settings[0]) if len(rows) == 1 else "in (a) or (b)"
    number = {0: "no clip", 1: "1 clip"}.get(len(clips), f"{len(clips)} clips")
    title = confusion_plot.cell_title(*cell)
    head = f"<p><b>{escape(title)}</b>, {escape(where)}: {number}.</p>"
    return head + (clips_html(clips, recordings, most=most) if len(clips) else "")


def twin(
    predictions: pd.DataFrame, recordings: Recordings = NO_RECORDINGS, *, most: int = 3
) -> list[Any]:
    """Return what the widget shows first, for a page without a kernel: the matrix, beside it, where
    there is one, the adversarially trained model under the same attack and the difference; the
    UAR; and the first clips of the most frequent confusion. Arguments: as the widget's."""
    decisions = Decisions(predictions)
    settings = [s for s in confusion_data.default_settings(decisions.settings) if s]
    counts = [decisions.counts(setting) for setting in settings]
    titles = [confusion_plot.describe(setting).replace(", ", "\n", 1) for setting in settings]
    panels = [(title, [table]) for title, table in zip(titles, counts, strict=True)]
    if len(settings) > 1:
        panels.append(("(a) − (b), in points", counts))
    parts = [confusion_plot.figure(panels), HTML(summary_html(decisions, settings))]
    worst = confusion_data.most_confused(counts[0])
    if worst:
        html = cell_html(decisions, settings[:1], worst, recordings, most=most)
        parts.append(HTML(html))
    return parts

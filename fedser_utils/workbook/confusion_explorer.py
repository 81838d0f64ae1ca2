"""ConfusionExplorer: which class is taken for which, under any attack, after any round.

The matrix is a grid of plain buttons, so that a keyboard reaches every cell, Enter opens it, and no
JavaScript of ours is needed. ``twin`` shows the same where no kernel answers. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import pandas as pd
from IPython.display import HTML

from fedser_utils.analysis import confusion_data, tables
from fedser_utils.analysis.confusion_data import Decisions, Setting
from fedser_utils.core import count_tables
from fedser_utils.workbook import clip_media, confusion_plot
from fedser_utils.workbook.clip_media import Find
from fedser_utils.workbook.controls import Choice

MOST = 8  # clips shown of a cell
_CHOSEN = "fedser-chosen"
_LOOK = (  # rings outside the cell, so that they are seen whatever its colour
    "<style>.fedser-cell:focus-visible{outline:3px solid #D55E00!important;outline-offset:1px}"
    ".fedser-chosen{box-shadow:0 0 0 2px var(--jp-layout-color0,#fff),"
    "0 0 0 5px var(--jp-ui-font-color0,#000)!important;z-index:1}</style>"
)


def nothing(clip: str) -> None:
    """Where no recordings are at hand."""


class ConfusionExplorer(widgets.VBox):
    """Controls, a line with the UAR, the matrix, the clips of the chosen cell.

    predictions: rows of ``predictions.parquet`` of several runs, with the column seed; sound,
    picture: a clip's name -> its WAV, the PNG of its log-Mel, None where it is not at hand.
    """

    def __init__(
        self, predictions: pd.DataFrame, *, sound: Find = nothing, picture: Find = nothing
    ) -> None:
        self._decisions = Decisions(predictions)
        self._find = {"sound": sound, "picture": picture}
        first, second = confusion_data.default_settings(self._decisions.settings)
        settings = self._decisions.settings
        self.first = Choice(settings, first, changed=self._show, name="(a)")
        self.second = Choice(settings, second or first, changed=self._show, name="(b)")
        self.compare = widgets.Checkbox(False, description="compare: (a) − (b)", indent=False)
        self.unit = widgets.ToggleButtons(
            options=confusion_plot.UNITS, style={"button_width": "90px"}
        )
        self.line, self.clips = widgets.HTML(), widgets.HTML()
        self.cells: dict[tuple[str, str], widgets.Button] = {}
        self.chosen: widgets.Button | None = None
        self.compare.observe(self._show, "value")
        self.unit.observe(self._show, "value")
        switches = widgets.HBox([self.unit, self.compare], layout={"flex_flow": "row wrap"})
        grid = self._grid()
        self._show()
        top = [widgets.HTML(_LOOK), self.first.box, switches, self.second.box]
        super().__init__([*top, self.line, grid, self.clips])
        self.add_class("fedser-confusions")

    def _grid(self) -> widgets.GridBox:
        """The matrix: a row of decisions' names, then each truth's name and its buttons."""
        classes = self._decisions.classes
        rows = [
            widgets.HTML("true ↓ &nbsp; decision →"),
            *(_name(said, "center") for said in classes),
        ]
        shape = widgets.Layout(width="auto", height="34px", margin="0")
        for truth in classes:
            rows.append(_name(truth, "right"))
            for said in classes:
                button = widgets.Button(layout=shape)
                button.add_class("fedser-cell")
                button.on_click(self._open)
                self.cells[truth, said] = button
                rows.append(button)
        columns = f"130px repeat({len(classes)}, minmax(64px, 84px))"
        layout = {"grid_template_columns": columns, "grid_gap": "2px", "overflow": "auto"}
        return widgets.GridBox(rows, layout=layout | {"padding": "6px"})

    @property
    def settings(self) -> list[Setting]:
        """What is shown: one setting, or (a) and (b)."""
        return [choice.setting for choice in (self.first, self.second)[: 1 + self.compare.value]]

    def _show(self, change: dict[str, Any] | None = None) -> None:
        """The matrix and the line of what is chosen, in the widgets that are there."""
        self.second.box.layout.display = None if self.compare.value else "none"
        counts = [self._decisions.counts(setting) for setting in self.settings]
        rows = confusion_plot.cells(*counts, unit=self.unit.value)
        looks = (cell for row in rows for cell in row)
        for button, cell in zip(self.cells.values(), looks, strict=True):
            with button.hold_sync():  # one message for both
                button.description, button.tooltip = cell.text, cell.words
            with button.style.hold_sync():
                button.style.button_color, button.style.text_color = (
                    cell.background,
                    cell.foreground,
                )
        self.line.value = said(self._decisions, self.settings)
        self._mark(None)
        self.clips.value = "<p>Press a cell to list its clips.</p>"

    def _mark(self, button: widgets.Button | None) -> None:
        if self.chosen:
            self.chosen.remove_class(_CHOSEN)
        self.chosen = button
        if button:
            button.add_class(_CHOSEN)

    def _open(self, button: widgets.Button) -> None:
        """List a cell's clips."""
        self._mark(button)
        cell = next(key for key, own in self.cells.items() if own is button)
        self.clips.value = clips_of(self._decisions, self.settings, cell, most=MOST, **self._find)


def _name(text: str, side: str) -> widgets.HTML:
    """A row's or a column's name."""
    return widgets.HTML(f'<div style="text-align:{side};padding:0 4px"><b>{escape(text)}</b></div>')


def said(decisions: Decisions, settings: Sequence[Setting]) -> str:
    """HTML: UAR and interval of a setting, or of two, (a) and (b), and of their difference."""
    names = ("(a) ", "(b) ") if len(settings) > 1 else ("",)
    label, client = tables.terms(decisions.classes)
    lines = []
    for name, setting in zip(names, settings, strict=True):
        words = confusion_plot.uar_text(decisions.score(setting), client=client)
        lines.append(f"<b>{name}{escape(confusion_plot.describe(setting))}</b>: {escape(words)}")
    if len(settings) > 1:
        try:
            gain = decisions.gain(settings[1], settings[0])
            difference = confusion_plot.gain_text(gain, client=client)
        except ValueError as error:
            difference = str(error)
        lines.append(f"<b>(a) − (b)</b>: {escape(difference)}")
    lines.append(_CELLS[len(settings) - 1].format(label=label))
    return f'<div style="line-height:1.5">{"<br>".join(lines)}</div>'


_CELLS = (
    "A cell: how many of the clips of a true {label} were given this decision; darker: more.",
    f"A cell of (a) − (b), in points of percent or in clips; {confusion_plot.COLOURS}.",
)


def clips_of(
    decisions: Decisions, settings: Sequence[Setting], cell: tuple[str, str], *, most: int,
    **find: Find,
) -> str:  # fmt: skip
    """HTML: the clips in a cell of one setting, or of two with the word in which of them.

    cell: (truth, decision); find: sound and picture.
    """
    rows = [decisions.rows(setting) for setting in settings]
    if count_tables.is_counted(rows[0]["clip"]):
        del rows[1:]  # no clip of one is known to be a clip of the other
    found = [confusion_data.in_cell(own, *cell) for own in rows]
    clips = confusion_data.in_either(*found) if len(found) > 1 else found[0]
    where = confusion_plot.describe(settings[0]) if len(rows) == 1 else "in (a) or (b)"
    number = {0: "no clip", 1: "1 clip"}.get(len(clips), f"{len(clips)} clips")
    head = f"<p><b>{escape(confusion_plot.title(*cell))}</b>, {escape(where)}: {number}.</p>"
    return head + (clip_media.listed(clips, **find, most=most) if len(clips) else "")


def _two_lines(name: str) -> str:
    return name.replace(", ", "\n", 1)


def twin(
    predictions: pd.DataFrame, *, sound: Find = nothing, picture: Find = nothing, most: int = 3
) -> list[Any]:
    """What the widget shows at first, for a page without a kernel: the matrix, beside it, where
    there is one, the adversarially trained model under the same attack and the difference; the
    UAR; and the first clips of the most frequent confusion. Arguments: as the widget's."""
    decisions = Decisions(predictions)
    settings = [own for own in confusion_data.default_settings(decisions.settings) if own]
    counts = [decisions.counts(setting) for setting in settings]
    panels = [(_two_lines(confusion_plot.describe(s)), [own]) for s, own in zip(settings, counts)]
    if len(settings) > 1:
        panels.append(("(a) − (b), in points", counts))
    shown = [confusion_plot.figure(panels), HTML(said(decisions, settings))]
    worst = confusion_data.most_confused(counts[0])
    if worst:
        find = {"sound": sound, "picture": picture}
        shown.append(HTML(clips_of(decisions, settings[:1], worst, most=most, **find)))
    return shown

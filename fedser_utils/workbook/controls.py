"""Controls that offer only what exists: model, attack, condition, round. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ipywidgets as widgets

from fedser_utils.analysis import confusion_data
from fedser_utils.analysis.confusion_data import Setting
from fedser_utils.analysis.tables import ATTACK_NAMES, CONDITIONS, MODEL_NAMES, paper_order

_NAMES = (MODEL_NAMES, ATTACK_NAMES, CONDITIONS)


class Choice:
    """Four controls that offer only settings that exist.

    name: shown before them; changed: called after every change, with all four in agreement.
    """

    def __init__(
        self, settings: Sequence[Setting], first: Setting, *, changed: Callable[[], None], name: str
    ) -> None:
        self._settings, self._changed, self._busy = settings, changed, False
        narrow = {"style": {"description_width": "initial"}, "layout": {"width": "auto"}}
        self.model, self.attack, self.condition = (
            widgets.Dropdown(description=field, **narrow) for field in Setting._fields[:3]
        )
        self.round = widgets.SelectionSlider(options=[("", 0)], description="round", **narrow)
        self.round.layout.width = "300px"
        self.controls = (self.model, self.attack, self.condition, self.round)
        parts = [widgets.HTML(f"<b>{name}</b>"), *self.controls]
        self.box = widgets.HBox(parts, layout={"flex_flow": "row wrap", "grid_gap": "2px 12px"})
        self.set(first)
        for control in self.controls:
            control.observe(self._follow, "value")

    @property
    def setting(self) -> Setting:
        """What is chosen."""
        return Setting(*(control.value for control in self.controls))

    def set(self, setting: Setting) -> None:
        """Choose a setting that exists; nobody is told."""
        left = self._settings
        with self._quietly():
            for place, (control, value) in enumerate(zip(self.controls, setting, strict=True)):
                offered = _options(place, {other[place] for other in left})
                if tuple(control.options) != offered:
                    control.options = offered
                control.value = value
                left = [other for other in left if other[place] == value]

    def _follow(self, change: dict[str, Any]) -> None:
        if not self._busy:
            self.set(confusion_data.nearest(self.setting, self._settings))
            self._changed()

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        self._busy = True
        try:
            yield
        finally:
            self._busy = False


def _options(place: int, values: set) -> tuple[tuple[str, Any], ...]:
    """(label, value) of a control, in the paper's order."""
    if place == 3:
        return tuple((str(value), value) for value in sorted(values))
    names = _NAMES[place]
    return tuple((names.get(value, value), value) for value in paper_order(values, names))

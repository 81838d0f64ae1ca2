"""Controls that offer only the settings that exist: model, attack, condition, round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets as widgets

from fedser_utils.analysis import confusion_data
from fedser_utils.analysis.confusion_data import Setting
from fedser_utils.analysis.labels import NAMES, paper_order


class SettingControls:
    """Three menus and a slider that choose one of the settings that exist.

    settings: all of them; first: the one chosen at first; changed: called after every change, when
    the four controls agree; name: shown before them.
    """

    def __init__(
        self, settings: Sequence[Setting], first: Setting, *, changed: Callable[[], None], name: str
    ) -> None:
        self._settings, self._changed, self._updating = settings, changed, False
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
        """The chosen setting."""
        return Setting(*(control.value for control in self.controls))

    def set(self, setting: Setting) -> None:
        """Choose a setting that exists, without calling ``changed``."""
        left, self._updating = self._settings, True
        try:
            for place, (control, value) in enumerate(zip(self.controls, setting, strict=True)):
                options = _options(control.description, {other[place] for other in left})
                if tuple(control.options) != options:
                    control.options = options
                control.value = value
                left = [other for other in left if other[place] == value]
        finally:
            self._updating = False

    def _follow(self, change: dict[str, Any]) -> None:
        if not self._updating:
            self.set(confusion_data.nearest(self.setting, self._settings))
            self._changed()


def _options(field: str, values: set) -> tuple[tuple[str, Any], ...]:
    """Return (label, value) of a control's options, in the paper's order; rounds by number."""
    names = NAMES.get(field, {})
    return tuple((str(names.get(value, value)), value) for value in paper_order(values, names))


def set_options(
    control: widgets.Widget, options: Sequence[tuple[str, Any]], default: Any = None
) -> None:
    """Give a menu or slider its options, (label, value) each. Its value stays if it is one of
    them, else it becomes ``default``, or the first where that is not one of them."""
    if control.options != tuple(options):
        values, value = [value for _, value in options], control.value
        control.options = options
        if values:
            default = default if default in values else values[0]
            control.value = value if value in values else default

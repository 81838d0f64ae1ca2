"""Widgets in JupyterLab and Voila, pictures and text elsewhere.

papermill, nbconvert and GitHub show what a notebook stored, and a widget without its kernel is an
empty place. So every widget has a static twin with the same content, and ``show`` chooses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from IPython.display import display
from ipywidgets import Widget

FRONTENDS = ("JPY_SESSION_NAME", "VOILA_BASE_URL")  # set by Jupyter's server, and by Voila
CHOICE = "FEDSER_WIDGETS"  # 1 or 0 in the environment overrides these


def is_live() -> bool:
    """Return whether widgets work in the page of this kernel."""
    if os.environ.get(CHOICE):
        return os.environ[CHOICE] != "0"
    return any(name in os.environ for name in FRONTENDS)


def show(widget: Callable[[], Widget], twin: Callable[[], Iterable[Any]]) -> None:
    """Display the widget, or the parts of its twin where widgets do not work; only one is built."""
    display(*([widget()] if is_live() else twin()))

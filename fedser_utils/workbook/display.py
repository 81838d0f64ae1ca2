"""Whether anybody can move a slider: widgets in JupyterLab and Voila, static twins elsewhere.

papermill, nbconvert and GitHub show what a notebook stored; a widget without its kernel is an empty
place. So every widget has a twin of pictures and text with the same content, and ``show`` decides.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

from IPython.display import display
from ipywidgets import Widget

FRONTENDS = ("JPY_SESSION_NAME", "VOILA_BASE_URL")  # set by Jupyter's server, and by Voila
CHOICE = "FEDSER_WIDGETS"  # 1 or 0 in the environment goes before what is found


def is_live() -> bool:
    """Whether this kernel has a page before it in which widgets work."""
    if os.environ.get(CHOICE):
        return os.environ[CHOICE] != "0"
    return any(name in os.environ for name in FRONTENDS)


def show(widget: Callable[[], Widget], twin: Callable[[], Iterable[Any]]) -> None:
    """Display the widget, or, where nobody can use it, what its twin gives; only one is made."""
    if is_live():
        display(widget())
    else:
        display(*twin())

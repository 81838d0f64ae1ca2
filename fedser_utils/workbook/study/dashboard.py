"""One page over all runs: what is done, running and missing for the paper's tables, and the
figures. Live as ipywidgets, in a notebook or through Voila; elsewhere as a static twin of the same
tables. Never imports torch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets
from IPython.display import HTML, Image

from fedser_utils.core.errors import InputError
from fedser_utils.workbook import display
from fedser_utils.workbook.study import pages, pictures
from fedser_utils.workbook.study.pages import Page
from fedser_utils.workbook.study.pictures import Picture

EVERY = 10.0  # seconds between two looks
WIDTH = 1180  # pixels: fits 1280 with the browser's and Jupyter's margins
IN_TWIN = ("fig4", "fig5", "fig6")


def twin(outputs: str | Path) -> Iterator[Any]:
    """The page without widgets: the same tables, and figures 4 to 6 of every study."""
    shown = pages.page(outputs)
    yield HTML(shown.status)
    yield from (HTML(f'<div style="overflow-x: auto">{html}</div>') for html in shown[1:] if html)
    for found in pictures.find(outputs).values():
        for picture in (each for each in found if each.path.stem in IN_TWIN):
            try:
                data, origin = pictures.read(picture)
                yield HTML(pages.caption(picture, origin, now=time.time()))
                yield Image(data, format="png", width=800, alt=f"{picture.title}, {picture.place}")
            except (InputError, OSError) as error:
                yield HTML(f"<p>{escape(str(error))}</p>")


class StudyDashboard(ipywidgets.VBox):
    """The page as widgets. It looks again when asked, and, where the kernel has a loop, every few
    seconds until it is closed."""

    def __init__(self, outputs: str | Path, *, every: float = EVERY) -> None:
        """outputs: the folder of the runs; every: seconds between two looks."""
        self.outputs = Path(outputs)
        self._pictures: Mapping[str, list[Picture]] = {}
        self._drawn: tuple[Path, float] | None = None
        self._parts = Page(*(_scrolled() for _ in Page._fields))
        self.place, self.figure = _choice("Study or run"), _choice("Figure")
        self.button = ipywidgets.Button(description="Refresh", tooltip="Look at the folder again")
        # no tooltip for the image: ipywidgets' page then fails to draw it
        self.image = ipywidgets.Image(layout={"max_width": "100%", "object_fit": "contain"})
        self.caption = ipywidgets.HTML()
        choices = ipywidgets.HBox([self.place, self.figure], layout={"flex_flow": "row wrap"})
        tables = [self._parts.runs, self._parts.needs, self._parts.commands]
        parts = [self._parts.status, self.button, *tables, choices, self.image, self.caption]
        super().__init__(parts, layout={"max_width": f"{WIDTH}px"})
        self.refresh()
        self.button.on_click(lambda _: self.refresh())
        self.place.observe(lambda _: self._offer(), "value")
        self.figure.observe(lambda _: self._draw(), "value")
        self._task = _in_loop(partial(self._keep, every))

    def refresh(self) -> None:
        """Look at the folder again; what has not changed is left alone."""
        for part, html in zip(self._parts, pages.page(self.outputs), strict=True):
            part.value, part.layout.display = html, None if html else "none"
        self._pictures = pictures.find(self.outputs)
        _set_options(self.place, [(name, name) for name in self._pictures])
        self._offer()

    def close(self) -> None:
        if self._task:
            self._task.cancel()
        super().close()

    async def _keep(self, every: float) -> None:
        while self.comm is not None:
            await asyncio.sleep(every)
            self.refresh()

    def _offer(self) -> None:
        own = self._pictures.get(self.place.value, [])
        _set_options(self.figure, [(picture.title, picture.path) for picture in own])
        self._draw()

    def _draw(self) -> None:
        """Show the chosen figure, if it is not the one that is shown."""
        own = self._pictures.get(self.place.value, [])
        picture = next((each for each in own if each.path == self.figure.value), None)
        try:
            drawn = (picture.path, picture.path.stat().st_mtime) if picture else None
            if picture and drawn != self._drawn:
                self.image.value, origin = pictures.read(picture)
                self.caption.value = pages.caption(picture, origin, now=time.time())
            said = ""
        except (InputError, OSError) as error:
            drawn, said = None, f"<p>{escape(str(error))}</p>"
        if drawn is None:
            self.image.value, self.caption.value = b"", said
        self.image.layout.display = None if drawn else "none"
        self._drawn = drawn


def _scrolled() -> ipywidgets.HTML:
    """Text that scrolls in itself, by keyboard too."""
    layout = {"max_height": "22em", "overflow": "auto", "flex": "0 0 auto"}
    return ipywidgets.HTML(layout=layout, tabbable=True)


def _choice(label: str) -> ipywidgets.Dropdown:
    style, layout = {"description_width": "initial"}, {"width": "auto", "min_width": "24em"}
    return ipywidgets.Dropdown(description=label, style=style, layout=layout)


def _set_options(choice: ipywidgets.Dropdown, options: Sequence[tuple[str, Any]]) -> None:
    """Give a choice its options; what is chosen stays while it is among them, else the first is."""
    options, chosen = tuple(options), choice.value
    if choice.options != options:
        choice.options = options
        values = [value for _, value in options]
        choice.value = chosen if chosen in values else next(iter(values), None)


def _in_loop(work: Any) -> asyncio.Task | None:
    """Start a coroutine in the kernel's loop; None where there is none."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return loop.create_task(work())


def show(outputs: str | Path) -> None:
    """Display the page: widgets where somebody can use them, otherwise their twin."""
    display.show(partial(StudyDashboard, outputs), partial(twin, outputs))

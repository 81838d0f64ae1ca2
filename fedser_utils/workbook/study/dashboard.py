"""One page over all runs: their states, what the paper's tables miss, and the figures.

Live as ipywidgets, in a notebook or through Voila; elsewhere as a static twin of the same tables.
Never imports torch.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import ipywidgets
import PIL.Image
from IPython.display import HTML, Image

from fedser_utils.analysis.labels import paper_order
from fedser_utils.core.settings import ROOT
from fedser_utils.workbook import display
from fedser_utils.workbook.controls import set_options
from fedser_utils.workbook.study.dashboard_html import Sections, age, figure_caption, page_sections
from fedser_utils.workbook.study.run_status import folders

INTERVAL = 10.0  # seconds between two refreshes
WIDTH = 1180  # pixels: fits 1280 with the browser's and Jupyter's margins
TITLES = {
    "fig4": "Figure 4: UAR by round",
    "fig5": "Figure 5: UAR by round under four conditions",
    "fig6": "Figure 6: confusions of randomised adversarial clips",
    "fig2": "Figure 2: a clip, attacked",
    "conditions": "UAR by round under four conditions",
    "clients": "Training clips of each client",
    "speakers": "UAR of each speaker",
    "uar_by_epsilon": "UAR against epsilon",
    "uar_by_steps": "UAR against steps",
    "transfer": "Whose clips fool whom",
    "draw": "A draw of the randomisation",
    "tuning": "The randomisation, tuned",
    "eot": "UAR against draws per gradient",
    "security": "Security curve: UAR against epsilon, randomised",
    "certified": "Certified UAR against the L2 radius",
}
TWIN_FIGURES = ("fig4", "fig5", "fig6")


@dataclass(frozen=True)
class Picture:
    """A figure, a PNG. place: the study or run in whose folder it is."""

    place: str
    path: Path

    @property
    def title(self) -> str:
        return TITLES.get(self.path.stem, self.path.stem)

    def read(self) -> tuple[bytes, str]:
        """Its bytes, and its caption as HTML with the origin (runs, commits) stored in it; no bytes
        and the reason if it is no whole PNG."""
        try:
            data, written = self.path.read_bytes(), self.path.stat().st_mtime
            with PIL.Image.open(BytesIO(data), formats=["PNG"]) as image:
                image.verify()
                origin = str(image.info.get("Description", ""))
            since = age(written, time.time())
            return data, figure_caption(self.title, self.place, origin, since)
        except (OSError, SyntaxError, ValueError) as error:
            reason = "missing" if isinstance(error, FileNotFoundError) else "not a whole PNG"
            return b"", f"<p>{escape(f'{self.path.name} of {self.place} is {reason}')}</p>"


def find_pictures(outputs: str | Path) -> dict[str, list[Picture]]:
    """The figures of every study and run, by the name of its folder: studies' first, then runs';
    each in the order of ``TITLES``."""
    studies, single = {}, {}
    for folder in folders(outputs):
        for place, into in ((folder, studies), (folder / "figures", single)):
            paths = {path.stem: path for path in place.glob("*.png") if path.name[0] != "."}
            pictures = [Picture(folder.name, paths[name]) for name in paper_order(paths, TITLES)]
            if pictures:
                into[folder.name] = pictures
    return studies | {name: studies.get(name, []) + rest for name, rest in single.items()}


def twin(outputs: str | Path) -> Iterator[Any]:
    """The page without widgets: the same tables, and figures 4 to 6 of every study."""
    status, *tables = page_sections(outputs)
    yield HTML(status)
    yield from (HTML(f'<div style="overflow-x: auto">{html}</div>') for html in tables if html)
    for pictures in find_pictures(outputs).values():
        for picture in (p for p in pictures if p.path.stem in TWIN_FIGURES):
            data, caption = picture.read()
            yield HTML(caption)
            if data:
                yield Image(data, format="png", width=800, alt=f"{picture.title}, {picture.place}")


class StudyDashboard(ipywidgets.VBox):
    """The page as widgets. It reads the folder anew on a button, and, where the kernel has a loop,
    every few seconds until it is closed."""

    def __init__(self, outputs: str | Path, *, interval: float = INTERVAL) -> None:
        """outputs: the folder of the runs; interval: seconds between two refreshes."""
        self.outputs = Path(outputs)
        self._pictures: Mapping[str, list[Picture]] = {}
        self._sections = Sections(*(_scrolled() for _ in Sections._fields))
        self.place, self.figure = _choice("Study or run"), _choice("Figure")
        self.button = ipywidgets.Button(description="Refresh", tooltip="Read the folder again")
        # no tooltip for the image: ipywidgets' page then fails to draw it
        self.image = ipywidgets.Image(layout={"max_width": "100%", "object_fit": "contain"})
        self.caption = ipywidgets.HTML()
        choices = ipywidgets.HBox([self.place, self.figure], layout={"flex_flow": "row wrap"})
        status, *tables = self._sections
        parts = [status, self.button, *tables, choices, self.image, self.caption]
        super().__init__(parts, layout={"max_width": f"{WIDTH}px"})
        self.refresh()
        self.button.on_click(lambda _: self.refresh())
        self.place.observe(lambda _: self._offer(), "value")
        self.figure.observe(lambda _: self._draw(), "value")
        self._task = _in_loop(partial(self._keep_fresh, interval))

    def refresh(self) -> None:
        """Read the folder again; what has not changed is left alone."""
        for part, html in zip(self._sections, page_sections(self.outputs), strict=True):
            part.value, part.layout.display = html, None if html else "none"
        self._pictures = find_pictures(self.outputs)
        set_options(self.place, [(name, name) for name in self._pictures])
        self._offer()

    def close(self) -> None:
        if self._task:
            self._task.cancel()
        super().close()

    async def _keep_fresh(self, interval: float) -> None:
        while self.comm is not None:
            await asyncio.sleep(interval)
            self.refresh()

    def _offer(self) -> None:
        """Offer the chosen folder's figures, and show the chosen one."""
        pictures = self._pictures.get(self.place.value, [])
        set_options(self.figure, [(picture.title, picture) for picture in pictures])
        self._draw()

    def _draw(self) -> None:
        data, caption = self.figure.value.read() if self.figure.value else (b"", "")
        self.image.value, self.caption.value = data, caption
        self.image.layout.display = None if data else "none"


def _scrolled() -> ipywidgets.HTML:
    """Text that scrolls in itself, by keyboard too."""
    layout = {"max_height": "22em", "overflow": "auto", "flex": "0 0 auto"}
    return ipywidgets.HTML(layout=layout, tabbable=True)


def _choice(label: str) -> ipywidgets.Dropdown:
    style, layout = {"description_width": "initial"}, {"width": "auto", "min_width": "24em"}
    return ipywidgets.Dropdown(description=label, style=style, layout=layout)


def _in_loop(work: Any) -> asyncio.Task | None:
    """Start a coroutine in the kernel's loop; None where there is none."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return loop.create_task(work())


def show(outputs: str | Path | None = None) -> None:
    """Display the page on the runs in ``outputs``: widgets where somebody can use them, otherwise
    their twin. None: the folder that FEDSER_OUTPUTS names, or the repository's outputs/."""
    folder = outputs or os.environ.get("FEDSER_OUTPUTS", ROOT / "outputs")
    display.show(partial(StudyDashboard, folder), partial(twin, folder))

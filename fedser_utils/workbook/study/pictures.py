"""The figures that studies and runs have left in an outputs folder, found and read for a page."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from fedser_utils.analysis.tables import paper_order
from fedser_utils.core.errors import InputError
from fedser_utils.workbook.study.run_status import folders

NAMES = {
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


@dataclass(frozen=True)
class Picture:
    """A PNG. place: the study or run whose folder it lies in."""

    place: str
    path: Path

    @property
    def title(self) -> str:
        return NAMES.get(self.path.stem, self.path.stem)


def find(outputs: str | Path) -> dict[str, list[Picture]]:
    """The figures of every study and run, by the name of its folder: studies' first, then runs';
    each in the order of ``NAMES``."""
    studies, single = {}, {}
    for folder in folders(outputs):
        for place, into in ((folder, studies), (folder / "figures", single)):
            paths = {path.stem: path for path in place.glob("*.png") if path.name[0] != "."}
            if paths:
                own = [Picture(folder.name, paths[name]) for name in paper_order(paths, NAMES)]
                into[folder.name] = into.get(folder.name, []) + own
    return studies | {name: studies.get(name, []) + own for name, own in single.items()}


def read(picture: Picture) -> tuple[bytes, str]:
    """A figure's bytes, and the origin (runs, commits) that was stored in it.

    Raises InputError, in one line, if it is no whole PNG.
    """
    try:
        data = picture.path.read_bytes()
        with Image.open(BytesIO(data), formats=["PNG"]) as image:
            image.verify()
            return data, str(image.info.get("Description", ""))
    except (OSError, SyntaxError, ValueError) as error:
        reason = "missing" if isinstance(error, FileNotFoundError) else "not a whole PNG"
        raise InputError(f"{picture.path.name} of {picture.place} is {reason}") from error

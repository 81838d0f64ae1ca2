"""The one style of all figures: an IEEE page's widths, colours, markers; captions and files."""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from fedser_utils.core.runs import write_table

COLUMN, PAGE = 3.5, 7.16  # inches: one and two columns of an IEEE page
MARKERS = {"nature": "o", "fgsm": "s", "pgd": "^", "deepfool": "D", "centralised": "v"}
COLOURS = {  # Okabe and Ito's
    "nature": "#000000", "fgsm": "#E69F00", "pgd": "#0072B2", "deepfool": "#009E73",
    "centralised": "#D55E00",
}  # fmt: skip
DASHES = {"fgsm": (0, (5, 1.5)), "pgd": (0, (1, 1)), "deepfool": (0, (4, 1, 1, 1))}
STYLE = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "grid.linewidth": 0.5,
    "lines.linewidth": 1.2, "lines.markersize": 3.5, "figure.dpi": 150, "savefig.dpi": 300,
    "legend.frameon": False, "pdf.fonttype": 42, "figure.constrained_layout.use": True,
}  # fmt: skip


@mpl.rc_context(STYLE)  # the PDF's fonts and the PNG's dpi are settled when saving
def save(
    figure: Figure, folder: Path, name: str, *, origin: str = "", rows: pd.DataFrame | None = None
) -> Figure:
    """Write ``folder/name.png`` and ``.pdf``, and return the figure. origin (run ids, commit) goes
    into the files' metadata; rows: the data in the figure, for ``name.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", metadata={"Description": origin})
    figure.savefig(folder / f"{name}.pdf", metadata={"Subject": origin})
    if rows is not None:
        write_table(folder / f"{name}.csv", rows)
    return figure


def with_caption(figure: Figure, caption: str = "") -> Figure:
    """Return the figure with its caption below, closed, so that a notebook shows it once."""
    if caption:
        wrapped = textwrap.fill(caption, width=int(22 * figure.get_figwidth()))
        figure.supxlabel(wrapped, fontsize=6, color="0.3")
    plt.close(figure)
    return figure

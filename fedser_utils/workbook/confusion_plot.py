"""What a confusion matrix looks like: one wording and one choice of colours, for the widget's
buttons and for its static twin. Never imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fedser_utils.analysis.confusion_data import Score, Setting, shares
from fedser_utils.analysis.figures import PAGE, STYLE
from fedser_utils.analysis.tables import ATTACK_NAMES, CONDITIONS, MODEL_NAMES, terms

UNITS = ("percent", "counts")
STRONG = 50  # percent points from which a difference has its full colour
COLOURS = f"purple: more often in (a); orange: more often in (b) (full: {STRONG} points)"


class Cell(NamedTuple):
    """text: the number; colours as #rrggbb; words: what the number means."""

    text: str
    background: str
    foreground: str
    words: str


def cells(*counts: pd.DataFrame, unit: str) -> list[list[Cell]]:
    """A matrix's cells, or, of two matrices, those of the difference first - second.

    counts: (classes, classes), rows true; unit: one of ``UNITS``.
    """
    percent, signed = unit == "percent", len(counts) > 1
    made = [(shares(own) if percent else own).to_numpy(float) for own in counts]
    values = made[0] - made[1] if signed else made[0]
    colours = _colours(_in_percent(values, counts, percent=percent), signed=signed)
    words = _words(*counts)
    return [
        [Cell(_text(value, percent, signed), *look, text) for value, look, text in zip(*row)]
        for row in zip(values, colours, words, strict=True)
    ]


def _in_percent(values: np.ndarray, counts: Sequence[pd.DataFrame], *, percent: bool) -> np.ndarray:
    """What the colour of each number says: its share of its row, with the number's own sign."""
    if percent:
        return values
    totals = np.max([own.sum(axis=1) for own in counts], axis=0)
    return 100 * values / np.where(totals, totals, np.nan)[:, None]


def _text(value: float, percent: bool, signed: bool) -> str:
    if np.isnan(value):
        return "–"
    number = f"{value:+.0f}" if signed and round(value) else f"{abs(value):.0f}"
    number = number.replace("-", "−")
    return number + " %" if percent and not signed else number


def _colours(values: np.ndarray, *, signed: bool) -> list[list[tuple[str, str]]]:
    """Background, and black or white on it, whichever is easier to read; white for NaN."""
    scaled = 0.5 + values / (2 * STRONG) if signed else values / 100
    rgb = (_DIFFERENCE if signed else _SHARE)(np.clip(scaled, 0, 1))[..., :3]
    rgb = np.where(np.isnan(values)[..., None], 1, rgb)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    light = linear @ (0.2126, 0.7152, 0.0722)  # WCAG's relative luminance
    return [
        [(mpl.colors.to_hex(c), "#000000" if bright > 0.179 else "#ffffff") for c, bright in row]
        for row in (zip(*both, strict=True) for both in zip(rgb, light, strict=True))
    ]


_SHARE, _DIFFERENCE = mpl.colormaps["Blues"], mpl.colormaps["PuOr"]


def _words(first: pd.DataFrame, second: pd.DataFrame | None = None) -> list[list[str]]:
    """What every cell's number means, in words."""
    totals = first.sum(axis=1)
    found = []
    for truth, row in zip(first.index, first.to_numpy(), strict=True):
        titles = (title(truth, said) for said in first.columns)
        found.append([f"{name}: {n} of {totals[truth]}" for name, n in zip(titles, row)])
    if second is None:
        return found
    there = [[words.split(": ")[-1] for words in row] for row in _words(second)]
    return [[f"{a} in (a), {b} in (b)" for a, b in zip(*rows)] for rows in zip(found, there)]


def title(truth: str, decision: str) -> str:
    """A cell in words."""
    return f"{truth} recognised" if truth == decision else f"{truth} taken for {decision}"


def describe(setting: Setting) -> str:
    """A setting in words."""
    attack = ATTACK_NAMES.get(setting.attack, setting.attack)
    attack = "no attack" if setting.attack == "none" else f"{attack} attack"
    condition = CONDITIONS.get(setting.condition, setting.condition).lower()
    model = MODEL_NAMES.get(setting.model, setting.model)
    return f"{model}, {attack}, {condition} clips, round {setting.round}"


def uar_text(score: Score, *, client: str = "speaker") -> str:
    """A UAR, its interval and its n in a line. client: the word for one of those drawn."""
    seeds = ("seed " if len(score.seeds) == 1 else "mean of seeds ") + ", ".join(
        map(str, score.seeds)
    )
    interval = f"no interval, as there is one {client}"
    if score.speakers > 1:
        interval = (
            f"95 % interval {score.low:.1f} to {score.high:.1f}, over {score.speakers} {client}s"
        )
    return f"UAR {score.uar:.1f} % ({interval}), n = {score.n} clips, {seeds}"


def gain_text(gain: tuple[float, float, float], *, client: str = "speaker") -> str:
    """A difference of two UARs in a line. client: as ``measured`` has it."""
    value, low, high = (f"{number:+.1f}".replace("-", "−") for number in gain)
    return f"{value} points (95 % interval {low} to {high}, the same {client}s drawn for both)"


@mpl.rc_context(STYLE)
def figure(panels: Sequence[tuple[str, Sequence[pd.DataFrame]]]) -> Figure:
    """Matrices side by side. panels: title and counts, for a difference two.
    Colour and text: percent of the row, of a difference points; in parentheses the count."""
    classes = list(panels[0][1][0].index)
    label = terms(classes).label
    side = PAGE / 3 * max(1, len(classes) / 7)
    size = max(0.5 * PAGE, side * len(panels)), side * 1.5
    figure, grid = plt.subplots(1, len(panels), figsize=size, squeeze=False)
    for axes, letter, (name, counts) in zip(grid[0], "abc", panels, strict=False):
        _matrix(axes, counts)
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes if letter == "a" else [])
        axes.set_title(f"({letter}) {name}", fontsize=7)
        axes.set(xlabel="the model's decision", ylabel=f"true {label}" if letter == "a" else "")
    unit = f"percent of a true {label}'s clips; in parentheses clips, of all seeds together"
    figure.supxlabel(unit, fontsize=6, color="0.3")
    plt.close(figure)  # returned to be shown once, not a second time at the cell's end
    return figure


def _matrix(axes: plt.Axes, counts: Sequence[pd.DataFrame]) -> None:
    """One panel: the buttons' colours and numbers, and, where there are counts, these."""
    own = cells(*counts, unit="percent")
    axes.imshow([[mpl.colors.to_rgb(cell.background) for cell in row] for row in own])
    for y, row in enumerate(own):
        for x, cell in enumerate(row):
            text = cell.text.removesuffix(" %")
            text += f"\n({counts[0].iloc[y, x]})" if len(counts) == 1 else ""
            axes.text(x, y, text, color=cell.foreground, ha="center", va="center", fontsize=6)
    axes.tick_params(length=0)
    axes.grid(False)

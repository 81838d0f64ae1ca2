"""Confusion matrices for the explorer: cells of its buttons, sentences, and the static figure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from seaborn.utils import relative_luminance

from fedser_utils.analysis import figures
from fedser_utils.analysis.confusion_data import Score, Setting, cell_text, shares
from fedser_utils.analysis.labels import ATTACK_NAMES, CONDITIONS, MODEL_NAMES, terms

UNITS = ("percent", "counts")
LEGEND = (
    f"purple: more often in (a); orange: more often in (b) (full: {figures.FULL_DIFFERENCE} points)"
)


class Cell(NamedTuple):
    """text: the number; background, foreground: #rrggbb; words: what the number means."""

    text: str
    background: str
    foreground: str
    words: str


def cells(
    counts: pd.DataFrame, minus: pd.DataFrame | None = None, *, unit: str
) -> list[list[Cell]]:
    """Return the cells of a confusion matrix, or of the difference ``counts - minus``, by row.

    counts, minus: (classes, classes) clips, rows true; unit: one of ``UNITS``.
    """
    signed, tables = minus is not None, [counts] if minus is None else [counts, minus]
    first, *second = [shares(table) if unit == "percent" else table for table in tables]
    values = first - second[0] if signed else first
    texts = values.map(partial(cell_text, signed=signed))
    if unit == "percent":
        percent = values
        texts = texts if signed else (texts + " %").where(values.notna(), texts)
    else:  # coloured by the share of the row, with the sign of the counts' difference
        clips = np.max([table.sum(axis=1) for table in tables], axis=0)
        percent = 100 * values / np.where(clips, clips, np.nan)[:, None]
    colours = button_colours(percent.to_numpy(float), signed=signed)
    return [
        [
            Cell(texts.iloc[i, j], *colours[i][j], _words(tables, truth, decision))
            for j, decision in enumerate(counts.columns)
        ]
        for i, truth in enumerate(counts.index)
    ]


def button_colours(percent: np.ndarray, *, signed: bool) -> list[list[tuple[str, str]]]:
    """Return (background, foreground) of each cell: the colour of ``figures.confusion_matrix``, and
    black or white, whichever is easier to read on it. percent: (classes, classes); NaN is white."""
    full = figures.FULL_DIFFERENCE
    name, low, high = ("PuOr", -full, full) if signed else ("Blues", 0, 100)
    scaled = mpl.colors.Normalize(low, high)(percent)
    rgb = mpl.colormaps[name].with_extremes(bad="white")(scaled)[..., :3]
    light = relative_luminance(rgb.reshape(-1, 3)).reshape(percent.shape)
    text = np.where(light > 0.179, "#000000", "#ffffff")  # equal contrast by WCAG 2
    return [
        [(mpl.colors.to_hex(colour), str(front)) for colour, front in zip(*row, strict=True)]
        for row in zip(rgb, text, strict=True)
    ]


def _words(tables: Sequence[pd.DataFrame], truth: str, decision: str) -> str:
    """Return what a cell's number means; tables: the counts, of a difference (a) and (b)."""
    parts = [f"{table.loc[truth, decision]} of {table.loc[truth].sum()}" for table in tables]
    if len(parts) > 1:
        parts = [f"{part} in ({letter})" for part, letter in zip(parts, "ab", strict=True)]
    return f"{cell_title(truth, decision)}: {', '.join(parts)}"


def cell_title(truth: str, decision: str) -> str:
    """Return a cell in words, e.g. ``fear taken for guilt``."""
    return f"{truth} recognised" if truth == decision else f"{truth} taken for {decision}"


def describe(setting: Setting) -> str:
    """Return a setting in words, e.g. ``Nature, PGD attack, adversarial clips, round 300``."""
    attack = ATTACK_NAMES.get(setting.attack, setting.attack)
    attack = "no attack" if setting.attack == "none" else f"{attack} attack"
    condition = CONDITIONS.get(setting.condition, setting.condition).lower()
    model = MODEL_NAMES.get(setting.model, setting.model)
    return f"{model}, {attack}, {condition} clips, round {setting.round}"


def uar_text(score: Score, *, client: str = "speaker") -> str:
    """Return a UAR with its interval, clips and seeds as a phrase. client: the word for those whom
    the interval's bootstrap draws."""
    interval = f"no interval, as there is one {client}"
    if score.speakers > 1:
        bounds = f"{score.low:.1f} to {score.high:.1f}"
        interval = f"95 % interval {bounds}, over {score.speakers} {client}s"
    seeds = "seed " if len(score.seeds) == 1 else "mean of seeds "
    seeds += ", ".join(map(str, score.seeds))
    return f"UAR {score.uar:.1f} % ({interval}), n = {score.n} clips, {seeds}"


def gain_text(gain: tuple[float, float, float], *, client: str = "speaker") -> str:
    """Return the difference of two UARs, (value, low, high) in points, as a phrase."""
    value, low, high = (f"{number:+.1f}".replace("-", "−") for number in gain)
    return f"{value} points (95 % interval {low} to {high}, the same {client}s drawn for both)"


@mpl.rc_context(figures.STYLE)
def figure(panels: Sequence[tuple[str, Sequence[pd.DataFrame]]]) -> Figure:
    """Return confusion matrices side by side. panels: title and counts, of a difference two."""
    classes = list(panels[0][1][0].index)
    label = terms(classes).label
    side = figures.PAGE / 3 * max(1, len(classes) / 7)
    size = max(figures.PAGE / 2, side * len(panels)), side * 1.5
    figure, grid = plt.subplots(1, len(panels), figsize=size, squeeze=False)
    for axes, letter, (title, counts) in zip(grid[0], "abc", panels, strict=False):
        figures.confusion_matrix(axes, *counts)
        axes.set_title(f"({letter}) {title}", fontsize=7)
        axes.set(xlabel="Predicted", ylabel=f"True {label}" if letter == "a" else "")
        axes.tick_params(axis="x", rotation=90)
        axes.tick_params(axis="y", rotation=0, labelleft=letter == "a")
    unit = f"percent of a true {label}'s clips; in parentheses clips, of all seeds together"
    return figures.with_caption(figure, unit)

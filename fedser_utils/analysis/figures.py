"""The figures of the paper and of the further pages, from the rows and arrays that runs leave.

Curves are told apart by the colour-blind and on a grey printer, since line styles and markers
differ too. Figures of matrices and images are drawn in ``heatmaps``.
"""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fedser_utils.analysis.figure_style import (
    COLOURS,
    COLUMN,
    DASHES,
    MARKERS,
    PAGE,
    STYLE,
    save,
    with_caption,
)
from fedser_utils.analysis.heatmaps import (
    FULL_DIFFERENCE,
    confusion_matrix,
    confusions,
    examples,
    log_mels,
    transfer,
    tuning,
)
from fedser_utils.analysis.labels import (
    ATTACK_NAMES,
    CONDITIONS,
    KEY,
    MODEL_NAMES,
    label,
    paper_order,
)

__all__ = [
    "FULL_DIFFERENCE", "PAGE", "STYLE", "by_model", "confusion_matrix", "confusions", "examples",
    "four_conditions", "log_mels", "save", "speakers", "transfer", "tuning", "uar_against",
    "uar_by_round", "with_caption",
]  # fmt: skip


@mpl.rc_context(STYLE)
def uar_by_round(rounds: pd.DataFrame, *, condition: str = "original", caption: str = "") -> Figure:
    """Return Fig. 4: test UAR against the round, a curve per model. rounds: of ``rounds.csv``."""
    figure, axes = plt.subplots(figsize=(COLUMN, 2.7))
    _curves(axes, rounds[rounds["condition"] == condition])
    figure.legend(loc="outside upper center", ncols=2)
    return with_caption(figure, caption)


@mpl.rc_context(STYLE)
def four_conditions(rounds: pd.DataFrame, *, caption: str = "") -> Figure:
    """Return Fig. 5: UAR against the round on (a) original, (b) randomised, (c) adversarial and (d)
    randomised adversarial test clips, on one scale. rounds: of ``rounds.csv``."""
    figure, grid = plt.subplots(2, 2, figsize=(PAGE, 4.6), sharex=True, sharey=True)
    for axes, letter, (condition, title) in zip(grid.flat, "abcd", CONDITIONS.items(), strict=True):
        _curves(axes, rounds[rounds["condition"] == condition])
        axes.set_title(f"({letter}) {title}")
        axes.label_outer()
    handles: dict[str, object] = {}
    for axes in (grid[0, 0], grid[1, 0]):
        for handle, text in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(text, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=3)
    return with_caption(figure, caption)


def _curves(axes: plt.Axes, rounds: pd.DataFrame) -> None:
    """Draw a curve per model and attack: the mean over seeds, and their deviation as a band."""
    for model in paper_order(rounds["model"], MODEL_NAMES):
        of_model = rounds[rounds["model"] == model]
        for attack in paper_order(of_model["attack"], ATTACK_NAMES):
            by_round = of_model[of_model["attack"] == attack].groupby("round")["uar"]
            mean, deviation = by_round.mean(), by_round.std().fillna(0)
            style = _curve_style(model, attack)
            axes.plot(mean.index, mean, label=label(model, attack), clip_on=False, **style)
            if by_round.count().max() > 1:
                axes.fill_between(
                    mean.index, mean - deviation, mean + deviation, color=style["color"],
                    alpha=0.15, linewidth=0,
                )  # fmt: skip
    axes.set(xlabel="Round", ylabel="UAR [%]", ylim=(0, 100))
    axes.xaxis.get_major_locator().set_params(integer=True)


def _curve_style(model: str, attack: str = "none") -> dict[str, Any]:
    """Return a curve's style: the colour tells the training; dashes and marker the attack, or
    without one again the training. Filled markers: adversarially trained federated models; large
    ones on a thin line: centralised."""
    training = model.removeprefix("centralised-")
    central = model.startswith("centralised")
    kind = training if attack == "none" else attack
    colour = COLOURS.get(training, "0.4")
    return {
        "color": colour, "linestyle": DASHES.get(kind, "-"), "marker": MARKERS.get(kind, "o"),
        "markerfacecolor": "white" if central or model == "nature" else colour,
        "linewidth": 0.7 if central else 1.2, "markersize": 5 if central else 3.5,
    }  # fmt: skip


@mpl.rc_context(STYLE)
def speakers(uars: pd.DataFrame, *, client: str = "speaker", caption: str = "") -> Figure:
    """Return the UAR of every speaker, a row per model and attack, a panel per condition. uars: of
    ``comparisons.by_speaker``; client: the word for a speaker (``labels.terms``)."""
    panels = {
        condition: list(uars[uars["condition"] == condition].groupby(KEY[:2], sort=False))
        for condition in CONDITIONS
    }
    heights = [len(panels["original"]), len(panels["adversarial"])]
    size = PAGE, 1.7 + 0.2 * sum(heights)
    figure, grid = plt.subplots(
        2, 2, figsize=size, sharex=True, sharey="row", height_ratios=heights
    )
    for axes, letter, (condition, groups) in zip(grid.flat, "abcd", panels.items(), strict=True):
        handles = [_speakers(axes, y, rows) for y, (_, rows) in enumerate(groups)]
        axes.set_yticks(range(len(groups)), [label(*name) for name, _ in groups])
        axes.set(ylim=(len(groups) - 0.5, -0.5), xlim=(0, 100))
        axes.set_title(f"({letter}) {CONDITIONS[condition]}")
    for axes in grid[1]:
        axes.set_xlabel("UAR [%]")
    names = [f"a {client}", f"mean over {client}s", f"worst {client}, named at the right"]
    figure.legend(handles[0], names, loc="outside upper center", ncols=3)
    return with_caption(figure, caption)


def _speakers(axes: plt.Axes, y: float, rows: pd.DataFrame) -> list[Any]:
    """Draw one row of ``speakers`` and return its handles: every speaker, their mean, the worst."""
    places = y + np.linspace(-0.3, 0.3, len(rows))  # a speaker has the same place in every row
    mean, worst = rows["uar"].mean(), rows["uar"].argmin()
    name = rows["speaker"].iloc[worst]
    axes.text(1.03, y, name, transform=axes.get_yaxis_transform(), va="center", fontsize=6)
    return [
        *axes.plot(rows["uar"], places, "o", color="0.55", markersize=2, clip_on=False),
        *axes.plot([mean, mean], [y - 0.4, y + 0.4], color="black"),
        *axes.plot(
            rows["uar"].iloc[worst], places[worst], "X", color=COLOURS["centralised"],
            markeredgecolor="black", markeredgewidth=0.4, markersize=5, clip_on=False,
        ),
    ]  # fmt: skip


@mpl.rc_context(STYLE)
def uar_against(
    rows: pd.DataFrame, x: str, *, xlabel: str, by: str = "attack", chance: float | None = None,
    caption: str = "",
) -> Figure:  # fmt: skip
    """Return UAR against any column of ``rows``, a curve per value of ``by``; chance: percent."""
    figure, axes = plt.subplots(figsize=(COLUMN, 2.4))
    for name, group in rows.groupby(by, sort=False):
        style = {"color": COLOURS.get(name, "0.4"), "marker": MARKERS.get(name, "o")}
        axes.plot(group[x], group["uar"], label=ATTACK_NAMES.get(name, name), **style)
    if chance is not None:
        axes.axhline(chance, color="0.5", linestyle=":", label="chance")
    axes.set(xlabel=xlabel, ylabel="UAR [%]", ylim=(0, 100))
    axes.legend()
    return with_caption(figure, caption)


@mpl.rc_context(STYLE)
def by_model(
    rows: pd.DataFrame, *, xlabel: str, ylabel: str = "UAR [%]", chance: float | None = None,
    log: bool = False, caption: str = "",
) -> Figure:  # fmt: skip
    """Return UAR against value, a curve per model; where ``rows`` have a column defended, solid
    behind the randomisation and dotted without it. chance: percent; log: the axis of the values."""
    figure, axes = plt.subplots(figsize=(COLUMN, 2.8))
    both = "defended" in rows
    for model in paper_order(rows["model"], MODEL_NAMES):
        of_model = rows[rows["model"] == model]
        for defended, group in of_model.groupby("defended" if both else "model"):
            style = _curve_style(model) | ({"marker": ""} if len(group) > 20 else {})
            style |= {"linestyle": "-" if defended else ":"} if both else {}
            name = label(model) if defended or not both else None
            axes.plot(group["value"], group["uar"], label=name, **style)
    for style, name in (("-", "randomised"), (":", "not randomised")) if both else ():
        axes.plot([], [], color="0.4", linestyle=style, label=name)
    if chance is not None:
        axes.axhline(chance, color="0.5", linestyle=(0, (1, 3)), linewidth=0.8, label="chance")
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(-2, 102), xscale="log" if log else "linear")
    figure.legend(loc="outside upper center", ncols=2)
    return with_caption(figure, caption)

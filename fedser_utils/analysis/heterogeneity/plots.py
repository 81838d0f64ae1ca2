"""Figures of heterogeneous clients and of interventions.

Legends stand outside the axes: there may be as many curves as interventions or speakers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from fedser_utils.analysis.figure_style import PAGE, STYLE, with_caption
from fedser_utils.analysis.heterogeneity.client_differences import ALL
from fedser_utils.analysis.heterogeneity.interventions import BASELINE
from fedser_utils.analysis.labels import CONDITIONS, class_order

# Okabe and Ito's; black is reserved for the baseline, or for all together
_COLOURS = ("#E69F00", "#0072B2", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "0.45")
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_BLACK = {"color": "black", "linestyle": "-", "linewidth": 2.2, "zorder": 5}


def _curve_styles(names: Iterable[str]) -> dict[str, dict]:
    """Return a style for each name: seven colours and markers, then again with other dashes."""
    cycle = itertools.product(_DASHES, zip(_COLOURS, _MARKERS, strict=True))
    return {
        name: {"color": colour, "marker": marker, "linestyle": dash}
        for name, (dash, (colour, marker)) in zip(names, itertools.cycle(cycle))
    }


def _legend(figure: Figure, axes: plt.Axes) -> None:
    """Draw the legend at the right of the axes, in as many columns as its height needs."""
    handles, names = axes.get_legend_handles_labels()
    rows = max(1, int(figure.get_figheight() / 0.17))
    columns = -(-len(names) // rows)
    figure.legend(handles, names, loc="outside right upper", ncols=columns, handlelength=2.6)


@mpl.rc_context(STYLE)
def interventions(
    rounds: pd.DataFrame, *, condition: str = "original", caption: str = ""
) -> Figure:
    """Return UAR against the round, a curve per intervention: the mean over seeds, "as given" black
    and thick. rounds: of ``rounds.csv`` with the column intervention."""
    rows = rounds[rounds["condition"] == condition]
    names = list(dict.fromkeys(rows["intervention"]))
    styles = _curve_styles(name for name in names if name != BASELINE) | {BASELINE: _BLACK}
    figure, axes = plt.subplots(figsize=(PAGE, 3.2))
    for name in names:
        mean = rows[rows["intervention"] == name].groupby("round")["uar"].mean()
        axes.plot(mean.index, mean, label=name, **styles[name])
    axes.set(xlabel="Round", ylabel=f"UAR [%], {CONDITIONS[condition].lower()}", ylim=(0, 100))
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, axes)
    return with_caption(figure, caption)


@mpl.rc_context(STYLE)
def input_shift(bands: pd.DataFrame, *, caption: str = "") -> Figure:
    """Return the mean log-Mel of each band, a curve per group with its standard deviation as a
    band, all together black. bands: of ``client_differences.input_shift``."""
    by = bands.columns[0]
    names = [name for name in dict.fromkeys(bands[by]) if name != ALL]
    styles = _curve_styles(names) | {ALL: _BLACK}
    figure, axes = plt.subplots(figsize=(PAGE, 2.8))
    for name in [ALL, *names]:
        group, style = bands[bands[by] == name], styles[name]
        axes.plot(group["band"], group["mean"], label=name, **style | {"marker": ""})
        if name != ALL:
            low, high = group["mean"] - group["std"], group["mean"] + group["std"]
            area = {"color": style["color"], "alpha": 0.1, "linewidth": 0}
            axes.fill_between(group["band"], low, high, **area)
    axes.set(xlabel="Mel band", ylabel="log-Mel (mean; area: deviation)")
    _legend(figure, axes)
    return with_caption(figure, caption)


@mpl.rc_context(STYLE)
def drift(rows: pd.DataFrame, *, caption: str = "") -> Figure:
    """Return the cosine of every client's update to the mean update against its length. A marker
    per corpus, as large as the client has clips. rows: of ``federated.client_drift.drift``."""
    figure, axes = plt.subplots(figsize=(PAGE, 2.8))
    styles = _curve_styles(rows["corpus"].unique())
    sizes = 12 + 60 * rows["examples"] / rows["examples"].max()
    for name, group in rows.groupby("corpus", sort=False):
        style = {key: styles[name][key] for key in ("color", "marker")}
        style |= {"s": sizes[group.index], "alpha": 0.7, "linewidths": 0.4, "edgecolors": "black"}
        axes.scatter(100 * group["relative"], group["cosine"], label=name, **style)
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set(xlabel="Length of the update [% of the weights' norm]", ylabel="Cosine to the mean")
    _legend(figure, axes)
    return with_caption(figure, caption)


@mpl.rc_context(STYLE)
def batch_norm_shift(rows: pd.DataFrame, *, caption: str = "") -> Figure:
    """Return the distance of each corpus's batch statistics from the model's, layer by layer: (a)
    means, (b) variances; all corpora together black. rows: of
    ``federated.client_drift.batch_norm_shift``."""
    figure, panels = plt.subplots(1, 2, figsize=(PAGE, 2.6), sharex=True)
    names = [name for name in dict.fromkeys(rows["corpus"]) if name != ALL]
    styles = _curve_styles(names) | {ALL: _BLACK}
    titles = {
        "mean_shift": "(a) Means [std of the model]",
        "variance_shift": "(b) Variances [|ln|]",
    }
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        for name in [ALL, *names]:
            group = rows[rows["corpus"] == name]
            axes.plot(group["layer"], group[column], label=name, **styles[name])
        axes.set(title=title, xlabel="Layer", ylabel="Mean over channels", ylim=(0, None))
        axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, panels[0])
    return with_caption(figure, caption)


@mpl.rc_context(STYLE)
def clients_by_class(clips: pd.DataFrame, *, caption: str = "") -> Figure:
    """Return the training clips of each client and class, clients grouped by corpus. The colour is
    a class's share of the client's clips; the numbers, where there is room, are the clips. A client
    with clips of several corpora stands in each of them. clips: of ``clips.parquet``."""
    train = clips[clips["split"] == "train"]
    counts = pd.crosstab([train["corpus"], train["client"]], train["emotion"])
    counts = counts[class_order(counts.columns)]
    share = 100 * counts.div(counts.sum(axis=1), axis=0)
    figure, axes = plt.subplots(figsize=(PAGE, 1.6 + 0.24 * counts.shape[1]))
    axes.grid(False)
    image = axes.imshow(share.T, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_yticks(range(counts.shape[1]), counts.columns)
    every = -(-len(counts) // 75)  # there is room for 75 names
    names = counts.index.get_level_values("client")
    axes.set_xticks(
        range(0, len(counts), every), names[::every], rotation=90,
        fontsize=6 if len(counts) <= 40 else 4.5,
    )  # fmt: skip
    if len(counts) <= 30:
        for (place, row), value in np.ndenumerate(counts.to_numpy()):
            colour = "white" if share.iloc[place, row] > 55 else "black"
            text = {"ha": "center", "va": "center", "fontsize": 6, "color": colour}
            axes.text(place, row, str(value), **text)
    _corpora(axes, list(counts.index.get_level_values("corpus")))
    axes.set_xlabel("Client")
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="Share of the client's clips [%]", pad=0.01)
    return with_caption(figure, caption)


def _corpora(axes: plt.Axes, corpora: list[str]) -> None:
    """Draw a line between corpora, and their names above: slanted where they would meet."""
    groups = [(name, len(list(clients))) for name, clients in itertools.groupby(corpora)]
    start, room = 0, 100 / len(corpora)  # letters for one client
    slanted = any(len(name) + 1 > room * count for name, count in groups)
    for name, count in groups:
        if start:
            axes.axvline(start - 0.5, color="black", linewidth=1)
        turn = {"rotation": 30, "ha": "left"} if slanted else {"ha": "center"}
        middle = start + count / 2 - 0.5
        axes.text(middle, 1.02, name, transform=axes.get_xaxis_transform(), va="bottom", **turn)
        start += count


@mpl.rc_context(STYLE)
def against_alpha(rows: pd.DataFrame, *, caption: str = "") -> Figure:
    """Return UAR against the Dirichlet partition's alpha (small: clients differ much), a curve per
    condition. The area is the middle half of the clients, dots are the worst client, both on
    original clips. rows: of ``client_differences.uar_by_alpha``."""
    figure, axes = plt.subplots(figsize=(PAGE, 2.8))
    names = [name for name in CONDITIONS if name in set(rows["condition"])]
    styles = _curve_styles(names)
    for name in names:
        curve = rows[rows["condition"] == name].sort_values("alpha")
        axes.plot(curve["alpha"], curve["uar"], label=CONDITIONS[name], **styles[name])
    curve = rows[rows["condition"] == "original"].sort_values("alpha")
    colour = styles["original"]["color"]
    half = {"color": colour, "alpha": 0.15, "linewidth": 0, "label": "middle half of clients"}
    axes.fill_between(curve["alpha"], curve["low"], curve["high"], **half)
    axes.plot(
        curve["alpha"], curve["worst_uar"], ":", color=colour, marker=".", label="worst client"
    )
    axes.set(xscale="log", xlabel="Dirichlet alpha", ylabel="UAR [%]", ylim=(0, 100))
    axes.set_xticks(curve["alpha"], [f"{alpha:g}" for alpha in curve["alpha"]])
    axes.minorticks_off()
    _legend(figure, axes)
    return with_caption(figure, caption)

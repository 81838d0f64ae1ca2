"""Figures of matrices and images: confusion matrices, log-Mels, tuning grids, transfer tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fedser_utils.analysis import metrics
from fedser_utils.analysis.confusion_data import cell_text, shares
from fedser_utils.analysis.figure_style import COLUMN, PAGE, STYLE, with_caption
from fedser_utils.analysis.labels import (
    ATTACK_NAMES,
    KEY,
    MODEL_NAMES,
    MODELS,
    class_order,
    label,
    paper_order,
    sort_rows,
)
from fedser_utils.analysis.tables import last_round
from fedser_utils.core.front_end import SPEECH, FrontEnd

FULL_DIFFERENCE = 50  # points from which a difference of confusion matrices has its full colour


@mpl.rc_context(STYLE)
def confusions(
    predictions: pd.DataFrame,
    *,
    condition: str = "randomised_adversarial",
    caption: str = "",
) -> Figure:
    """Return Fig. 6: the confusion matrix after the last round of each adversarially trained model
    (of nature, if there is no other), over all seeds. predictions: of ``predictions.parquet``."""
    rows = last_round(predictions[predictions["condition"] == condition])
    federated = [rows[rows["model"].isin(names)] for names in (MODELS[1:], MODELS[:1])]
    rows = next((group for group in federated if len(group)), rows)
    names = list(sort_rows(rows[KEY].drop_duplicates())[KEY[:2]].itertuples(index=False, name=None))
    classes = class_order({*rows["y_true"], *rows["y_pred"]})
    side = PAGE / 3 * max(1, len(classes) / 7)
    size = max(COLUMN, side * len(names)), side * 1.08
    figure, grid = plt.subplots(1, len(names), figsize=size, squeeze=False)
    groups = rows.groupby(KEY[:2])
    for axes, letter, name in zip(grid[0], "abcdefghi", names, strict=False):
        group = groups.get_group(name)
        counts = metrics.confusion(group["y_true"], group["y_pred"], classes)
        confusion_matrix(axes, counts, names=[each[:3] for each in classes])
        axes.set_title(f"({letter}) {label(*name)}", fontsize=7)
        axes.set(xlabel="Predicted", ylabel="True" if letter == "a" else "")
    return with_caption(figure, caption)


def confusion_matrix(
    axes: plt.Axes,
    counts: pd.DataFrame,
    minus: pd.DataFrame | None = None,
    *,
    names: Sequence[str] | None = None,
) -> None:
    """Draw a confusion matrix, or the difference of two, into ``axes``.

    counts, minus: (classes, classes) clips, rows true, columns predicted; names: (classes,) of the
    ticks, otherwise the classes. Colour: percent of the row, or of a difference points, full at
    ``FULL_DIFFERENCE`` (purple: more often in ``counts``). Text: the same number, and of a single
    matrix the count in parentheses; a row without clips has a dash.
    """
    values = shares(counts) - (0 if minus is None else shares(minus))
    text = values.map(partial(cell_text, signed=minus is not None))
    if minus is None:
        text = text + counts.map("\n({})".format)
        scale = {"cmap": "Blues", "vmin": 0, "vmax": 100}
    else:
        scale = {"cmap": "PuOr", "vmin": -FULL_DIFFERENCE, "vmax": FULL_DIFFERENCE}
    ticks = list(counts.index) if names is None else list(names)
    sns.heatmap(
        values.fillna(0), annot=text, fmt="", cbar=False, square=True, linewidths=0.5,
        linecolor="0.85", xticklabels=ticks, yticklabels=ticks, ax=axes,
        annot_kws={"fontsize": 6}, **scale,
    )  # fmt: skip
    axes.tick_params(length=0)
    axes.grid(False)


@mpl.rc_context(STYLE)
def examples(
    arrays: Mapping[str, np.ndarray],
    *,
    front: FrontEnd = SPEECH,
    caption: str = "",
) -> Figure:
    """Return Fig. 2: a clip, and per attack the attacked clip and the perturbation x 100.

    arrays: "original" and each attack's name -> (frames, bands), standardised log-Mel.
    """
    draw = partial(_image, front=front)
    names = [name for name in ATTACK_NAMES if name in arrays]
    figure, grid = plt.subplots(
        1 + len(names), 2, figsize=(PAGE, 1.25 * (1 + len(names))), sharex=True, sharey=True
    )
    original = arrays["original"]
    limit = np.abs(original).max()
    # one scale for all perturbations; a few of DeepFool's values may lie beyond it
    largest = max(100 * np.quantile(np.abs(arrays[name] - original), 0.99) for name in names)
    rows = [("Original", original)] + [(ATTACK_NAMES[name], arrays[name]) for name in names]
    for letter, row, (title, image) in zip("abcde", grid, rows, strict=False):
        log_mel = draw(row[0], image, limit, "magma")
        row[0].set_title(f"({letter}) {title}" + ("" if image is original else " sample"))
        if image is original:
            row[1].set_axis_off()
            continue
        delta = draw(row[1], 100 * (image - original), largest, "cividis")
        row[1].set_title("Perturbation x 100")
    for axes in grid[:, 0]:
        axes.set_ylabel("Mel band")
    for axes in grid[-1]:
        axes.set_xlabel("Time [s]")
    figure.colorbar(log_mel, ax=grid[:, 0], label="standardised log-Mel", aspect=40)
    figure.colorbar(delta, ax=grid[1:, 1], label="100 x difference", aspect=30)
    return with_caption(figure, caption)


@mpl.rc_context(STYLE)
def log_mels(
    images: Sequence[np.ndarray],
    titles: Sequence[str],
    *,
    front: FrontEnd = SPEECH,
    caption: str = "",
) -> Figure:
    """Return log-Mels, (frames, bands) each, below each other on one colour scale."""
    figure, grid = plt.subplots(
        len(images), 1, figsize=(PAGE, 1.3 * len(images)), sharex=True, squeeze=False
    )
    limit = max(np.abs(image).max() for image in images)
    for axes, image, title in zip(grid[:, 0], images, titles, strict=True):
        mappable = _image(axes, image, limit, "magma", front=front)
        axes.set(title=title, ylabel="Mel band")
    grid[-1, 0].set_xlabel("Time [s]")
    figure.colorbar(mappable, ax=grid[:, 0], label="standardised log-Mel", aspect=40)
    return with_caption(figure, caption)


def _image(
    axes: plt.Axes, image: np.ndarray, limit: float, colours: str, *, front: FrontEnd
) -> mpl.image.AxesImage:
    seconds = len(image) * (front.hop / front.sample_rate)
    extent = (0, seconds, 0, image.shape[1])
    axes.grid(False)
    return axes.imshow(
        image.T, origin="lower", aspect="auto", extent=extent, cmap=colours, vmin=-limit, vmax=limit
    )


@mpl.rc_context(STYLE)
def tuning(grid: pd.DataFrame, *, caption: str = "") -> Figure:
    """Return the UAR of every randomisation of a grid search, a panel per kind of clips. The
    paper's setting is outlined, the best has a star. grid: frames, mels, value, a column of UAR per
    kind, score (their mean), as of ``robustness.randomised_inference.grid_search``."""
    kinds = [c for c in grid.columns if c not in ("frames", "mels", "value")]
    figure, panels = plt.subplots(1, len(kinds), figsize=(PAGE, 2.4), sharey=True, squeeze=False)
    best = grid.loc[grid["score"].idxmax()]
    for axes, kind in zip(panels[0], kinds, strict=True):
        table = grid.pivot(index=["frames", "mels"], columns="value", values=kind)
        text = table.map("{:.0f}".format)
        text.loc[(best["frames"], best["mels"]), best["value"]] += "*"
        names = [f"{frames}, {mels}" for frames, mels in table.index]
        sns.heatmap(
            table, annot=text, fmt="", cmap="viridis", vmin=0, vmax=100, ax=axes, cbar=False,
            yticklabels=names, annot_kws={"fontsize": 7},
        )  # fmt: skip
        if (7, 2) in table.index and 0.5 in table.columns:
            corner = table.columns.get_loc(0.5), table.index.get_loc((7, 2))
            axes.add_patch(plt.Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=2))
        title = {"original": "Original", "score": "Mean of both"}.get(kind) or ATTACK_NAMES[kind]
        axes.set(title=f"{title}, UAR [%]", xlabel="padding")
        axes.set_ylabel("margin: frames, Mel bands" if axes is panels[0, 0] else "")
        axes.tick_params(axis="y", rotation=0)
        axes.grid(False)
    return with_caption(figure, caption)


@mpl.rc_context(STYLE)
def transfer(rows: pd.DataFrame, *, caption: str = "") -> Figure:
    """Return the UAR of every model (target) on clips attacked through every model (source)."""
    table = rows.pivot(index="source", columns="target", values="uar")
    order = paper_order(table.index, MODEL_NAMES)
    table = table.loc[order, order].rename(index=label, columns=label)
    figure, axes = plt.subplots(figsize=(COLUMN, 2.8))
    sns.heatmap(
        table, annot=True, fmt=".1f", cmap="viridis", vmin=0, vmax=100, ax=axes, square=True,
        annot_kws={"fontsize": 7}, cbar_kws={"label": "UAR [%]"},
    )  # fmt: skip
    axes.set(xlabel="target model", ylabel="source model")
    axes.set_xticks(axes.get_xticks(), axes.get_xticklabels(), rotation=30, ha="right")
    axes.grid(False)
    return with_caption(figure, caption)

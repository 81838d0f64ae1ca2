"""The paper's figures, from the rows and arrays that runs leave behind. Never imports torch.

One style for all: column width, colours that the colour-blind and a grey printer can tell apart
(line styles and markers differ too), vector PDF beside PNG.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fedser_utils.analysis.metrics import confusion
from fedser_utils.analysis.tables import (
    ATTACK_NAMES,
    CONDITIONS,
    KEY,
    MODEL_NAMES,
    MODELS,
    class_order,
    last_round,
    paper_order,
    sort_rows,
)
from fedser_utils.core.front_end import SPEECH, FrontEnd
from fedser_utils.core.runs import write_table

COLUMN, PAGE = 3.5, 7.16  # inches: one and two columns of an IEEE page
MARKERS = {"nature": "o", "fgsm": "s", "pgd": "^", "deepfool": "D", "centralised": "v"}
_OKABE_ITO = {
    "nature": "#000000", "fgsm": "#E69F00", "pgd": "#0072B2", "deepfool": "#009E73",
    "centralised": "#D55E00",
}  # fmt: skip
_DASHES = {"fgsm": (0, (5, 1.5)), "pgd": (0, (1, 1)), "deepfool": (0, (4, 1, 1, 1))}

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
    """``folder/name.png`` and ``.pdf``; origin (run ids, commit) goes into the files' metadata;
    rows: what the figure shows, for ``name.csv``. Returns the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", metadata={"Description": origin})
    figure.savefig(folder / f"{name}.pdf", metadata={"Subject": origin})
    if rows is not None:
        write_table(folder / f"{name}.csv", rows)
    return figure


def with_caption(figure: Figure, caption: str = "") -> Figure:
    """A figure with its caption, ready to be shown or saved."""
    if caption:
        wrapped = textwrap.fill(caption, width=int(22 * figure.get_figwidth()))
        figure.supxlabel(wrapped, fontsize=6, color="0.3")
    plt.close(figure)  # returned to be shown once, not a second time at the cell's end
    return figure


def label(model: str, attack: str = "none") -> str:
    """A curve's name in the paper's words."""
    name = MODEL_NAMES.get(model, model)
    return name if attack == "none" else f"{name}, {ATTACK_NAMES.get(attack, attack)} attk."


@mpl.rc_context(STYLE)
def uar_by_round(rounds: pd.DataFrame, *, condition: str = "original", caption: str = "") -> Figure:
    """Fig. 4: test UAR against the round, a curve per model. rounds: rows of ``rounds.csv``."""
    figure, axes = plt.subplots(figsize=(COLUMN, 2.7))
    _curves(axes, rounds[rounds["condition"] == condition])
    figure.legend(loc="outside upper center", ncols=2)
    return with_caption(figure, caption)


@mpl.rc_context(STYLE)
def four_conditions(rounds: pd.DataFrame, *, caption: str = "") -> Figure:
    """Fig. 5: UAR against the round under (a) original, (b) randomised, (c) adversarial and (d)
    randomised adversarial test clips, on one scale."""
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
    """A curve per model and attack: the mean over seeds, and their deviation as a band."""
    for model in paper_order(rounds["model"], MODEL_NAMES):
        of_model = rounds[rounds["model"] == model]
        for attack in paper_order(of_model["attack"], ATTACK_NAMES):
            by_round = of_model[of_model["attack"] == attack].groupby("round")["uar"]
            mean, deviation = by_round.mean(), by_round.std().fillna(0)
            look = _look(model, attack)
            axes.plot(mean.index, mean, label=label(model, attack), clip_on=False, **look)
            if by_round.count().max() > 1:
                axes.fill_between(
                    mean.index, mean - deviation, mean + deviation, color=look["color"],
                    alpha=0.15, linewidth=0,
                )  # fmt: skip
    axes.set(xlabel="Round", ylabel="UAR [%]", ylim=(0, 100))
    axes.xaxis.get_major_locator().set_params(integer=True)


def _look(model: str, attack: str) -> dict[str, Any]:
    """A curve's style: the colour says the training; dashes and marker the attack, or without one
    again the training. Filled markers: adversarially trained federated models; large ones on a
    thin line: centralised."""
    training = model.removeprefix("centralised-")
    central = model.startswith("centralised")
    seen = training if attack == "none" else attack
    colour = _OKABE_ITO.get(training, "0.4")
    return {
        "color": colour, "linestyle": _DASHES.get(seen, "-"), "marker": MARKERS.get(seen, "o"),
        "markerfacecolor": "white" if central or model == "nature" else colour,
        "linewidth": 0.7 if central else 1.2, "markersize": 5 if central else 3.5,
    }  # fmt: skip


@mpl.rc_context(STYLE)
def speakers(each: pd.DataFrame, *, client: str = "speaker", caption: str = "") -> Figure:
    """UAR of every speaker, a row per model and attack, a panel per condition. each: as
    ``comparisons.by_speaker`` gives it; client: the word for one of them."""
    panels = {
        condition: list(each[each["condition"] == condition].groupby(KEY[:2], sort=False))
        for condition in CONDITIONS
    }
    heights = [len(panels["original"]), len(panels["adversarial"])]
    size = PAGE, 1.7 + 0.2 * sum(heights)
    figure, grid = plt.subplots(
        2, 2, figsize=size, sharex=True, sharey="row", height_ratios=heights
    )
    for axes, letter, (condition, own) in zip(grid.flat, "abcd", panels.items(), strict=True):
        shown = [_speakers(axes, y, rows) for y, (_, rows) in enumerate(own)]
        axes.set_yticks(range(len(own)), [label(*name) for name, _ in own])
        axes.set(ylim=(len(own) - 0.5, -0.5), xlim=(0, 100))
        axes.set_title(f"({letter}) {CONDITIONS[condition]}")
    for axes in grid[1]:
        axes.set_xlabel("UAR [%]")
    names = [f"a {client}", f"mean over {client}s", f"worst {client}, named at the right"]
    figure.legend(shown[0], names, loc="outside upper center", ncols=3)
    return with_caption(figure, caption)


def _speakers(axes: plt.Axes, y: float, rows: pd.DataFrame) -> list[Any]:
    """One row of ``speakers``: every speaker, their mean, the worst."""
    places = y + np.linspace(-0.3, 0.3, len(rows))  # a speaker has the same place in every row
    mean, worst = rows["uar"].mean(), rows["uar"].argmin()
    name = rows["speaker"].iloc[worst]
    axes.text(1.03, y, name, transform=axes.get_yaxis_transform(), va="center", fontsize=6)
    return [
        *axes.plot(rows["uar"], places, "o", color="0.55", markersize=2, clip_on=False),
        *axes.plot([mean, mean], [y - 0.4, y + 0.4], color="black"),
        *axes.plot(
            rows["uar"].iloc[worst], places[worst], "X", color=_OKABE_ITO["centralised"],
            markeredgecolor="black", markeredgewidth=0.4, markersize=5, clip_on=False,
        ),
    ]  # fmt: skip


@mpl.rc_context(STYLE)
def confusions(
    predictions: pd.DataFrame,
    *,
    condition: str = "randomised_adversarial",
    caption: str = "",
) -> Figure:
    """Fig. 6: confusion matrices after the last round, of each adversarially trained model (of
    nature, where there is no other). Colour: share of the row; text: that share in percent and,
    in parentheses, the count, over all seeds."""
    rows = last_round(predictions[predictions["condition"] == condition])
    federated = [rows[rows["model"].isin(chosen)] for chosen in (MODELS[1:], MODELS[:1])]
    rows = next((own for own in federated if len(own)), rows)
    names = list(sort_rows(rows[KEY].drop_duplicates())[KEY[:2]].itertuples(index=False, name=None))
    classes = class_order(rows["y_true"])
    side = PAGE / 3 * max(1, len(classes) / 7)
    size = max(COLUMN, side * len(names)), side * 1.08
    figure, grid = plt.subplots(1, len(names), figsize=size, squeeze=False)
    groups = rows.groupby(KEY[:2])
    for axes, letter, name in zip(grid[0], "abcdefghi", names, strict=False):
        _confusion(axes, groups.get_group(name), classes)
        axes.set_title(f"({letter}) {label(*name)}", fontsize=7)
        axes.set(xlabel="Predicted", ylabel="True" if letter == "a" else "")
    return with_caption(figure, caption)


def _confusion(axes: plt.Axes, rows: pd.DataFrame, classes: Sequence[str]) -> None:
    """One matrix: rows true, columns predicted."""
    counts = confusion(rows["y_true"], rows["y_pred"], classes).to_numpy()
    share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    text = [[f"{s:.0f}\n({c})" for s, c in zip(*pair, strict=True)] for pair in zip(share, counts)]
    short = [c[:3] for c in classes]
    sns.heatmap(
        share, vmin=0, vmax=100, annot=np.array(text), fmt="", cmap="Blues", cbar=False,
        square=True, linewidths=0.5, linecolor="0.85", xticklabels=short, yticklabels=short,
        ax=axes, annot_kws={"fontsize": 6},
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
    """Fig. 2: a clip, and per attack what it made of it and the perturbation x 100.

    arrays: "original" and each attack's name -> (frames, mels) standardised log-Mel.
    """
    show = partial(_image, front=front)
    names = [name for name in ATTACK_NAMES if name in arrays]
    figure, grid = plt.subplots(
        1 + len(names), 2, figsize=(PAGE, 1.25 * (1 + len(names))), sharex=True, sharey=True
    )
    original = arrays["original"]
    limit = np.abs(original).max()
    # one scale for all perturbations; a few of DeepFool's values may lie beyond it
    largest = max(100 * np.quantile(np.abs(arrays[name] - original), 0.99) for name in names)
    shown = [("Original", original)] + [(ATTACK_NAMES[name], arrays[name]) for name in names]
    for letter, row, (title, image) in zip("abcde", grid, shown, strict=False):
        log_mel = show(row[0], image, limit, "magma")
        row[0].set_title(f"({letter}) {title}" + ("" if image is original else " sample"))
        if image is original:
            row[1].set_axis_off()
            continue
        delta = show(row[1], 100 * (image - original), largest, "cividis")
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
    """Log-Mels (frames, mels) below each other, on one colour scale."""
    figure, grid = plt.subplots(
        len(images), 1, figsize=(PAGE, 1.3 * len(images)), sharex=True, squeeze=False
    )
    limit = max(np.abs(image).max() for image in images)
    for axes, image, title in zip(grid[:, 0], images, titles, strict=True):
        shown = _image(axes, image, limit, "magma", front=front)
        axes.set(title=title, ylabel="Mel band")
    grid[-1, 0].set_xlabel("Time [s]")
    figure.colorbar(shown, ax=grid[:, 0], label="standardised log-Mel", aspect=40)
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
def uar_against(
    rows: pd.DataFrame, x: str, *, xlabel: str, by: str = "attack", chance: float | None = None,
    caption: str = "",
) -> Figure:  # fmt: skip
    """UAR against any column of ``rows``, a curve per value of ``by``; chance: in percent."""
    figure, axes = plt.subplots(figsize=(COLUMN, 2.4))
    for name, own in rows.groupby(by, sort=False):
        colour = _OKABE_ITO.get(name, "0.4")
        axes.plot(
            own[x], own["uar"], label=ATTACK_NAMES.get(name, name), color=colour,
            marker=MARKERS.get(name, "o"),
        )  # fmt: skip
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
    """UAR against value, a curve per model; where ``rows`` have a column defended, full behind the
    randomisation and dotted without it. chance: in percent; log: the axis of the values."""
    figure, axes = plt.subplots(figsize=(COLUMN, 2.8))
    both = "defended" in rows
    for model in paper_order(rows["model"], MODEL_NAMES):
        for defended, own in rows[rows["model"] == model].groupby("defended" if both else "model"):
            look = _look(model, "none") | ({"marker": ""} if len(own) > 20 else {})
            look |= {"linestyle": "-" if defended else ":"} if both else {}
            named = label(model) if defended or not both else None
            axes.plot(own["value"], own["uar"], label=named, **look)
    for style, name in (("-", "randomised"), (":", "not randomised")) if both else ():
        axes.plot([], [], color="0.4", linestyle=style, label=name)
    if chance is not None:
        axes.axhline(chance, color="0.5", linestyle=(0, (1, 3)), linewidth=0.8, label="chance")
    axes.set(xlabel=xlabel, ylabel=ylabel, ylim=(-2, 102), xscale="log" if log else "linear")
    figure.legend(loc="outside upper center", ncols=2)
    return with_caption(figure, caption)


@mpl.rc_context(STYLE)
def tuning(grid: pd.DataFrame, *, caption: str = "") -> Figure:
    """UAR of every randomisation in ``randomised_inference.tune``'s grid: a panel for each kind of
    clips. The paper's setting is outlined, the best has a star."""
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
    """UAR of every model (target) on clips attacked with the help of every model (source)."""
    table = rows.pivot(index="source", columns="target", values="uar")
    order = paper_order(table.index, MODEL_NAMES)
    table = table.loc[order, order].rename(index=label, columns=label)
    figure, axes = plt.subplots(figsize=(COLUMN, 2.8))
    sns.heatmap(
        table, annot=True, fmt=".1f", cmap="viridis", vmin=0, vmax=100, ax=axes, square=True,
        annot_kws={"fontsize": 7}, cbar_kws={"label": "UAR [%]"},
    )  # fmt: skip
    axes.set(xlabel="shown to", ylabel="made against")
    axes.set_xticks(axes.get_xticks(), axes.get_xticklabels(), rotation=30, ha="right")
    axes.grid(False)
    return with_caption(figure, caption)

"""The paper's figures, from the rows and arrays that runs leave behind. Never imports torch.

One style for all: column width, colours that the colour-blind and a grey printer can tell apart
(line styles and markers differ too), vector PDF beside PNG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from fedser_utils.metrics import confusion
from fedser_utils.runs import write_table
from fedser_utils.tables import ATTACK_NAMES, CONDITIONS, MODELS, class_order

COLUMN, PAGE = 3.5, 7.16  # inches: one and two columns of an IEEE page
SECONDS_PER_FRAME = 256 / 16_000
MARKERS = {"nature": "o", "fgsm": "s", "pgd": "^", "deepfool": "D"}
_OKABE_ITO = {"nature": "#000000", "fgsm": "#E69F00", "pgd": "#0072B2", "deepfool": "#009E73"}
_DASHES = {"none": "-", "fgsm": (0, (5, 1.5)), "pgd": (0, (1, 1)), "deepfool": (0, (4, 1, 1, 1))}

STYLE = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 7,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "grid.linewidth": 0.5,
    "lines.linewidth": 1.2, "lines.markersize": 3.5, "figure.dpi": 150, "savefig.dpi": 300,
    "legend.frameon": False, "pdf.fonttype": 42, "figure.constrained_layout.use": True,
}  # fmt: skip


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


def _finished(figure: Figure, caption: str = "") -> Figure:
    if caption:
        figure.supxlabel(caption, fontsize=6, color="0.4")
    plt.close(figure)  # returned to be shown once, not a second time at the cell's end
    return figure


def label(model: str, attack: str = "none") -> str:
    """A curve's name in the paper's words."""
    name = "Nature" if model == "nature" else f"AdvTrain {ATTACK_NAMES[model]}"
    return name if attack == "none" else f"{name}, {ATTACK_NAMES[attack]} attk."


@mpl.rc_context(STYLE)
def uar_by_round(rounds: pd.DataFrame, *, condition: str = "original", caption: str = "") -> Figure:
    """Fig. 4: test UAR against the round, a curve per model. rounds: rows of ``rounds.csv``."""
    figure, axes = plt.subplots(figsize=(COLUMN, 2.5))
    _curves(axes, rounds[rounds["condition"] == condition])
    axes.legend()
    return _finished(figure, caption)


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
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    return _finished(figure, caption)


def _curves(axes: plt.Axes, rounds: pd.DataFrame) -> None:
    """A curve per model and attack: the mean over seeds, and their deviation as a band."""
    for model in MODELS:
        for attack in ATTACK_NAMES:
            own = rounds[(rounds["model"] == model) & (rounds["attack"] == attack)]
            if own.empty:
                continue
            by_round = own.groupby("round")["uar"]
            mean, deviation = by_round.mean(), by_round.std().fillna(0)
            axes.plot(
                mean.index, mean, label=label(model, attack), color=_OKABE_ITO[model],
                marker=MARKERS[model if attack == "none" else attack], linestyle=_DASHES[attack],
                markerfacecolor=_OKABE_ITO[model] if model != "nature" else "white",
            )  # fmt: skip
            if by_round.count().max() > 1:
                axes.fill_between(
                    mean.index,
                    mean - deviation,
                    mean + deviation,
                    color=_OKABE_ITO[model],
                    alpha=0.15,
                )
    axes.set(xlabel="Round", ylabel="UAR [%]", ylim=(0, 100))
    axes.xaxis.get_major_locator().set_params(integer=True)


@mpl.rc_context(STYLE)
def confusions(
    predictions: pd.DataFrame,
    *,
    condition: str = "randomised_adversarial",
    caption: str = "",
) -> Figure:
    """Fig. 6: confusion matrices after the last round, of each adversarially trained model (of
    nature, where there is no other). Colour: share of the row; text: that share and the count."""
    rows = predictions[predictions["condition"] == condition]
    rows = rows[rows["round"] == rows.groupby("run")["round"].transform("max")]
    trained = rows[rows["model"] != "nature"]
    rows = trained if len(trained) else rows
    panels = [(model, attack, own) for (model, attack), own in rows.groupby(["model", "attack"])]
    panels.sort(key=lambda panel: (MODELS.index(panel[0]), list(ATTACK_NAMES).index(panel[1])))
    classes = class_order(sorted(set(rows["y_true"])))
    short = [c[:3] for c in classes]
    side = PAGE / 3 * max(1, len(classes) / 7)
    figure, grid = plt.subplots(
        1, len(panels), figsize=(max(COLUMN, side * len(panels)), side * 1.08), squeeze=False
    )
    for axes, letter, (model, attack, own) in zip(grid[0], "abcdefghi", panels, strict=False):
        counts = confusion(own["y_true"], own["y_pred"], classes).to_numpy()
        share = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
        text = np.array(
            [
                [f"{s:.0f}\n({c})" for s, c in zip(*pair, strict=True)]
                for pair in zip(share, counts, strict=True)
            ]
        )
        sns.heatmap(
            share, vmin=0, vmax=100, annot=text, fmt="", cmap="Blues", cbar=False, square=True,
            linewidths=0.5, linecolor="0.85",
            xticklabels=short, yticklabels=short, ax=axes, annot_kws={"fontsize": 5},
        )  # fmt: skip
        axes.set_title(f"({letter}) {label(model, attack)}", fontsize=7)
        axes.set(xlabel="Predicted", ylabel="True" if letter == "a" else "")
        axes.tick_params(length=0)
        axes.grid(False)
    return _finished(figure, caption)


@mpl.rc_context(STYLE)
def examples(arrays: Mapping[str, np.ndarray], *, caption: str = "") -> Figure:
    """Fig. 2: a clip, and per attack what it made of it and the perturbation x 100.

    arrays: "original" and each attack's name -> (373, 64) standardised log-Mel.
    """
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
        log_mel = _image(row[0], image, limit, "magma")
        row[0].set_title(f"({letter}) {title}" + ("" if image is original else " sample"))
        if image is original:
            row[1].set_axis_off()
            continue
        delta = _image(row[1], 100 * (image - original), largest, "RdBu_r")
        row[1].set_title("Perturbation x 100")
    for axes in grid[:, 0]:
        axes.set_ylabel("Mel band")
    for axes in grid[-1]:
        axes.set_xlabel("Time [s]")
    figure.colorbar(log_mel, ax=grid[:, 0], label="standardised log-Mel", aspect=40)
    figure.colorbar(delta, ax=grid[1:, 1], label="100 x difference", aspect=30)
    return _finished(figure, caption)


@mpl.rc_context(STYLE)
def log_mels(images: Sequence[np.ndarray], titles: Sequence[str], *, caption: str = "") -> Figure:
    """Log-Mels (frames, mels) below each other, on one colour scale."""
    figure, grid = plt.subplots(
        len(images), 1, figsize=(PAGE, 1.3 * len(images)), sharex=True, squeeze=False
    )
    limit = max(np.abs(image).max() for image in images)
    for axes, image, title in zip(grid[:, 0], images, titles, strict=True):
        shown = _image(axes, image, limit, "magma")
        axes.set(title=title, ylabel="Mel band")
    grid[-1, 0].set_xlabel("Time [s]")
    figure.colorbar(shown, ax=grid[:, 0], label="standardised log-Mel", aspect=40)
    return _finished(figure, caption)


def _image(axes: plt.Axes, image: np.ndarray, limit: float, colours: str) -> mpl.image.AxesImage:
    extent = (0, len(image) * SECONDS_PER_FRAME, 0, image.shape[1])
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
    return _finished(figure, caption)


@mpl.rc_context(STYLE)
def transfer(rows: pd.DataFrame, *, caption: str = "") -> Figure:
    """UAR of every model (target) on clips attacked with the help of every model (source)."""
    table = rows.pivot(index="source", columns="target", values="uar")
    order = [name for name in MODELS if name in table.index]
    table = table.loc[order, order].rename(index=label, columns=label)
    figure, axes = plt.subplots(figsize=(COLUMN, 2.8))
    sns.heatmap(
        table, annot=True, fmt=".1f", cmap="viridis", vmin=0, vmax=100, ax=axes, square=True,
        annot_kws={"fontsize": 7}, cbar_kws={"label": "UAR [%]"},
    )  # fmt: skip
    axes.set(xlabel="shown to", ylabel="made against")
    axes.set_xticks(axes.get_xticks(), axes.get_xticklabels(), rotation=30, ha="right")
    axes.grid(False)
    return _finished(figure, caption)


@mpl.rc_context(STYLE)
def clips_by_client(clips: pd.DataFrame, *, caption: str = "") -> Figure:
    """Clients x classes: how many training clips each client has of each."""
    train = clips[clips["split"] == "train"]
    counts = pd.crosstab(train["emotion"], train["speaker"])
    counts = counts.reindex(class_order(list(counts.index)))
    figure, axes = plt.subplots(figsize=(PAGE, 0.6 + 0.22 * len(counts)))
    annotate = counts.shape[1] <= 32
    sns.heatmap(
        counts, cmap="Blues", annot=annotate, fmt="d", ax=axes, annot_kws={"fontsize": 6},
        cbar_kws={"label": "training clips"},
    )  # fmt: skip
    axes.set(xlabel="Client (speaker)", ylabel="")
    axes.grid(False)
    return _finished(figure, caption)

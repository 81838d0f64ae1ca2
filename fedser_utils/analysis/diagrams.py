"""Diagrams of the framework (the paper's Fig. 1) and the network (Fig. 3), and the notation
(Table 1)."""

from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from fedser_utils.analysis.figure_style import PAGE, STYLE
from fedser_utils.analysis.labels import Terms
from fedser_utils.core.front_end import SPEECH

_NOTATION = r"""
| notation | meaning |
|---|---|
| $(\mathcal{X}, \mathcal{Y})$, $(x, y)$ | clips (log-Mel images) with their %(labels)s; one of them |
| $\mathcal{F}_i$, $\mathcal{D}_i$ | the $i$-th client%(who)s, and its clips, which stay with it |
| $\mathcal{M}_\theta$, $\mathcal{M}_\vartheta$ | the model learnt federated, and learnt on pooled data |
| $\theta_{i,t}$ | the weights of client $i$ in round $t$ |
| $\mathcal{X}'_i$, $\mathcal{X}''_i$, $\mathcal{X}_{adv,i}$ | the half that stays original, the half that is attacked, the result |
| $\epsilon$, $\eta$, $\zeta$ | size of FGSM's step, bound of PGD's perturbation, DeepFool's overshoot |
| $\alpha$ | weight of the original half in the loss (Eq. 5) |
| $\mathcal{V}$ | the measure: unweighted average recall (UAR) |
"""
MARGINS = (7, 2)  # randomisation's; importing it would import torch
_FILL = {"data": "#F6E7C8", "model": "#CFE3F2", "attack": "#F4CFC6", "defence": "#CFEBDD"}


def notation(terms: Terms) -> str:
    """Return Table 1 in Markdown. terms: of ``labels.terms``."""
    label, client = terms
    who = "" if client == "client" else f" (one {client})"
    return _NOTATION % {"labels": "classes" if label == "class" else f"{label}s", "who": who}


def _box(axes: plt.Axes, x: float, y: float, w: float, h: float, text: str, kind: str) -> None:
    axes.add_patch(
        FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0.04", fc=_FILL[kind], ec="0.25", lw=0.8)
    )
    axes.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=6.2)


def _arrow(axes: plt.Axes, start, end, bend: float = 0.0) -> None:
    style = {"arrowstyle": "-|>", "mutation_scale": 9, "lw": 0.9, "color": "0.2"}
    axes.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", **style))


def _canvas(width: float, height: float) -> tuple[Figure, plt.Axes]:
    figure, axes = plt.subplots(figsize=(PAGE, PAGE * height / width))
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.set_axis_off()
    return figure, axes


@mpl.rc_context(STYLE)
def framework(terms: Terms, *, shape: tuple[int, int] = SPEECH.shape) -> Figure:
    """Return Fig. 1: (a) adversarial federated training, (b) randomisation at inference. terms: of
    ``labels.terms``; shape: of a log-Mel image, (frames, bands)."""
    figure, axes = _canvas(16, 7.4)
    axes.text(0, 7.1, "(a) Training: adversarial federated learning", fontsize=8, weight="bold")
    _box(axes, 6.3, 5.5, 4.2, 1.0, "Server\naverages weights: $\\theta_{t+1}$", "model")
    for left, name in ((0.1, "1"), (8.6, "N")):
        _box(axes, left, 3.3, 1.5, 1.0, f"Client {name}\n$\\mathcal{{D}}_{{{name}}}$", "data")
        _box(axes, left + 2.1, 3.95, 1.5, 0.7, "$\\mathcal{X}'$ half", "data")
        _box(axes, left + 2.1, 2.85, 1.5, 0.7, "$\\mathcal{X}''$ half", "data")
        _box(axes, left + 4.1, 2.85, 1.3, 0.7, "attack", "attack")
        _box(axes, left + 5.9, 3.3, 1.3, 1.0, "train\n$\\theta_{i,t}$", "model")
        _arrow(axes, (left + 1.55, 3.95), (left + 2.05, 4.25))
        _arrow(axes, (left + 1.55, 3.65), (left + 2.05, 3.25))
        _arrow(axes, (left + 3.65, 3.2), (left + 4.05, 3.2))
        _arrow(axes, (left + 5.45, 3.25), (left + 5.85, 3.55))
        _arrow(axes, (left + 3.65, 4.3), (left + 5.85, 4.0))
    _arrow(axes, (6.2, 6.0), (0.85, 4.4), bend=0.2)
    _arrow(axes, (6.7, 4.4), (7.2, 5.4))
    _arrow(axes, (9.1, 5.4), (9.35, 4.4))
    _arrow(axes, (15.1, 4.4), (10.6, 5.8))
    axes.text(8.05, 3.8, "...", ha="center", fontsize=10)
    axes.text(2.2, 5.75, "$\\theta_t$", fontsize=7, ha="center")
    axes.text(12.6, 5.6, "recordings stay;\nweights, counts, sums travel", fontsize=6, ha="left")
    axes.text(0, 2.05, "(b) Inference: randomisation", fontsize=8, weight="bold")
    (w, h), (wide, high) = shape, (shape[0] + MARGINS[0], shape[1] + MARGINS[1])
    steps = [
        (f"clip\n{w} x {h}", "data"), ("attacker\n(knows the model)", "attack"),
        (f"random resize\n$W'\\in[{w},{wide})$\n$H'\\in[{h},{high})$", "defence"),
        (f"random pad\nto {wide} x {high}\nwith value 0.5", "defence"), ("model", "model"), (terms.label, "data"),
    ]  # fmt: skip
    for i, (text, kind) in enumerate(steps):
        _box(axes, 0.1 + 2.7 * i, 0.3, 2.1, 1.2, text, kind)
        if i:
            _arrow(axes, (2.7 * i - 0.45, 0.9), (0.05 + 2.7 * i, 0.9))
    plt.close(figure)
    return figure


@mpl.rc_context(STYLE)
def network(classes: int | None = None, *, shape: tuple[int, int] = SPEECH.shape) -> Figure:
    """Return Fig. 3: VGG-15 with the size of each block's output at width 1. classes: None if not
    known; shape: of a log-Mel image, (frames, bands)."""
    figure, axes = _canvas(16, 3.2)
    blocks = [(f"log-Mel\n1 x {shape[0]} x {shape[1]}", "data")]
    for depth, channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        shape = (shape[0] // 2, shape[1] // 2)
        text = (
            f"{depth} x conv 3x3\n{channels} channels\nBN, ReLU\npool 2x2\n{shape[0]} x {shape[1]}"
        )
        blocks.append((text, "model"))
    blocks += [
        ("global\naverage\npool\n512", "model"),
        (f"FC 256\nReLU\nFC {classes or 'classes'}", "defence"),
    ]
    for i, (text, kind) in enumerate(blocks):
        _box(axes, 0.05 + 2.0 * i, 0.5, 1.55, 2.2, text, kind)
        if i:
            _arrow(axes, (2.0 * i - 0.32, 1.6), (0.0 + 2.0 * i, 1.6))
    plt.close(figure)
    return figure

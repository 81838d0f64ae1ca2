"""DeepFool: the shortest way over a model's decision boundary.

Moosavi-Dezfooli et al. (2016); the paper's section 2.3, Eq. 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedser_utils.attacks import target
from fedser_utils.attacks.gradient import NORMS, clip_to_range
from fedser_utils.attacks.target import TINY, Model
from fedser_utils.core.errors import choose, number


def deepfool(
    model: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    steps: int,
    overshoot: float,
    classes: int | None = None,
    norm: str = "l2",
    clip_values: tuple[float, float] | None = None,
    eot: int = 1,
) -> Tensor:
    """Return the adversarial clips of DeepFool (Moosavi-Dezfooli et al., 2016; paper, Eq. 3).

    Up to ``steps`` times it goes to the nearest linearised boundary of the predicted class, and in
    the end passes it by the factor 1 + overshoot. A clip whose prediction has changed takes no
    further step and leaves the batch. There is no budget: the distance is the result.

    x: (batch, ...) log-Mel images; y: (batch,) is not used, since the attack starts from the
    model's prediction. classes: how many of the likeliest classes are considered, the predicted
    one included; None for all. norm: l2 or linf, in which "nearest" is meant. clip_values: lowest
    and highest value that x_adv may take. eot: draws of a randomised model per gradient.

    Returns x_adv, shaped as x. Raises ValueError as ``target.prepare`` does, and for values out
    of range.
    """
    x, predicted = target.prepare(model, x, None, eot=eot)
    choose("norm", norm, NORMS)
    number("steps", steps)
    number("overshoot", overshoot, type=float, low=0)
    x_adv, active = x.clone(), torch.arange(len(x), device=x.device)
    for step in range(steps):
        scores = target.mean_logits(model, x_adv[active], eot)
        if not step:
            count = scores.shape[1] if classes is None else classes
            number("classes", count, low=2, high=scores.shape[1])
            rivals = scores.topk(count, dim=1).indices[:, 1:]
        unchanged = scores.argmax(1) == predicted[active]
        active, scores = active[unchanged], scores[unchanged]
        if not len(active):
            break
        current = x_adv[active]
        delta = _to_nearest_boundary(
            model, current, predicted[active], rivals[active], scores, norm=norm, eot=eot
        )
        x_adv[active] = clip_to_range(current + delta, x[active], clip_values)
    return clip_to_range(x + (1 + overshoot) * (x_adv - x), x, clip_values)


def _to_nearest_boundary(
    model: Model, x: Tensor, predicted: Tensor, rivals: Tensor, scores: Tensor, *, norm: str,
    eot: int,
) -> Tensor:  # fmt: skip
    """The smallest step that makes a rival's linearised logit equal the predicted class's.

    x: (batch, ...); predicted: (batch,) classes; rivals: (batch, k) classes; scores: (batch,
    classes) logits. Returns a step shaped as x, from one forward pass and k backward ones.
    """
    x = x.detach().requires_grad_()
    gaps = _gaps(target.logits(model, x, eot).mean(0), rivals, predicted)
    normals = torch.stack(
        [
            torch.autograd.grad(gap.sum(), x, retain_graph=place < len(gaps[0]))[0].flatten(1)
            for place, gap in enumerate(gaps.unbind(1), 1)
        ],
        dim=1,
    )
    distances = _gaps(scores, rivals, predicted).abs()
    lengths = normals.norm(dim=2) if norm == "l2" else normals.abs().sum(2)  # the dual norm
    nearest = (distances / (lengths + TINY)).argmin(1)
    rows = torch.arange(len(x), device=x.device)
    distance, length, normal = (v[rows, nearest] for v in (distances, lengths, normals))
    if norm == "l2":
        step = (distance / (length**2 + TINY))[:, None] * normal
    else:
        step = (distance / (length + TINY))[:, None] * normal.sign()
    return step.view_as(x)


def _gaps(scores: Tensor, rivals: Tensor, predicted: Tensor) -> Tensor:
    """(batch, k) each rival's logit minus that of the predicted class."""
    return scores.gather(1, rivals) - scores.gather(1, predicted[:, None])

"""DeepFool: the shortest way over a model's decision boundary (section 2.3)."""

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
    clip: tuple[float, float] | None = None,
    eot: int = 1,
) -> Tensor:
    """DeepFool (Moosavi-Dezfooli et al., 2016; paper, Eq. 3).

    Walks to the nearest linearised boundary of the model's own decision, up to ``steps`` times,
    and passes it by the factor 1 + overshoot. Clips whose decision has changed take no further
    steps and leave the batch. There is no budget: how far it went is the result.

    x: (batch, ...). y is not used, the attack is on the decision. classes: how many of the classes
    that were likeliest at first are considered, the decision included; None for all. norm: in
    which "nearest" is meant, l2 or linf. clip: the range that x is kept in. eot: draws of a
    randomised model per gradient.

    Returns the adversarial batch. Raises ValueError as ``target.checked`` does, and for values
    out of range.
    """
    x, origin = target.prepare(model, x, None, eot=eot)
    choose("norm", norm, NORMS)
    number("steps", steps)
    number("overshoot", overshoot, type=float, low=0)
    walked, active = x.clone(), torch.arange(len(x), device=x.device)
    for step in range(steps):
        scores = _scores(model, walked[active], eot)
        if not step:
            count = scores.shape[1] if classes is None else classes
            number("classes", count, low=2, high=scores.shape[1])
            rivals = scores.topk(count, dim=1).indices[:, 1:]
        held = scores.argmax(1) == origin[active]
        active, scores = active[held], scores[held]
        if not len(active):
            break
        here = walked[active]
        step_over = _to_nearest_boundary(
            model, here, origin[active], rivals[active], scores, norm=norm, eot=eot
        )
        walked[active] = clip_to_range(here + step_over, x[active], clip)
    return clip_to_range(x + (1 + overshoot) * (walked - x), x, clip)


def _scores(model: Model, x: Tensor, eot: int) -> Tensor:
    with torch.no_grad():
        return target.logits(model, x, eot).mean(0)


def _to_nearest_boundary(
    model: Model, x: Tensor, origin: Tensor, rivals: Tensor, scores: Tensor, *, norm: str, eot: int
) -> Tensor:
    """The smallest step that makes a rival's linearised logit equal the origin's.

    x: (batch, ...); origin: (batch,) classes; rivals: (batch, k) classes; scores: (batch, classes)
    logits. One forward pass and k backward ones, of the differences between two logits.
    """
    x = x.detach().requires_grad_()
    gaps = _gaps(target.logits(model, x, eot).mean(0), rivals, origin)
    normals = torch.stack(
        [
            torch.autograd.grad(gap.sum(), x, retain_graph=place < len(gaps[0]))[0].flatten(1)
            for place, gap in enumerate(gaps.unbind(1), 1)
        ],
        dim=1,
    )
    distances = _gaps(scores, rivals, origin).abs()
    lengths = normals.norm(dim=2) if norm == "l2" else normals.abs().sum(2)  # the dual norm
    nearest = (distances / (lengths + TINY)).argmin(1)
    rows = torch.arange(len(x), device=x.device)
    distance, length, normal = (v[rows, nearest] for v in (distances, lengths, normals))
    if norm == "l2":
        step = (distance / (length**2 + TINY))[:, None] * normal
    else:
        step = (distance / (length + TINY))[:, None] * normal.sign()
    return step.view_as(x)


def _gaps(scores: Tensor, rivals: Tensor, origin: Tensor) -> Tensor:
    """(batch, k) each rival's logit minus the origin's."""
    return scores.gather(1, rivals) - scores.gather(1, origin[:, None])

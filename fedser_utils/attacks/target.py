"""What an attack asks of its target: decisions, losses and their gradients.

``model`` is any callable from (batch, ...) to logits (batch, classes); ``RandomisedModel`` is one.
Where its answers are random, ``eot=k`` takes the expectation over k draws (expectation over
transformation: Athalye et al., 2018): the k copies of a batch go through the model together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedser_utils.core.errors import choose, number

Model = Callable[[Tensor], Tensor]
TINY = 1e-7  # ART's, where a quotient could be by zero


def logits(model: Model, x: Tensor, eot: int = 1) -> Tensor:
    """(eot, batch, classes) float32, of ``eot`` copies of x: (batch, ...)."""
    copies = x.expand(eot, *x.shape).flatten(0, 1)
    return model(copies).float().unflatten(0, (eot, len(x)))


def predictions(model: Model, x: Tensor, *, eot: int = 1) -> Tensor:
    """(batch,) the classes the model decides for; of the mean logits over ``eot`` draws."""
    with torch.no_grad():
        return logits(model, x, eot).mean(0).argmax(1)


def margin(scores: Tensor, y: Tensor) -> Tensor:
    """(batch,) the best other logit minus that of y; above zero where y has lost."""
    own = scores.gather(1, y[:, None])
    others = scores.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - own[:, 0]


def dlr(scores: Tensor, y: Tensor) -> Tensor:
    """(batch,) difference of logits ratio (Croce and Hein, 2020): the margin in units of the gap
    between the first and the third logit, whatever the scale of the logits."""
    if scores.shape[1] < 3:
        raise ValueError(f"loss 'dlr' needs 3 classes or more, not {scores.shape[1]}")
    first, _, third = scores.topk(3, dim=1).values.unbind(1)
    return margin(scores, y) / (first - third + TINY)


def ce(scores: Tensor, y: Tensor) -> Tensor:
    """(batch,) cross-entropy. A model that is certain beyond rounding has gradient zero."""
    return cross_entropy(scores, y, reduction="none")


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": ce, "cw": margin, "dlr": dlr}


def gradient(model: Model, x: Tensor, y: Tensor, *, loss: str, eot: int) -> Tensor:
    """The gradient with respect to x of each clip's loss, its mean over ``eot`` draws."""
    x = x.detach().requires_grad_()
    scores = logits(model, x, eot)
    losses = LOSSES[loss](scores.flatten(0, 1), y.repeat(eot))
    # the mean rounds as ART's does, to the last sign; scaled back, each clip's gradient is its
    # own, whatever the size of the batch
    return torch.autograd.grad(losses.mean(), x)[0] * len(x)


def check_model(model: Model, x: Tensor) -> None:
    """Raises ValueError for a model in training mode or on another device than x, and for NaN."""
    if isinstance(model, nn.Module):
        if any(part.training for part in model.modules()):
            raise ValueError("the model is in training mode; attack model.eval()")
        for parameter in model.parameters():
            if parameter.device != x.device:
                raise ValueError(f"the model is on {parameter.device}, x on {x.device}")
    if not torch.isfinite(x).all():
        raise ValueError("x holds NaN or infinite values")


def prepare(
    model: Model, x: Tensor, y: Tensor | None, *, eot: int = 1, loss: str = "ce"
) -> tuple[Tensor, Tensor]:
    """x, detached, and its labels on x's device: y, or the model's own predictions (ART's rule).

    Raises ValueError for what ``refuse_unfit`` refuses, labels that do not fit, an unknown loss
    and a number of draws below 1.
    """
    choose("loss", loss, sorted(LOSSES))
    number("eot", eot)
    check_model(model, x)
    x = x.detach()
    if y is None:
        return x, predictions(model, x, eot=eot)
    if y.shape != (len(x),) or y.is_floating_point():
        raise ValueError(f"y {tuple(y.shape)} {y.dtype} must be {len(x)} class indices")
    return x, y.to(x.device, torch.int64)

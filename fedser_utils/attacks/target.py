"""What attacks need from a model: logits, predictions, losses and their gradients.

``model`` is any callable from (batch, ...) to logits (batch, classes); ``RandomisedModel`` is one.
Where its logits are random, ``eot=k`` takes the expectation over k draws (expectation over
transformation: Athalye et al., 2018): the k copies of a batch go through the model together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedser_utils.core.errors import choose, number

Model = Callable[[Tensor], Tensor]
TINY = 1e-7  # ART's, against division by zero


def logits(model: Model, x: Tensor, eot: int = 1) -> Tensor:
    """(eot, batch, classes) float32 logits of ``eot`` copies of x: (batch, ...)."""
    copies = x.expand(eot, *x.shape).flatten(0, 1)
    return model(copies).float().unflatten(0, (eot, len(x)))


def mean_logits(model: Model, x: Tensor, eot: int = 1) -> Tensor:
    """(batch, classes) float32 logits of x: (batch, ...), the mean over ``eot`` draws; without
    gradients."""
    with torch.no_grad():
        return logits(model, x, eot).mean(0)


def predictions(model: Model, x: Tensor, *, eot: int = 1) -> Tensor:
    """(batch,) the classes that the model predicts for x: (batch, ...), from ``mean_logits``."""
    return mean_logits(model, x, eot).argmax(1)


def margin(scores: Tensor, y: Tensor) -> Tensor:
    """(batch,) the best other logit minus that of y; above zero where the prediction is wrong.
    scores: (batch, classes); y: (batch,)."""
    true = scores.gather(1, y[:, None])
    others = scores.scatter(1, y[:, None], -torch.inf)
    return others.amax(1) - true[:, 0]


def dlr(scores: Tensor, y: Tensor) -> Tensor:
    """(batch,) difference of logits ratio (Croce and Hein, 2020): the margin over the gap between
    the first and the third logit, so that the scale of the logits does not matter.
    scores: (batch, classes); y: (batch,). Raises ValueError for fewer than 3 classes."""
    if scores.shape[1] < 3:
        raise ValueError(f"loss 'dlr' needs 3 classes or more, not {scores.shape[1]}")
    first, _, third = scores.topk(3, dim=1).values.unbind(1)
    return margin(scores, y) / (first - third + TINY)


def ce(scores: Tensor, y: Tensor) -> Tensor:
    """(batch,) cross-entropy of scores: (batch, classes). Where a model is certain beyond
    rounding, its gradient is zero."""
    return cross_entropy(scores, y, reduction="none")


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": ce, "cw": margin, "dlr": dlr}


def gradient(model: Model, x: Tensor, y: Tensor, *, loss: str, eot: int) -> Tensor:
    """The gradient of each clip's loss with respect to x, shaped as x: (batch, ...); the mean over
    ``eot`` draws. y: (batch,); loss: a name in ``LOSSES``."""
    x = x.detach().requires_grad_()
    scores = logits(model, x, eot)
    losses = LOSSES[loss](scores.flatten(0, 1), y.repeat(eot))
    # the mean rounds as ART's does, to the last sign; scaled back, a clip's gradient does not
    # depend on the size of its batch
    return torch.autograd.grad(losses.mean(), x)[0] * len(x)


def check_model(model: Model, x: Tensor) -> None:
    """Raise ValueError for a model in training mode or on another device than x, and for NaN."""
    if isinstance(model, nn.Module):
        if any(part.training for part in model.modules()):
            raise ValueError("the model is in training mode; attack model.eval()")
        for parameter in model.parameters():
            if parameter.device != x.device:
                raise ValueError(f"the model is on {parameter.device}, x on {x.device}")
    if not torch.isfinite(x).all():
        raise ValueError("x contains NaN or infinite values")


def prepare(
    model: Model, x: Tensor, y: Tensor | None, *, eot: int = 1, loss: str = "ce"
) -> tuple[Tensor, Tensor]:
    """Return x, detached, and (batch,) labels on its device: y, or the model's own predictions
    where y is None (ART's rule).

    Raises ValueError as ``check_model`` does, for labels that do not fit, an unknown loss and a
    number of draws below 1.
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

"""FGSM and PGD: steps along the loss's gradient, projected onto a ball around the clip.

Goodfellow et al. (2015) and Madry et al. (2018); the paper's section 2.3, Eqs. 1 and 2.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fedser_utils.attacks import target
from fedser_utils.attacks.target import Model
from fedser_utils.core.errors import choose, number

NORMS = ("linf", "l2")


def fgsm(
    model: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    epsilon: float | Tensor,
    norm: str = "linf",
    clip_values: tuple[float, float] | None = None,
    loss: str = "ce",
    eot: int = 1,
) -> Tensor:
    """Return the adversarial clips of the fast gradient sign method: x + epsilon sign(gradient).

    Goodfellow et al. (2015); paper, Eq. 1. x: (batch, ...), y: (batch,); arguments, shapes and
    errors as for ``pgd``, of which this is one step of length epsilon.
    """
    options = {"norm": norm, "clip_values": clip_values, "loss": loss, "eot": eot}
    return pgd(model, x, y, epsilon=epsilon, step_size=epsilon, steps=1, **options)


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    epsilon: float | Tensor,
    step_size: float | Tensor,
    steps: int,
    norm: str = "linf",
    clip_values: tuple[float, float] | None = None,
    loss: str = "ce",
    momentum: float = 0.0,
    start: Tensor | None = None,
    random_start: bool = False,
    restarts: int = 1,
    early_stop: bool = False,
    eot: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the adversarial clips of projected gradient descent (Madry et al., 2018; Eq. 2).

    x: (batch, ...) log-Mel images or waveforms; y: (batch,) labels, None for the model's own
    predictions. epsilon: radius of the ball, step_size: length of a step, both in x's units, a
    number or (batch,). norm: linf (steps along the gradient's sign) or l2. clip_values: lowest
    and highest value that x_adv may take. loss: ce, cw (the margin) or dlr.

    momentum: in [0, 1), of gradients scaled to a mean size of 1 (Dong et al., 2018); against a
    randomised model it averages over the draws of earlier steps at no cost. start: (batch, ...)
    x_adv of an earlier attack, to go on from. random_start: start anywhere in the ball, drawn
    from ``generator`` (torch's global one if None). restarts: number of random starts; further
    ones for the clips still recognised, the larger margin counts. early_stop: no more steps for
    a clip that is no longer recognised. eot: draws of a randomised model per gradient.

    Returns x_adv, shaped as x. Raises ValueError as ``target.prepare`` does, and for values out
    of range.
    """
    x, y = target.prepare(model, x, y, eot=eot, loss=loss)
    choose("norm", norm, NORMS)
    number("steps", steps)
    if start is not None and (random_start or start.shape != x.shape):
        raise ValueError(f"start {tuple(start.shape)} needs x's shape and random_start=False")
    if number("restarts", restarts) > 1 and not random_start:
        raise ValueError(f"restarts {restarts} would all be the same; set random_start=True")
    epsilon, step_size = _per_clip("epsilon", epsilon, x), _per_clip("step_size", step_size, x)
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum {momentum} must be >= 0 and < 1")
    ascend = partial(
        _ascend, model, steps=steps, norm=norm, clip_values=clip_values, loss=loss,
        momentum=momentum, random_start=random_start, early_stop=early_stop, eot=eot,
        generator=generator,
    )  # fmt: skip
    best = ascend(x, y, epsilon, step_size, start)
    for _ in range(restarts - 1):
        robust = (target.predictions(model, best, eot=eot) == y).nonzero()[:, 0]
        if not len(robust):
            break
        again = ascend(x[robust], y[robust], epsilon[robust], step_size[robust])
        old, new = (
            target.margin(target.mean_logits(model, x_adv, eot), y[robust])
            for x_adv in (best[robust], again)
        )
        better = new > old
        best[robust[better]] = again[better]
    return best


def _ascend(
    model: Model, x: Tensor, y: Tensor, epsilon: Tensor, step_size: Tensor,
    start: Tensor | None = None, *, steps: int, norm: str,
    clip_values: tuple[float, float] | None, loss: str, momentum: float, random_start: bool,
    early_stop: bool, eot: int, generator: torch.Generator | None,
) -> Tensor:  # fmt: skip
    """x_adv after one ascent from one start. epsilon, step_size: (batch, 1, ...)."""
    delta = torch.zeros_like(x) if start is None else _project(start - x, epsilon, norm)
    if random_start:
        delta = _random_in_ball(delta, norm, generator) * epsilon
    x_adv = clip_to_range(x + delta, x, clip_values)
    active = torch.arange(len(x), device=x.device) if early_stop else slice(None)
    velocity = torch.zeros_like(x)
    for _ in range(steps):
        if early_stop:
            predicted = target.predictions(model, x_adv[active], eot=eot)
            active = active[predicted == y[active]]
            if not len(active):
                break
        current, original = x_adv[active], x[active]
        gradient = target.gradient(model, current, y[active], loss=loss, eot=eot)
        if momentum:
            size = gradient.abs().flatten(1).mean(1).clamp(min=torch.finfo(gradient.dtype).tiny)
            gradient = momentum * velocity[active] + gradient / _broadcast(size, x)
            velocity[active] = gradient
        delta = current + step_size[active] * _steepest(gradient, norm) - original
        delta = _project(delta, epsilon[active], norm)
        x_adv[active] = clip_to_range(original + delta, original, clip_values)
    return x_adv


def _steepest(gradient: Tensor, norm: str) -> Tensor:
    """The step of length 1 that raises a linear loss most."""
    return gradient.sign() if norm == "linf" else gradient / _lengths(gradient)


def _project(delta: Tensor, epsilon: Tensor, norm: str) -> Tensor:
    """The nearest perturbation in the ball. delta: (batch, ...); epsilon: (batch, 1, ...)."""
    if norm == "linf":
        return delta.clamp(-epsilon, epsilon)
    return delta * (epsilon / _lengths(delta)).clamp(max=1)


def _random_in_ball(like: Tensor, norm: str, generator: torch.Generator | None) -> Tensor:
    """Perturbations shaped as ``like``, uniform in the ball of radius 1 for each clip."""
    options = {"generator": generator, "device": generator.device if generator else like.device}
    if norm == "linf":
        return torch.rand(like.shape, **options).to(like) * 2 - 1
    direction = torch.randn(like.shape, **options).to(like)
    radius = torch.rand(len(like), **options).to(like) ** (1 / like[0].numel())
    return _broadcast(radius, like) * direction / _lengths(direction)


def clip_to_range(x_adv: Tensor, x: Tensor, clip_values: tuple[float, float] | None) -> Tensor:
    """x_adv clipped to (low, high), or to x's own value where x lies outside of that range."""
    if clip_values is None:
        return x_adv
    low, high = clip_values
    return x_adv.clamp(x.clamp(max=low), x.clamp(min=high))


def _lengths(delta: Tensor) -> Tensor:
    """(batch, 1, ...) each clip's L2 norm; above zero, to divide by."""
    lengths = delta.flatten(1).norm(dim=1).clamp(min=torch.finfo(delta.dtype).tiny)
    return _broadcast(lengths, delta)


def _broadcast(values: Tensor, x: Tensor) -> Tensor:
    """(batch,) -> (batch, 1, ...), with as many dimensions as x."""
    return values.view(-1, *[1] * (x.ndim - 1))


def _per_clip(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """(batch, 1, ...) from one number or (batch,). Raises ValueError unless all are >= 0."""
    values = torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(len(x))
    if not (values >= 0).all():
        raise ValueError(f"{name} {value} must be >= 0")
    return _broadcast(values, x)

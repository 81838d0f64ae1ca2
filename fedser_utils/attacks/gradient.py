"""FGSM and PGD: steps along the loss's gradient, kept in a ball around the clip (section 2.3)."""

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
    clip: tuple[float, float] | None = None,
    loss: str = "ce",
    eot: int = 1,
) -> Tensor:
    """Fast gradient sign method (Goodfellow et al., 2015; paper, Eq. 1): one step of length
    epsilon. Arguments as for ``pgd``. Returns the adversarial batch."""
    options = {"norm": norm, "clip": clip, "loss": loss, "eot": eot}
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
    clip: tuple[float, float] | None = None,
    loss: str = "ce",
    momentum: float = 0.0,
    start: Tensor | None = None,
    random_start: bool = False,
    restarts: int = 1,
    early_stop: bool = False,
    eot: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Projected gradient descent (Madry et al., 2018; paper, Eq. 2).

    x: (batch, ...), log-Mel images or waveforms. y: (batch,) labels, or None for the model's own
    predictions. epsilon: radius of the ball, and step_size: of each step, in x's units, one for
    all clips or (batch,). norm: linf (steps along the gradient's sign) or l2. clip: the range
    that x is kept in, besides. loss: ce, cw (the margin) or dlr.

    momentum: in [0, 1), of the gradients, each scaled to a mean size of 1 (Dong et al., 2018);
    against a randomised model it averages over the draws of earlier steps, for nothing.
    start: (batch, ...) what an earlier attack on x reached, to go on from. random_start: begin
    anywhere in the ball, drawn from ``generator`` (torch's own if None). restarts: further starts
    for the clips that are still recognised; the larger margin counts. early_stop: a clip takes no
    more steps once it is not recognised. eot: draws of a randomised model per gradient.

    Returns the adversarial batch. Raises ValueError as ``target.checked`` does, and for values
    out of range.
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
    climb = partial(
        _ascend, model, steps=steps, norm=norm, clip=clip, loss=loss, momentum=momentum,
        random_start=random_start, early_stop=early_stop, eot=eot, generator=generator,
    )  # fmt: skip
    best = climb(x, y, epsilon, step_size, start)
    for _ in range(restarts - 1):
        held = (target.predictions(model, best, eot=eot) == y).nonzero()[:, 0]
        if not len(held):
            break
        again = climb(x[held], y[held], epsilon[held], step_size[held])
        old, new = (_margins(model, moved, y[held], eot) for moved in (best[held], again))
        better = new > old
        best[held[better]] = again[better]
    return best


def _ascend(
    model: Model, x: Tensor, y: Tensor, epsilon: Tensor, step_size: Tensor,
    start: Tensor | None = None, *, steps: int, norm: str, clip: tuple[float, float] | None,
    loss: str, momentum: float, random_start: bool, early_stop: bool, eot: int,
    generator: torch.Generator | None,
) -> Tensor:  # fmt: skip
    """One ascent from one start, for every clip of the batch."""
    delta = torch.zeros_like(x) if start is None else _project(start - x, epsilon, norm)
    if random_start:
        delta = _random_in_ball(delta, norm, generator) * epsilon
    moved = clip_to_range(x + delta, x, clip)
    active = torch.arange(len(x), device=x.device) if early_stop else slice(None)
    velocity = torch.zeros_like(x)
    for _ in range(steps):
        if early_stop:
            decided = target.predictions(model, moved[active], eot=eot)
            active = active[decided == y[active]]
            if not len(active):
                break
        here, origin = moved[active], x[active]
        slope = target.gradient(model, here, y[active], loss=loss, eot=eot)
        if momentum:
            size = slope.abs().flatten(1).mean(1).clamp(min=torch.finfo(slope.dtype).tiny)
            slope = momentum * velocity[active] + slope / size.view(-1, *[1] * (x.ndim - 1))
            velocity[active] = slope
        delta = here + step_size[active] * _steepest(slope, norm) - origin
        moved[active] = clip_to_range(origin + _project(delta, epsilon[active], norm), origin, clip)
    return moved


def _steepest(slope: Tensor, norm: str) -> Tensor:
    """The step of length 1 that raises a linear loss most."""
    return slope.sign() if norm == "linf" else slope / _lengths(slope)


def _project(delta: Tensor, epsilon: Tensor, norm: str) -> Tensor:
    """The nearest perturbation in the ball."""
    if norm == "linf":
        return delta.clamp(-epsilon, epsilon)
    return delta * (epsilon / _lengths(delta)).clamp(max=1)


def _random_in_ball(like: Tensor, norm: str, generator: torch.Generator | None) -> Tensor:
    """Uniform in the ball of radius 1, for each clip."""
    options = {"generator": generator, "device": generator.device if generator else like.device}
    if norm == "linf":
        return torch.rand(like.shape, **options).to(like) * 2 - 1
    direction = torch.randn(like.shape, **options).to(like)
    share = torch.rand(len(like), **options).to(like) ** (1 / like[0].numel())
    return share.view(-1, *[1] * (like.ndim - 1)) * direction / _lengths(direction)


def clip_to_range(moved: Tensor, origin: Tensor, clip: tuple[float, float] | None) -> Tensor:
    """moved, in the range; where x itself is outside of the range, it stays as it was."""
    if clip is None:
        return moved
    low, high = clip
    return moved.clamp(origin.clamp(max=low), origin.clamp(min=high))


def _lengths(delta: Tensor) -> Tensor:
    """Each clip's L2 norm, in a shape that broadcasts; above zero, to divide by."""
    lengths = delta.flatten(1).norm(dim=1).clamp(min=torch.finfo(delta.dtype).tiny)
    return lengths.view(-1, *[1] * (delta.ndim - 1))


def _margins(model: Model, x: Tensor, y: Tensor, eot: int) -> Tensor:
    with torch.no_grad():
        return target.margin(target.logits(model, x, eot).mean(0), y)


def _per_clip(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """(batch, 1, ...) from one number or (batch,). Raises ValueError unless all are >= 0."""
    each = torch.as_tensor(value, dtype=x.dtype, device=x.device).expand(len(x))
    if not (each >= 0).all():
        raise ValueError(f"{name} {value} must be >= 0")
    return each.view(-1, *[1] * (x.ndim - 1))

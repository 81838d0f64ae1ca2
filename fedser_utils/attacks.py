"""White-box attacks on log-Mel images: FGSM, PGD and DeepFool (paper, section 2.3).

``model`` is any callable from (batch, 1, frames, mels) to logits (batch, classes). Everything
stays on the input's device; nothing that comes in is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedser_utils.config import choose

Model = Callable[[Tensor], Tensor]
_TINY = 1e-7


def fgsm(model: Model, x: Tensor, y: Tensor | None = None, *, epsilon: float) -> Tensor:
    """Fast gradient sign method (Goodfellow et al., 2015; paper, Eq. 1).

    x: (batch, 1, frames, mels); y: (batch,) labels, or None for the model's own predictions;
    epsilon: L-inf radius in the units of x. Returns the adversarial batch.
    """
    return pgd(model, x, y, epsilon=epsilon, step_size=epsilon, steps=1)


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
) -> Tensor:
    """Projected gradient descent in L-inf, without a random start (Madry et al., 2018; Eq. 2).

    Arguments as for ``fgsm``; step_size: of each step, in the units of x.
    """
    x = _checked(model, x)
    y = predictions(model, x) if y is None else y
    adversarial = x
    for _ in range(steps):
        adversarial = adversarial + step_size * _loss_gradient(model, adversarial, y).sign()
        adversarial = torch.clamp(adversarial, x - epsilon, x + epsilon)
    return adversarial


def deepfool(
    model: Model, x: Tensor, y: Tensor | None = None, *, steps: int, overshoot: float
) -> Tensor:
    """DeepFool in L2 (Moosavi-Dezfooli et al., 2016; paper, Eq. 3).

    Walks to the nearest linearised boundary of the model's own decision, up to ``steps`` times,
    and passes it by the factor 1 + overshoot. y is not used: the attack is on the decision.
    Clips whose decision has changed take no further steps.
    """
    x = _checked(model, x)
    walked = x.clone()
    origin = predictions(model, x)
    active = torch.arange(len(x), device=x.device)
    for step in range(steps):
        if step:  # a forward pass alone is cheap beside the gradients of a clip already fooled
            active = active[predictions(model, walked[active]) == origin[active]]
        if not len(active):
            break
        walked[active] += _to_nearest_boundary(model, walked[active], origin[active])
    return x + (1 + overshoot) * (walked - x)


def _to_nearest_boundary(model: Model, x: Tensor, origin: Tensor) -> Tensor:
    """The smallest step that makes another class's linearised logit equal the origin's.

    x: (batch, 1, frames, mels); origin: (batch,) classes. One gradient for each other class, of
    the difference between its logit and the origin's.
    """
    x = x.detach().requires_grad_()
    logits = model(x).float()
    classes = logits.shape[1]
    others = (origin[:, None] + torch.arange(1, classes, device=x.device)) % classes
    gaps = logits.gather(1, others) - logits.gather(1, origin[:, None])
    normals = torch.stack(
        [
            torch.autograd.grad(gaps[:, k].sum(), x, retain_graph=k < classes - 2)[0]
            for k in range(classes - 1)
        ],
        dim=1,
    )
    gaps, lengths = gaps.detach().abs(), normals.flatten(2).norm(dim=2)
    nearest = (gaps / (lengths + _TINY)).argmin(1)
    rows = torch.arange(len(x), device=x.device)
    factor = gaps[rows, nearest] / (lengths[rows, nearest] ** 2 + _TINY)
    return factor.view(-1, 1, 1, 1) * normals[rows, nearest]


def predictions(model: Model, x: Tensor) -> Tensor:
    """(batch,) the classes the model decides for."""
    with torch.no_grad():
        return model(x).argmax(1)


def _loss_gradient(model: Model, x: Tensor, y: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    # the sum: each clip's gradient is its own, whatever the size of the batch
    loss = cross_entropy(model(x).float(), y, reduction="sum")
    return torch.autograd.grad(loss, x)[0]


def _checked(model: Model, x: Tensor) -> Tensor:
    """x, detached. Raises ValueError for a model in training mode, or NaN in x."""
    if isinstance(model, nn.Module) and model.training:
        raise ValueError("the model is in training mode; attack model.eval()")
    if not torch.isfinite(x).all():
        raise ValueError("x holds NaN or infinite values")
    return x.detach()


ATTACKS: dict[str, Callable[..., Tensor]] = {"fgsm": fgsm, "pgd": pgd, "deepfool": deepfool}


def configured(
    name: str, *, epsilon: float, step_size: float, steps: int, overshoot: float
) -> Callable[[Model, Tensor, Tensor], Tensor]:
    """The attack called ``name``, with those of the settings that are its own."""
    own = {
        "fgsm": {"epsilon": epsilon},
        "pgd": {"epsilon": epsilon, "step_size": step_size, "steps": steps},
        "deepfool": {"steps": steps, "overshoot": overshoot},
    }
    return partial(ATTACKS[choose("attack", name, sorted(ATTACKS))], **own[name])


def perceptibility(x: Tensor, adversarial: Tensor) -> dict[str, float]:
    """How large a perturbation is, averaged over the clips: its L2 and L-inf norm in the units
    of x, and the ratio of the energies of x and of the perturbation in dB."""
    delta = (adversarial - x).flatten(1)
    ratio = x.flatten(1).square().sum(1) / delta.square().sum(1).clamp(min=_TINY)
    return {
        "l2": delta.norm(dim=1).mean().item(),
        "linf": delta.abs().amax(1).mean().item(),
        "snr_db": (10 * ratio.log10()).mean().item(),
    }

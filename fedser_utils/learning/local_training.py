"""One client's training in a round: local epochs on original, or on half adversarial, clips.

Adversarial training as in the paper's section 5.2: at the start of a round a random half of the
client's clips is attacked with the model it received, and the loss weighs the two halves (Eq. 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.adam import adam

from fedser_utils.learning.vgg import VGG15, attack_target, load_arrays, state_arrays

Arrays = dict[str, Tensor]
Attack = Callable[..., Tensor]


class Update(NamedTuple):
    """The result of a client's round.

    weights: as ``vgg.state_arrays``; optimiser: Adam's moments and step per parameter, for the
    client's next round; loss: mean over the clips; local_arrays: those that stay with the client.
    """

    weights: Arrays
    optimiser: Arrays
    loss: float
    local_arrays: Mapping[str, Tensor] = MappingProxyType({})


class Schedule(NamedTuple):
    """The random draws of a client's round, as indices of clips: those that stay original, those
    attacked at its start, and (original, attacked) of each step's batch."""

    original: Tensor
    attacked: Tensor
    steps: list[tuple[Tensor, Tensor]]


def make_schedule(
    n: int, *, epochs: int, batch_size: int, attack: bool, generator: torch.Generator
) -> Schedule:
    """Draw a round on ``n`` clips. attack: whether half of them, rounded down, are attacked."""
    order = torch.randperm(n, generator=generator)
    attacked = order[: n // 2 if attack else 0]
    original = order[len(attacked) :]
    steps = [
        step for _ in range(epochs) for step in _batches(original, attacked, batch_size, generator)
    ]
    return Schedule(original, attacked, steps)


def client_update(
    model: VGG15,
    weights: Arrays,
    x: Tensor,
    y: Tensor,
    *,
    generator: torch.Generator,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    optimiser: Arrays | None = None,
    local_arrays: Arrays | None = None,
    attack: Attack | None = None,
    alpha: float = 0.5,
    proximal_mu: float = 0.0,
    bf16: bool = False,
) -> Update:
    """Train ``weights`` on one client's clips and return the update.

    model: a workspace of the right shape, overwritten. x: (n, 1, frames, mels) standardised
    log-Mel; y: (n,) labels; n >= 1. optimiser: as the client's last round returned it, or None
    for a new Adam. local_arrays: arrays that stay with the client and replace those received,
    which are returned unchanged (FedBN, Li et al., 2021). attack: ``(model, x, y) -> x_adv``, or
    None for natural training; alpha: weight of the original clips' loss in Eq. 5. proximal_mu:
    FedProx's weight of mu/2 |w - weights|^2, in what is minimised but not in the loss reported
    (Li et al., 2020, Eq. 2). bf16: autocast in training, and of the attack's gradients.

    ``weights``, ``optimiser``, ``local_arrays`` and ``x`` are not changed.
    """
    local_arrays = local_arrays or {}
    initial = weights | local_arrays
    load_arrays(model, initial)
    schedule = make_schedule(
        len(x), epochs=epochs, batch_size=batch_size, attack=attack is not None, generator=generator
    )
    if len(schedule.attacked):
        x, attacked = x.clone(), schedule.attacked.to(x.device)
        x[attacked] = attack(attack_target(model, bf16=bf16), x[attacked], y[attacked])
    state = init_optimizer_state(model, optimiser)
    total, count = 0.0, 0
    for original, adversarial in schedule.steps:
        batch = torch.cat([original, adversarial]).to(x.device)
        losses = train_step(
            model, state, x[batch], y[batch], clean=len(original), alpha=alpha,
            learning_rate=learning_rate, proximal_mu=proximal_mu, anchor=initial, bf16=bf16,
        )  # fmt: skip
        total, count = total + losses.sum(), count + len(batch)
    model.eval()
    trained = {name: value.clone() for name, value in state_arrays(model).items()}
    return Update(
        weights=trained | {name: weights[name] for name in local_arrays},
        optimiser={f"{key}/{name}": v for key, part in state.items() for name, v in part.items()},
        loss=float(total) / count,
        local_arrays={name: trained[name] for name in local_arrays},
    )


def train_step(
    model: VGG15,
    state: dict[str, Arrays],
    x: Tensor,
    y: Tensor,
    *,
    clean: int,
    alpha: float,
    learning_rate: float | Tensor,
    proximal_mu: float = 0.0,
    anchor: Arrays | None = None,
    bf16: bool = False,
    forward: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Take one step on one batch, in place, and return the losses (batch,), detached.

    state: as ``init_optimizer_state`` returns it. x: (batch, 1, frames, mels), y: (batch,); the
    first ``clean`` clips are original, the others adversarial. anchor: the weights that
    proximal_mu pulls to. forward: the model's forward pass, x -> logits, if not model itself.
    """
    model.train()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
        logits = (forward or model)(x)
    losses = cross_entropy(logits.float(), y, reduction="none")
    loss = mixed_loss(losses[:clean], losses[clean:], alpha=alpha)
    model.zero_grad()
    loss.backward()
    if proximal_mu:
        _pull_back(model, anchor, proximal_mu)
    _step(model, state, learning_rate)
    return losses.detach()


def _pull_back(model: VGG15, weights: Arrays, mu: float) -> None:
    """Add the gradient of mu/2 |w - weights|^2 to that of the parameters."""
    for name, parameter in model.named_parameters():
        parameter.grad.add_(parameter.detach() - weights[name].to(parameter.device), alpha=mu)


def mixed_loss(original: Tensor, adversarial: Tensor, *, alpha: float) -> Tensor:
    """Return Eq. 5: alpha x mean(original) + (1 - alpha) x mean(adversarial), of per-clip losses
    (n,) and (m,); where one of them is empty, the other's mean."""
    if not len(adversarial):
        return original.mean()
    if not len(original):
        return adversarial.mean()
    return alpha * original.mean() + (1 - alpha) * adversarial.mean()


def _batches(
    original: Tensor, attacked: Tensor, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffle both and spread them evenly over ``ceil(n / batch_size)`` batches."""
    count = -(-(len(original) + len(attacked)) // batch_size)
    parts = []
    for indices in (original, attacked):
        shuffled = indices[torch.randperm(len(indices), generator=generator)]
        parts.append(shuffled.tensor_split(count))
    yield from zip(*parts, strict=True)


def init_optimizer_state(model: VGG15, optimiser: Arrays | None) -> dict[str, Arrays]:
    """Return Adam's state, key -> parameter's name -> value: zeros, or a copy of ``optimiser``,
    whose names are e.g. ``exp_avg/classifier.0.bias``. Each value has its parameter's memory
    format: the fused Adam goes through memory, and would pair others with the wrong weights."""
    parameters = dict(model.named_parameters())
    state = {
        "step": {name: value.detach().new_zeros(()) for name, value in parameters.items()},
        "exp_avg": {name: torch.zeros_like(value) for name, value in parameters.items()},
        "exp_avg_sq": {name: torch.zeros_like(value) for name, value in parameters.items()},
    }
    for key, values in state.items() if optimiser else ():
        for name, value in values.items():
            value.copy_(optimiser[f"{key}/{name}"].reshape(value.shape))
    return state


@torch.no_grad()
def _step(model: VGG15, state: dict[str, Arrays], learning_rate: float | Tensor) -> None:
    """Take a step of torch's Adam (Kingma and Ba, 2015) with its defaults; in its functional form,
    since torch.optim's classes load the compiler first, which takes a new process seconds."""
    parameters = [*model.parameters()]
    adam(
        parameters, [p.grad for p in parameters], [*state["exp_avg"].values()],
        [*state["exp_avg_sq"].values()], [], [*state["step"].values()], fused=True, amsgrad=False,
        beta1=0.9, beta2=0.999, lr=learning_rate, weight_decay=0.0, eps=1e-8, maximize=False,
    )  # fmt: skip

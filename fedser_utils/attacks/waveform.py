"""Attacks on the waveform, which can be listened to, and measures of a perturbation's size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fedser_utils.attacks import target
from fedser_utils.attacks.gradient import pgd
from fedser_utils.attacks.target import Model

LOUDEST = 1 - 2**-15  # of a 16-bit sample
_DB = 20 / torch.log(torch.tensor(10.0)).item()  # of a difference of natural logarithms


def waveform_pgd(
    model: Model,
    waveform: Tensor,
    y: Tensor | None = None,
    *,
    features: Callable[[Tensor], Tensor],
    snr_db: float,
    steps: int,
    loss: str = "ce",
    eot: int = 1,
) -> Tensor:
    """Return adversarial waveforms of PGD in L2: the gradient goes through the features.

    model: takes what ``features`` returns. features: differentiable, (batch, samples) to
    (batch, 1, frames, mels), as ``log_mel.StandardisedLogMel``. waveform: (batch, samples) in
    [-1, 1]; y: (batch,) labels, or None for the model's own predictions. snr_db: the lowest
    signal-to-noise ratio in dB, from which follows the budget: the L2 norm of the perturbation is
    at most that of the clip times 10^(-snr_db / 20). Each step is 2.5 / steps of this budget long.

    Returns waveforms (batch, samples) within [-1, 1): they can be written in 16 bits.
    Raises ValueError as ``target.prepare`` does, and for a silent clip or one out of range.
    """
    target.check_model(model, waveform)
    energy = waveform.square().sum(1)
    if not energy.all():
        raise ValueError("a clip is silent: no perturbation keeps a signal-to-noise ratio")
    if waveform.abs().max() > 1:
        raise ValueError(f"waveform reaches {waveform.abs().max():g}; it must be in [-1, 1]")
    epsilon = (energy * 10 ** (-snr_db / 10)).sqrt()
    return pgd(
        lambda sound: model(features(sound)), waveform, y, epsilon=epsilon,
        step_size=2.5 * epsilon / steps, steps=steps, norm="l2", clip_values=(-1, LOUDEST),
        loss=loss, eot=eot,
    )  # fmt: skip


def snr_db(clean: Tensor, changed: Tensor) -> Tensor:
    """(batch,) the signal-to-noise ratio in dB, 10 log10(|clean|^2 / |changed - clean|^2); infinite
    for no change. clean, changed: (batch, ...)."""
    signal, noise = (part.flatten(1).square().sum(1) for part in (clean, changed - clean))
    return 10 * (signal / noise).log10()


def perceptibility(x: Tensor, x_adv: Tensor, *, mean: Tensor, std: Tensor) -> dict[str, Tensor]:
    """Return measures of each clip's perturbation, (batch,) each.

    x, x_adv: (batch, 1, frames, mels) standardised log-Mel; mean, std: (mels,) of the
    standardisation. Measures: l2 and linf in standardised units; linf_db, the largest change of a
    Mel magnitude in dB; snr_db, the signal-to-noise ratio of the Mel magnitudes in dB.
    """
    delta = x_adv - x
    magnitudes = [(part * std + mean).exp() for part in (x, x_adv)]
    return {
        "l2": delta.flatten(1).norm(dim=1),
        "linf": delta.flatten(1).abs().amax(1),
        "linf_db": _DB * (delta * std).flatten(1).abs().amax(1),
        "snr_db": snr_db(*magnitudes),
    }

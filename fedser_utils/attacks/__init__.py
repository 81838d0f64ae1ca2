"""Attacks at inference on anything that gives logits, staying on the input's device.

The paper's three (section 2.3) are ours: ``fgsm``, ``pgd``, ``deepfool``, equal to the
Adversarial Robustness Toolbox's (tested) and faster; ``art_attack`` is the way to ART's others,
``waveform_pgd`` attacks the sound itself. Nothing that comes in is changed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from fedser_utils.attacks.art_bridge import TOOLBOX, art_attack
from fedser_utils.attacks.boundary import deepfool
from fedser_utils.attacks.gradient import fgsm, pgd
from fedser_utils.attacks.target import Model, predictions
from fedser_utils.attacks.waveform import perceptibility, snr_db, waveform_pgd
from fedser_utils.core.errors import choose

__all__ = [
    "ATTACKS",
    "TOOLBOX",
    "Model",
    "art_attack",
    "configured",
    "deepfool",
    "fgsm",
    "perceptibility",
    "pgd",
    "predictions",
    "snr_db",
    "waveform_pgd",
]

ATTACKS: dict[str, Callable[..., Tensor]] = {"fgsm": fgsm, "pgd": pgd, "deepfool": deepfool}


def configured(
    name: str,
    *,
    epsilon: float,
    step_size: float,
    steps: int,
    overshoot: float,
    **options: Any,
) -> Callable[[Model, Tensor, Tensor], Tensor]:
    """The attack called ``name``, with those of the settings that are its own, and its options."""
    own = {
        "fgsm": {"epsilon": epsilon},
        "pgd": {"epsilon": epsilon, "step_size": step_size, "steps": steps},
        "deepfool": {"steps": steps, "overshoot": overshoot},
    }
    return partial(ATTACKS[choose("attack", name, sorted(ATTACKS))], **own[name], **options)

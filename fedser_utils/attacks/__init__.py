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

from fedser_utils.attacks.art_bridge import ART_ATTACKS, art_attack
from fedser_utils.attacks.boundary import deepfool
from fedser_utils.attacks.gradient import fgsm, pgd
from fedser_utils.attacks.target import Model, predictions
from fedser_utils.attacks.waveform import perceptibility, snr_db, waveform_pgd
from fedser_utils.core.errors import choose
from fedser_utils.core.settings import Settings

__all__ = [
    "ART_ATTACKS",
    "ATTACKS",
    "Model",
    "art_attack",
    "deepfool",
    "fgsm",
    "make_attack",
    "perceptibility",
    "pgd",
    "predictions",
    "snr_db",
    "waveform_pgd",
]

ATTACKS: dict[str, Callable[..., Tensor]] = {"fgsm": fgsm, "pgd": pgd, "deepfool": deepfool}
STRENGTH = {  # attack -> which of the settings say how strong it is
    "fgsm": ("epsilon",),
    "pgd": ("epsilon", "step_size", "steps"),
    "deepfool": ("steps", "overshoot"),
}


def make_attack(
    settings: Settings, name: str, **changes: Any
) -> Callable[[Model, Tensor, Tensor], Tensor]:
    """The attack called ``name`` at the strength that the settings give it.

    changes: other strengths (those that this attack does not have are left out: FGSM has no
    steps), and further options of the attack. Raises InputError for an unknown name.
    """
    choose("attack", name, sorted(ATTACKS))
    strength = {option: getattr(settings, option) for option in STRENGTH[name]}
    foreign = {option for options in STRENGTH.values() for option in options} - strength.keys()
    given = {option: value for option, value in changes.items() if option not in foreign}
    return partial(ATTACKS[name], **(strength | given))

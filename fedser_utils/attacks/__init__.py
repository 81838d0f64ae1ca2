"""Attacks at inference, on any callable that returns logits.

The paper's three (section 2.3), ``fgsm``, ``pgd`` and ``deepfool``, give what the Adversarial
Robustness Toolbox gives (tested), faster and on the input's device; ``art_attack`` runs ART's
others, ``waveform_pgd`` attacks the waveform. No attack changes its arguments.
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
STRENGTH = {  # attack -> the settings that say how strong it is
    "fgsm": ("epsilon",),
    "pgd": ("epsilon", "step_size", "steps"),
    "deepfool": ("steps", "overshoot"),
}


def make_attack(
    settings: Settings, name: str, **changes: Any
) -> Callable[[Model, Tensor, Tensor], Tensor]:
    """Return the attack ``(model, x, y) -> x_adv`` called ``name``, as strong as the settings say.

    changes: other strengths (one that this attack does not have is left out: FGSM has no steps),
    and further options of the attack. Raises InputError for an unknown name.
    """
    choose("attack", name, sorted(ATTACKS))
    strength = {option: getattr(settings, option) for option in STRENGTH[name]}
    foreign = {option for options in STRENGTH.values() for option in options} - strength.keys()
    applicable = {option: value for option, value in changes.items() if option not in foreign}
    return partial(ATTACKS[name], **(strength | applicable))

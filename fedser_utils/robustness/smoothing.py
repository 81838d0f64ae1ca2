"""Randomised smoothing: majority over Gaussian noise, with a certificate (Cohen et al., 2019).

If the likeliest class has a probability of at least p under noise of standard deviation sigma, no
perturbation with an L2 norm below sigma * Phi^-1(p) changes the decision, whatever the attacker
knows. Not to be confused with the randomisation (resize and pad), which guarantees nothing.
"""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy.stats import norm
from statsmodels.stats.proportion import proportion_confint
from torch import Tensor

from fedser_utils.attacks import Model
from fedser_utils.core.seeding import generator
from fedser_utils.robustness.evaluation import in_batches

ABSTAINS = -1


def certify(
    model: Model,
    x: Tensor,
    *,
    sigma: float,
    choosing: int,
    samples: int,
    alpha: float = 0.001,
    seed: int,
    pool: Executor | None = None,
) -> pd.DataFrame:
    """Return the decisions of the smoothed model, with the L2 radius within which each is certain.

    x: (n, 1, frames, mels) standardised log-Mel, the radius's unit; sigma: of the noise; choosing:
    noisy copies that choose the class; samples: further ones that bound its probability (Clopper
    and Pearson, one-sided); alpha: probability that a radius is wrong.

    Returns a row per clip: index, y_pred, radius; where the bound is not above 1/2 the smoothed
    model abstains: ``ABSTAINS`` and 0. Cohen, Rosenfeld and Kolter (2019), CERTIFY.
    """
    options = {"sigma": sigma, "pool": pool}
    first = votes(model, x, samples=choosing, seed=seed, stream="choose", **options).argmax(1)
    counts = votes(model, x, samples=samples, seed=seed, stream="bound", **options)
    hits = counts[np.arange(len(x)), first]
    # the one-sided bound at level alpha is the lower end of the two-sided one at 2 alpha
    low = proportion_confint(hits, samples, alpha=2 * alpha, method="beta")[0]
    certain = low > 0.5
    radius = np.where(certain, sigma * norm.ppf(np.maximum(low, 0.5)), 0.0)
    y_pred = np.where(certain, first, ABSTAINS)
    return pd.DataFrame({"index": np.arange(len(x)), "y_pred": y_pred, "radius": radius})


def votes(
    model: Model,
    x: Tensor,
    *,
    sigma: float,
    samples: int,
    seed: int,
    stream: str,
    pool: Executor | None = None,
) -> np.ndarray:
    """Return (n, classes), the number of noisy copies of each clip that are classified as each
    class. x: (n, 1, frames, mels) standardised log-Mel; stream: names the noise."""

    def count(x: Tensor, generator: torch.Generator) -> Tensor:
        total = 0
        on_device = torch.Generator(device=x.device).manual_seed(generator.initial_seed())
        with torch.no_grad():
            for _ in range(samples):
                noise = torch.randn(x.shape, generator=on_device, device=x.device)
                logits = model(x + sigma * noise)
                total = total + torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])
        return total

    generators = partial(generator, seed, "smoothing", stream)
    return in_batches(count, x, pool=pool, generators=generators).cpu().numpy()

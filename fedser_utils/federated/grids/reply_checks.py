"""Checks of what clients send, before anything is computed from it.

Flower's FedAvg takes NaN, 1e30 and a claim of 10^12 examples as they come, and one such reply
decides the model. Each check returns the fault in words, or None. They do not detect plausible
lies: against those there are FedMedian, FedTrimmedAvg, Krum, MultiKrum and Bulyan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np
import torch
from torch import Tensor

MAX_NORM = 1e6  # of an array; those of trained models are far below
MAX_CLIPS = 1_000_000  # of one client


def fault_of_weights(
    weights: Mapping[str, Tensor], like: Mapping[str, Tensor], *, times: int = 1
) -> str | None:
    """Return the fault of a client's weights: other names, types or shapes than ``like``'s (the
    model sent), NaN, a huge norm, a negative variance. times: for a sum of so many weights."""
    if list(weights) != list(like):
        return "arrays that are not the model's"
    for name, value in weights.items():
        if value.dtype != like[name].dtype:
            return f"{name} of type {str(value.dtype).removeprefix('torch.')}"
        if value.shape != like[name].shape:
            return f"{name} of shape {tuple(value.shape)}"
    norms = torch.stack(torch._foreach_norm([*weights.values()]))
    bad = ~(norms <= times * MAX_NORM)  # NaN compares as False
    if bool(bad.any()):
        name = [*weights][int(bad.nonzero()[0])]
        return f"{name} contains {float(weights[name].abs().max()):.3g}"
    return fault_of_variances(weights)


def fault_of_variances(weights: Mapping[str, Tensor]) -> str | None:
    """Return the fault of a negative batch-norm variance, which a sum over clients may hide."""
    variances = [v.flatten() for n, v in weights.items() if n.endswith("running_var")]
    negative = variances and bool((torch.cat(variances) < 0).any())
    return "a negative variance" if negative else None


def fault_of_count(count: object, expected: int | None) -> str | None:
    """Return the fault of a number of clips. expected: the number when the client joined; None
    while it joins."""
    if not isinstance(count, Integral) or not 1 <= count <= MAX_CLIPS:
        return f"{count!r} clips"
    if expected is not None and count != expected:
        return f"{count} clips where it has {expected}"
    return None


def fault_of_sums(count: int, first: np.ndarray, second: np.ndarray, shape: tuple) -> str | None:
    """Return the fault of sums for the standardisation (``log_mel.Sums``): count of frames, first
    and second moments, float64 of ``shape`` (bands,)."""
    for sums in (first, second):
        if sums.shape != shape or sums.dtype != np.float64 or not np.isfinite(sums).all():
            return "sums that are not the standardisation's"
    if count < 1 or (second * count < first**2 * (1 - 1e-6)).any():  # a negative variance
        return "sums that no clips can have"
    return None


def fault_of_confusion(confusion: Sequence[int], expected: Sequence[int]) -> str | None:
    """Return the fault of a confusion matrix (classes x classes, flat, a row for each true class).
    expected: (classes,), the client's test clips of each class."""
    classes = len(expected)
    table = np.asarray(confusion)
    if table.shape != (classes**2,) or table.dtype.kind != "i" or (table < 0).any():
        return "a confusion matrix that is none"
    if (table.reshape(classes, classes).sum(1) != np.asarray(expected)).any():
        return "a confusion matrix of other clips than it has"
    return None

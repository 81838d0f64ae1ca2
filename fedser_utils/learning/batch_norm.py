"""Batch normalisation between clients: its names, its statistics on a client's clips, pooled."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import Tensor, nn

from fedser_utils.learning.vgg import state_arrays


def batch_norm_names(model: nn.Module) -> list[str]:
    """Return the names among ``state_arrays`` that belong to batch normalisation: weights, biases
    and running statistics."""
    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    return [name for name in state_arrays(model) if name.rpartition(".")[0] in layers]


def batch_statistics(model: nn.Module, x: Tensor, *, batch_size: int = 32) -> dict[str, Tensor]:
    """Return the running means and variances of the batch normalisation on these clips alone, by
    name. x: (n, 1, frames, mels). ``model`` is not changed."""
    from torch.optim.swa_utils import update_bn  # here: torch.optim loads the compiler

    updated = copy.deepcopy(model)
    update_bn(x.split(batch_size), updated)
    return {name: v.clone() for name, v in state_arrays(updated).items() if ".running_" in name}


def pooled_statistics(by_client: Iterable[tuple[dict[str, Tensor], int]]) -> dict[str, Tensor]:
    """Return the statistics of all clips from pairs (``batch_statistics``, number of clips): the
    variance within each client plus that of the means (law of total variance)."""
    parts, counts = zip(*by_client, strict=True)
    weights = [count / sum(counts) for count in counts]
    pooled = {}
    for name in parts[0]:
        pooled[name] = sum(w * part[name] for w, part in zip(weights, parts, strict=True))
    for name in [name for name in pooled if name.endswith("running_var")]:
        means = name.removesuffix("var") + "mean"
        for w, part in zip(weights, parts, strict=True):
            pooled[name] = pooled[name] + w * (part[means] - pooled[means]).square()
    return pooled

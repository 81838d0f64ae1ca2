"""Client drift, and the shift of batch statistics between corpora.

FedProx and server-side optimisers are meant against client drift (Karimireddy et al., 2020), local
batch normalisation against shifted batch statistics (Li et al., 2021). Both are measured here, so
that an intervention is chosen for a difference that exists.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedser_utils.analysis.heterogeneity.client_differences import ALL, column_by_client
from fedser_utils.core import checkpoints
from fedser_utils.core.devices import resolve_device
from fedser_utils.core.runs import Run
from fedser_utils.core.seeding import rng
from fedser_utils.core.settings import Settings
from fedser_utils.data.federation import Federation
from fedser_utils.federated.client import fit, thread_model
from fedser_utils.learning import batch_norm, vgg
from fedser_utils.learning.local_training import Arrays

BATCH = 16  # clips in a forward pass for batch statistics


def drift(
    settings: Settings,
    data: Federation,
    weights: Arrays,
    *,
    round_number: int,
    states: Mapping[str, Arrays] | None = None,
) -> pd.DataFrame:
    """Train every client one more round from the same weights, without aggregating; return a row
    for each client.

    weights: as ``vgg.state_arrays``. states: client -> ``state_after`` of its last round; a client
    without one starts with a fresh Adam, and its update is longer than it would be otherwise. An
    update is the change of all trainable parameters in one float32 vector (0 for local arrays);
    for 68 clients at width 1 these take 4 GB.

    Columns: client, corpus (of its clips, or "several"), language, examples, loss, distance (L2
    norm of the update), relative (to the norm of the weights), cosine (to the mean update, weighted
    by examples), inside and outside (mean cosine to the updates of other clients of the same
    corpus, and of other corpora; NaN where there are none).
    """
    device, mu = resolve_device(settings), settings.proximal_mu or 0.0
    names = [name for name, _ in thread_model(settings, len(data.classes)).named_parameters()]
    start, facts, states = _vector(weights, names), [], states or {}
    updates = start.new_empty(len(data.clients), len(start))
    for i, client in enumerate(data.clients):
        clips, state = data.tensors(data.table("train", client), device=device), states.get(client)
        update = fit(settings, client, clips, weights, round_number, state, proximal_mu=mu)
        updates[i] = _vector(update.weights, names) - start
        facts.append({"client": client, "examples": len(clips[1]), "loss": update.loss})
    table = pd.DataFrame(facts)
    for column in ("corpus", "language"):
        table.insert(1, column, table["client"].map(column_by_client(data.clips, column)))
    gram = (updates @ updates.T).double().numpy()
    table["distance"] = np.sqrt(gram.diagonal())
    table["relative"] = table["distance"] / float(start.norm())
    return table.assign(**_cosines(gram, table["examples"], table["corpus"]))


def _vector(arrays: Arrays, names: list[str]) -> Tensor:
    return torch.cat([arrays[name].detach().float().cpu().reshape(-1) for name in names])


def _cosines(gram: np.ndarray, examples: pd.Series, corpora: pd.Series) -> dict[str, np.ndarray]:
    """Return the columns cosine, inside and outside of ``drift``. gram: (clients, clients), inner
    products of the updates."""
    share = examples.to_numpy() / examples.sum()
    norms = np.sqrt(gram.diagonal())
    length = np.sqrt(max(share @ gram @ share, 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):  # a zero update has no direction
        cosines = gram / np.outer(norms, norms)
        towards = gram @ share / (norms * length)
    same = corpora.to_numpy()[:, None] == corpora.to_numpy()
    inside = same & ~np.eye(len(gram), dtype=bool)
    return {
        "cosine": towards,
        "inside": _row_means(cosines, inside),
        "outside": _row_means(cosines, ~same),
    }


def _row_means(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the mean of each row's chosen values; NaN for none. Both (rows, columns)."""
    count = chosen.sum(axis=1)
    total = np.where(chosen, values, 0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def saved_states(run: Run, data: Federation) -> dict[str, Arrays]:
    """Return the clients' states (client -> ``state_after``) in the run's newest checkpoint; {}
    where there are none."""
    checkpoint = checkpoints.load(run.folder / "checkpoint")
    parts = checkpoint[1] if checkpoint else {}
    return {
        client: {name: torch.from_numpy(value) for name, value in parts[key].items()}
        for node, client in enumerate(data.clients, start=1)
        if (key := f"client-{node}") in parts
    }


def batch_norm_shift(
    settings: Settings, data: Federation, model: vgg.VGG15, *, most: int = 64
) -> pd.DataFrame:
    """Return how far each corpus's batch statistics are from the model's running statistics.

    model: on the settings' device; unchanged. most: training clips of each corpus, evenly from its
    clients. The rows of corpus "all", as many clips evenly from all clients, are what to expect
    without any difference between corpora: running statistics are older than the weights, and a
    sample is small.

    Columns: corpus, layer (1, 2, ...), name (of the layer), mean_shift (mean over channels of the
    difference of means, in the model's standard deviations), variance_shift (of the absolute log
    ratio of variances), n (clips). No rows for a model without batch normalisation.
    """
    running = vgg.state_arrays(model)
    names = [key.removesuffix(".running_mean") for key in running if key.endswith(".running_mean")]
    columns = ["corpus", "layer", "name", "mean_shift", "variance_shift", "n"]
    train, rows = data.table("train"), []
    groups = [(ALL, train), *train.groupby("corpus")] if names else []
    for corpus, clips in groups:
        sample = _even_sample(clips, most, settings.seed)
        x, _ = data.tensors(sample, device=resolve_device(settings))
        batch = batch_norm.batch_statistics(model, x, batch_size=BATCH)
        for layer, name in enumerate(names, start=1):
            rows.append((corpus, layer, name, *_shifts(running, batch, name), len(sample)))
    return pd.DataFrame(rows, columns=columns)


def _shifts(running: Arrays, batch: Arrays, name: str) -> tuple[float, float]:
    """Return mean_shift and variance_shift of one layer."""
    eps = torch.nn.BatchNorm2d(1).eps  # as in the layer: a dead channel has no variance
    mean, new_mean = (arrays[f"{name}.running_mean"] for arrays in (running, batch))
    var, new_var = (arrays[f"{name}.running_var"] + eps for arrays in (running, batch))
    shifts = (new_mean - mean).abs() / var.sqrt(), (new_var / var).log().abs()
    return float(shifts[0].mean()), float(shifts[1].mean())


def _even_sample(clips: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """Return at most ``most`` of the clips, evenly from their clients, at random otherwise."""
    order = rng(seed, "batch norm shift").permutation(len(clips))
    shuffled = clips.iloc[order]
    turn = shuffled.groupby("client").cumcount()
    return shuffled.iloc[np.argsort(turn.to_numpy(), kind="stable")[:most]]

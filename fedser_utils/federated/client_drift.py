"""How far apart clients pull the model in a round, and how unlike their batch statistics are.

Client drift is what FedProx and server-side optimisers are meant to hold back (Karimireddy et al.,
2020); unlike batch statistics are what local batch normalisation is meant for (Li et al., 2021).
Here both are measured, so that a remedy is chosen for what is there.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedser_utils.analysis.heterogeneity.client_differences import ALL, of_clients
from fedser_utils.core import checkpoints
from fedser_utils.core.devices import resolve_device
from fedser_utils.core.runs import Run
from fedser_utils.core.seeding import rng
from fedser_utils.core.settings import Settings
from fedser_utils.data.federation import Federation
from fedser_utils.federated.client import fit, model_of
from fedser_utils.learning import vgg
from fedser_utils.learning.local_training import Arrays

_BATCH = 16  # clips whose batch statistics are taken at a time


def drift(
    settings: Settings,
    data: Federation,
    weights: Arrays,
    *,
    round_number: int,
    states: Mapping[str, Arrays] | None = None,
) -> pd.DataFrame:
    """One more round of every client from the same weights, which is not aggregated.

    weights: as ``vgg.state_arrays``. states: client -> what it keeps between rounds
    (``kept``); one that is not there starts with a fresh optimiser, and goes further than it
    otherwise would. An update is the change of all trainable parameters in one vector (0 for those
    that a client keeps to itself); they are held in single precision, which for 68 clients at
    width 1 is 4 GB.

    Columns: client, corpus (of its clips, or "several"), language, examples, loss, distance (L2
    norm of the update), relative (to the norm of the weights), cosine (to the mean update, weighted
    by examples), inside and outside (mean cosine to the updates of the other clients of its own
    corpus, and of other corpora; NaN where there are none).
    """
    device, held, mu = resolve_device(settings), states or {}, settings.proximal_mu or 0.0
    names = [name for name, _ in model_of(settings, len(data.classes)).named_parameters()]
    start, updates, facts = _vector(weights, names), None, []
    for place, client in enumerate(data.clients):
        clips = data.tensors(data.table("train", client), device=device)
        told = clips, weights, round_number, held.get(client)
        update = fit(settings, client, *told, proximal_mu=mu)
        moved = _vector(update.weights, names) - start
        updates = moved.new_empty(len(data.clients), len(moved)) if updates is None else updates
        updates[place] = moved
        facts.append({"client": client, "examples": len(clips[1]), "loss": update.loss})
    table = pd.DataFrame(facts)
    for column in ("corpus", "language"):
        table.insert(1, column, table["client"].map(of_clients(data.clips, column)))
    gram = (updates @ updates.T).double().numpy()
    table["distance"] = np.sqrt(gram.diagonal())
    table["relative"] = table["distance"] / float(start.norm())
    return table.assign(**_angles(gram, table["examples"], table["corpus"]))


def _vector(arrays: Arrays, names: list[str]) -> Tensor:
    return torch.cat([arrays[name].detach().float().cpu().reshape(-1) for name in names])


def _angles(gram: np.ndarray, examples: pd.Series, corpora: pd.Series) -> dict[str, np.ndarray]:
    """cosine, inside and outside of ``drift``. gram: (clients, clients) products of the updates."""
    share = examples.to_numpy() / examples.sum()
    norms = np.sqrt(gram.diagonal())
    length = np.sqrt(max(share @ gram @ share, 0.0))
    with np.errstate(invalid="ignore", divide="ignore"):  # an update of nothing has no direction
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
    """The mean of each row's chosen values; NaN for none."""
    count = chosen.sum(axis=1)
    total = np.where(chosen, values, 0).sum(axis=1)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def saved_states(run: Run, data: Federation) -> dict[str, Arrays]:
    """What each client keeps between rounds, from the run's newest checkpoint: its optimiser's
    state, arrays of its own; {} where nothing is kept."""
    found = checkpoints.load(run.folder / "checkpoint")
    parts = found[1] if found else {}
    return {
        client: {name: torch.from_numpy(value) for name, value in parts[key].items()}
        for place, client in enumerate(data.clients, start=1)  # a client's node, as in the cohort
        if (key := f"client-{place}") in parts
    }


def batch_norm_shift(
    settings: Settings, data: Federation, model: vgg.VGG15, *, most: int = 64
) -> pd.DataFrame:
    """How far each corpus's batch statistics are from those the model decides with.

    model: on the settings' device; not changed. most: training clips of each corpus, evenly from
    its clients. The rows of corpus "all" are of as many clips evenly from all clients: what is to
    be expected without any difference between corpora, since a model's running statistics are also
    older than its weights, and few clips are few.

    Columns: corpus, layer (1, 2, ...), name (of the layer), mean_shift (the mean over channels of
    the difference of means, in the model's standard deviations), variance_shift (of the absolute
    log ratio of variances), n (clips). Without batch normalisation there are no rows.
    """
    own = vgg.state_arrays(model)
    names = [key.removesuffix(".running_mean") for key in own if key.endswith(".running_mean")]
    columns = ["corpus", "layer", "name", "mean_shift", "variance_shift", "n"]
    train, rows = data.table("train"), []
    groups = [(ALL, train), *train.groupby("corpus")] if names else []
    for corpus, clips in groups:
        chosen = _evenly(clips, most, settings.seed)
        x, _ = data.tensors(chosen, device=resolve_device(settings))
        found = vgg.batch_statistics(model, x, batch_size=_BATCH)
        for layer, name in enumerate(names, start=1):
            shifts = _shifts(own, found, name)
            rows.append((corpus, layer, name, *shifts, len(chosen)))
    return pd.DataFrame(rows, columns=columns)


def _shifts(own: Arrays, found: Arrays, name: str) -> tuple[float, float]:
    """mean_shift and variance_shift of one layer."""
    eps = torch.nn.BatchNorm2d(1).eps  # as in the layer: a dead channel has no variance
    mean, new_mean = (arrays[f"{name}.running_mean"] for arrays in (own, found))
    var, new_var = (arrays[f"{name}.running_var"] + eps for arrays in (own, found))
    shifts = (new_mean - mean).abs() / var.sqrt(), (new_var / var).log().abs()
    return float(shifts[0].mean()), float(shifts[1].mean())


def _evenly(clips: pd.DataFrame, most: int, seed: int) -> pd.DataFrame:
    """At most so many of the clips, as evenly as can be from their clients, else at random."""
    order = rng(seed, "batch norm shift").permutation(len(clips))
    mixed = clips.iloc[order]
    turn = mixed.groupby("client").cumcount()
    return mixed.iloc[np.argsort(turn.to_numpy(), kind="stable")[:most]]

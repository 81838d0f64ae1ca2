"""How the server evaluates a model after a round: itself on all test clips (cohort, simulation),
or from the clients' confusion counts (deployment).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from fedser_utils.core import count_tables, runs
from fedser_utils.core.devices import resolve_device
from fedser_utils.core.runs import Run
from fedser_utils.core.seeding import derive
from fedser_utils.core.settings import Settings
from fedser_utils.data import log_mel
from fedser_utils.data.federation import Federation
from fedser_utils.federated.client import attack_names, evaluate_round, new_model
from fedser_utils.federated.grids.base import ClientGrid
from fedser_utils.federated.grids.remote import RemoteGrid
from fedser_utils.learning import vgg
from fedser_utils.learning.local_training import Arrays
from fedser_utils.robustness import evaluation


@dataclass(frozen=True)
class ServerEvaluation:
    """classes: in the order of the logits; mean, std: (bands,), of the standardisation; evaluate:
    (round, weights) -> rows of predictions."""

    run: Run
    classes: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    evaluate: Callable[[int, ArrayRecord], pd.DataFrame]

    @property
    def config(self) -> dict[str, Any]:
        """The fields of every message's config: run, classes, mean, std."""
        standard = {
            "mean": self.mean.astype(float).tolist(),
            "std": self.std.astype(float).tolist(),
        }
        return {"run": self.run.id, "classes": [*self.classes]} | standard


def with_recordings(
    grid: ClientGrid, settings: Settings, run: Run, data: Federation, pool: Executor
) -> ServerEvaluation:
    """Return the evaluation by the server itself, which can read all recordings. Writes
    clips.parquet and rejected.csv."""
    if isinstance(grid, RemoteGrid):
        grid.wait({client: len(data.table("train", client)) for client in data.clients})
    if not (run.folder / "rejected.csv").exists():
        run.write("clips.parquet", data.clips.drop(columns=["path", "digest"]))
        run.write("rejected.csv", data.corpus.rejected)
    model = new_model(settings, len(data.classes)).to(resolve_device(settings))

    @functools.cache
    def clips(*client: str) -> tuple[pd.DataFrame, tuple[Tensor, Tensor]]:
        """Return the test clips, of one client or of all: their rows, and (x, y)."""
        table = data.table("test", *client)
        return table, data.tensors(table, device=resolve_device(settings))

    def predictions(number: int, weights: Arrays, *client: str) -> pd.DataFrame:
        table, tensors = clips(*client)
        seed = derive(settings.seed, "evaluation", number, *client)
        vgg.load_arrays(model, weights)
        rows = evaluate_round(settings, model, tensors, number, seed=seed, pool=pool)
        return evaluation.with_clips(rows, table, data.classes)

    def evaluate(number: int, record: ArrayRecord) -> pd.DataFrame:
        weights = dict(record.to_torch_state_dict())
        if settings.batch_norm != "local":
            return predictions(number, weights)
        local = grid.local_arrays()
        names = next(iter(local.values()))
        # for a client that was never sampled
        mean = {n: sum(arrays[n] for arrays in local.values()) / len(local) for n in names}
        testers = sorted(data.table("test")["client"].unique())
        rows = [predictions(number, weights | local.get(c, mean), c) for c in testers]
        return pd.concat(rows, ignore_index=True)

    return ServerEvaluation(run, data.classes, data.mean, data.std, evaluate)


def without_recordings(grid: RemoteGrid, settings: Settings, run: Run) -> ServerEvaluation:
    """Return the evaluation by the clients. Their sums give the standardisation, their counts the
    classes and the test clips; both are written to the run (standardisation.safetensors,
    clips.parquet), so that it can be resumed while a client is away."""
    path = run.folder / "standardisation.safetensors"
    if not path.exists():
        grid.wait(None)
        joined = [grid.joined[place] for place in sorted(grid.joined)]
        mean, std = log_mel.pool_statistics(client.sums for client in joined)
        counts = {name: client.counts for name, client in zip(grid.clients, joined, strict=True)}
        run.write("clips.parquet", count_tables.clips_from_counts(counts))
        runs.save_arrays(path, {"mean": mean, "std": std})
    clips, standard = run.table("clips"), runs.load_arrays(path)
    train, test = (clips[clips["split"] == part] for part in ("train", "test"))
    examples = train.groupby("client", sort=False).size().to_dict()  # by place
    grid.wait(examples, enough=settings.min_replies)
    classes = tuple(sorted(clips["emotion"].unique()))
    expected = pd.crosstab(test["client"], test["emotion"]).reindex(
        index=[*examples], columns=classes, fill_value=0
    )

    def evaluate(number: int, record: ArrayRecord) -> pd.DataFrame:
        keys = {
            f"{attack}/{condition}"
            for attack in ("none", *attack_names(settings, number))
            for condition in evaluation.conditions(attack)
        }
        config = ConfigRecord(by_clients.config | {"server-round": number})
        content = RecordDict({"arrays": record, "config": config})
        return count_tables.predictions_from_counts(
            grid.confusions(content, expected, keys), classes
        )

    by_clients = ServerEvaluation(run, classes, standard["mean"], standard["std"], evaluate)
    return by_clients

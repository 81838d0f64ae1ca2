"""What the server knows of the federation, and how it judges a model: with all recordings within
reach it decides on the test clips itself; otherwise the clients tell their sums, and evaluate.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

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
from fedser_utils.federated.client import attack_names, decisions, new_model
from fedser_utils.federated.grids.base import ClientGrid
from fedser_utils.federated.grids.remote import RemoteGrid
from fedser_utils.learning import vgg
from fedser_utils.learning.local_training import Arrays
from fedser_utils.robustness import evaluation

Evaluate = Callable[[int, ArrayRecord], pd.DataFrame]


@dataclass(frozen=True)
class ServerEvaluation:
    """What the server knows of the federation. judge: round and weights -> rows of decisions."""

    classes: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    evaluate: Evaluate

    def config(self, run: Run) -> ConfigRecord:
        """What every message of a run tells a client."""
        return _told(run, self.classes, self.mean, self.std)


def _told(run: Run, classes: Sequence[str], mean: np.ndarray, std: np.ndarray) -> ConfigRecord:
    statistics = {"mean": mean.astype(float).tolist(), "std": std.astype(float).tolist()}
    return ConfigRecord({"run": run.id, "classes": [*classes]} | statistics)


def with_recordings(
    grid: ClientGrid, settings: Settings, run: Run, data: Federation, pool: Executor
) -> ServerEvaluation:
    """All recordings are within reach: the server evaluates."""
    if isinstance(grid, RemoteGrid):
        examples = {client: len(data.table("train", client)) for client in data.clients}
        grid.wait(examples=examples)
    if not (run.folder / "rejected.csv").exists():
        run.write("clips.parquet", data.clips.drop(columns=["path", "digest"]))
        run.write("rejected.csv", data.corpus.rejected)
    model = new_model(settings, len(data.classes)).to(resolve_device(settings))

    @functools.cache
    def clips(*client: str) -> tuple[pd.DataFrame, tuple[Tensor, Tensor]]:
        """The test clips, of one client or of all."""
        table = data.table("test", *client)
        return table, data.tensors(table, device=resolve_device(settings))

    def decided(number: int, weights: Arrays, *client: str) -> pd.DataFrame:
        table, own = clips(*client)
        seed = derive(settings.seed, "evaluation", number, *client)
        vgg.load_arrays(model, weights)
        rows = decisions(settings, model, own, number, seed=seed, pool=pool)
        return evaluation.with_clips(rows, table, data.classes)

    def evaluate(number: int, record: ArrayRecord) -> pd.DataFrame:
        weights = dict(record.to_torch_state_dict())
        if settings.batch_norm != "local":
            return decided(number, weights)
        own = grid.local_arrays()
        # a client that was never asked to train takes the others' mean
        mean = {
            name: sum(o[name] for o in own.values()) / len(own) for name in next(iter(own.values()))
        }
        testers = sorted(data.table("test")["client"].unique())
        rows = [decided(number, weights | own.get(who, mean), who) for who in testers]
        return pd.concat(rows, ignore_index=True)

    return ServerEvaluation(data.classes, data.mean, data.std, evaluate)


def without_recordings(grid: RemoteGrid, settings: Settings, run: Run) -> ServerEvaluation:
    """The recordings stay with the clients: their sums give the standardisation, and they evaluate.
    What they said is kept with the run, so that it goes on when one of them is away."""
    path = run.folder / "standardisation.safetensors"
    if not path.exists():
        grid.wait(examples=None)
        told = dict(zip(grid.clients, (grid.joined[place] for place in sorted(grid.joined))))
        mean, std = log_mel.pool_statistics(joined.sums for joined in told.values())
        clips = count_tables.clips_from_counts(
            {client: joined.counts for client, joined in told.items()}
        )
        run.write("clips.parquet", clips)
        runs.save_arrays(path, {"mean": mean, "std": std})
    clips, kept = run.table("clips"), runs.load_arrays(path)
    train, test = (clips[clips["split"] == part] for part in ("train", "test"))
    examples = train.groupby("client", sort=False).size().to_dict()  # by place
    grid.wait(examples=examples, enough=settings.min_replies)
    classes = tuple(sorted(clips["emotion"].unique()))
    expected = pd.crosstab(test["client"], test["emotion"]).reindex(
        index=[*examples], columns=classes, fill_value=0
    )

    def evaluate(number: int, record: ArrayRecord) -> pd.DataFrame:
        keys = [
            f"{attack}/{condition}"
            for attack in ("none", *attack_names(settings, number))
            for condition in evaluation.conditions(attack)
        ]
        config = _told(run, classes, kept["mean"], kept["std"])
        config["server-round"] = number
        content = RecordDict({"arrays": record, "config": config})
        return count_tables.predictions_from_counts(
            grid.confusions(content, expected, keys), classes
        )

    return ServerEvaluation(classes, kept["mean"], kept["std"], evaluate)

"""Clips -> clients: one speaker is one client, and every clip is for training or for testing.
Pooled, one client has them all: training as if nobody kept their recordings (centralised).

``speaker_dependent`` (the paper's, section 6.1) puts a random fifth of each speaker's clips
aside; ``speaker_independent`` puts a random fifth of the speakers aside.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedser_utils import features
from fedser_utils.config import SYNTHETIC, InputError, Settings, choose, client_name
from fedser_utils.corpora import MANIFEST, Corpus, load_corpus
from fedser_utils.seeding import rng

TEST_SHARE = 0.2
SPLITS = ("speaker_dependent", "speaker_independent")
POOLED = "pooled"


def split(clips: pd.DataFrame, *, how: str, seed: int) -> pd.Series:
    """ "train" or "test" for every row of ``clips`` (which has clip and speaker).

    speaker_dependent: ``round(0.2 n)`` random clips of each speaker's n are for testing, which
    gives the paper's 7,491 / 1,874 on DEMoS. speaker_independent: all clips of
    ``round(0.2 n)`` (at least one) random speakers of n.
    """
    choose("split", how, SPLITS)
    parts = pd.Series("train", index=clips.index)
    if how == "speaker_independent":
        speakers = sorted(clips["speaker"].unique())
        count = max(1, round(TEST_SHARE * len(speakers)))
        held = rng(seed, "split").choice(speakers, count, replace=False)
        parts[clips["speaker"].isin(held)] = "test"
        return parts
    for speaker, own in clips.sort_values("clip").groupby("speaker"):
        count = round(TEST_SHARE * len(own))
        parts[rng(seed, "split", speaker).choice(own.index, count, replace=False)] = "test"
    return parts


@dataclass(frozen=True)
class Federation:
    """A corpus shared out over clients.

    clips: the corpus's table with the columns split and client; clients: those who train, sorted;
    log_mels: (clips, 373, 64) float32, not standardised, in the table's order; mean, std: (64,)
    pooled from the clients' training clips.
    """

    corpus: Corpus
    clips: pd.DataFrame
    clients: tuple[str, ...]
    log_mels: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @property
    def classes(self) -> tuple[str, ...]:
        return self.corpus.classes

    def table(self, part: str, client: str | None = None) -> pd.DataFrame:
        """Rows of one part ("train" or "test"), of one client or of all."""
        chosen = self.clips["split"] == part
        if client is not None:
            chosen &= self.clips["client"] == client
        return self.clips[chosen]

    def validation(self, *, share: float, seed: int) -> pd.DataFrame:
        """A random share of each speaker's training clips, at least one: to tune on what is not
        for testing. Models have been trained on them."""
        train = self.clips[self.clips["split"] == "train"].sort_values("clip")
        chosen = [
            rng(seed, "validation", speaker).choice(
                own.index, max(1, round(share * len(own))), replace=False
            )
            for speaker, own in train.groupby("speaker")
        ]
        return self.clips.loc[np.sort(np.concatenate(chosen))]

    def tensors(self, table: pd.DataFrame, *, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """x: (n, 1, 373, 64) float32, standardised log-Mel; y: (n,) int64 class indices."""
        x = (self.log_mels[table.index] - self.mean) / self.std
        y = pd.Categorical(table["emotion"], categories=self.classes).codes.astype(np.int64)
        return torch.from_numpy(x[:, None]).to(device), torch.from_numpy(y).to(device)

    def sound(self, index: int, *, device: str = "cpu") -> Tensor:
        """(1, samples) at 16 kHz: the clip of one row of ``clips``, not repeated nor cut."""
        return features.sound(self.corpus.root / self.clips["path"][index], device=device)

    def listener(self, *, device: str = "cpu") -> features.StandardisedLogMel:
        """From a waveform to what ``tensors`` holds."""
        return features.StandardisedLogMel(self.mean, self.std).to(device)


def federate(
    corpus: Corpus, *, split_by: str, seed: int, cache: Path, pooled: bool = False
) -> Federation:
    """Split a corpus, extract (or find) its log-Mels, and pool the clients' statistics.

    pooled: one client with all training clips; everything else is the same.

    Raises InputError if fewer than two speakers are left to train, or nothing to test on.
    """
    clips = corpus.clips.assign(split=split(corpus.clips, how=split_by, seed=seed))
    clips["client"] = POOLED if pooled else clips["speaker"]
    train = clips[clips["split"] == "train"]
    groups = dict(sorted(train.groupby("speaker").groups.items()))
    if len(groups) < 2 or len(train) == len(clips):
        raise InputError(
            f"corpus {corpus.root.name!r} is too small for split {split_by!r}: {len(groups)} "
            f"speakers with training clips, {len(clips) - len(train)} test clips"
        )
    log_mels = features.cached_log_mels(
        corpus.root, list(clips["path"]), list(clips["digest"]), cache=cache
    )
    mean, std = features.pool(features.client_sums(log_mels[own]) for own in groups.values())
    clients = tuple(sorted(train["client"].unique()))
    return Federation(corpus, clips, clients, log_mels, mean, std)


@dataclass(frozen=True)
class Share:
    """What one client has: its own clips (with the column split) and their log-Mels."""

    corpus: Corpus
    clips: pd.DataFrame
    log_mels: np.ndarray

    @property
    def client(self) -> str:
        return self.clips["speaker"].iloc[0]

    def counts(self) -> dict[str, list[int]]:
        """emotion -> [training clips, test clips]."""
        table = pd.crosstab(self.clips["emotion"], self.clips["split"])
        return {
            emotion: [int(row.get("train", 0)), int(row.get("test", 0))]
            for emotion, row in table.iterrows()
        }

    def sums(self) -> features.Sums:
        """What it reveals for the standardisation."""
        return features.client_sums(self.log_mels[self.clips.index[self.clips["split"] == "train"]])

    def federation(
        self, classes: Sequence[str], mean: Sequence[float], std: Sequence[float]
    ) -> Federation:
        """The part of the federation that this client sees, with what the server tells it."""
        corpus = replace(self.corpus, classes=tuple(classes))
        mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        clips = self.clips.assign(client=self.client)
        return Federation(corpus, clips, (self.client,), self.log_mels, mean, std)


@functools.lru_cache(maxsize=16)
def load_share(folder: str, *, seed: int, cache: str) -> Share:
    """One client's recordings, split as ``federate`` splits each speaker's; read once per process.

    Raises InputError if they are not one speaker's, or too few for training and test.
    """
    corpus = load_corpus(folder, alone=True)
    clips = corpus.clips.assign(split=split(corpus.clips, how="speaker_dependent", seed=seed))
    if clips["split"].nunique() < 2:
        raise InputError(f"corpus {folder!r} has {len(clips)} clips; a client needs three or more")
    log_mels = features.cached_log_mels(
        corpus.root, list(clips["path"]), list(clips["digest"]), cache=Path(cache)
    )
    return Share(corpus, clips, log_mels)


def share_out(corpus: Corpus, folder: Path) -> list[Path]:
    """Give each speaker a folder of its own, ``client-00`` and so on in the speakers' order, with
    its clips and a manifest: what the clients of a deployment on one machine have. Files are
    linked where the disk allows it."""
    folders = []
    for i, (_, own) in enumerate(corpus.clips.groupby("speaker")):
        place = folder / client_name(i)
        for path in own["path"]:
            target = place / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                try:
                    os.link(corpus.root / path, target)
                except OSError:
                    shutil.copy2(corpus.root / path, target)
        own[["path", "speaker", "gender", "emotion"]].to_csv(place / MANIFEST, index=False)
        folders.append(place)
    return folders


@functools.lru_cache(maxsize=2)
def load_federation(settings: Settings) -> Federation:
    """The federation these settings describe, read, split and extracted once per process."""
    outputs = Path(settings.outputs)
    root = Path(settings.corpus)
    if settings.corpus == SYNTHETIC:
        from fedser_utils import synthetic  # here, so that a client alone starts at once

        root = synthetic.write_corpus(
            outputs, speakers=settings.speakers, clips=settings.clips, seed=0
        )
    return federate(
        load_corpus(root),
        split_by=settings.split,
        seed=settings.seed,
        cache=outputs / "cache",
        pooled=settings.clients == POOLED,
    )

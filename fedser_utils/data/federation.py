"""Clips -> clients: one speaker is one client, and every clip is for training or for testing.
Pooled, one client has them all: training as if nobody kept their recordings (centralised).

``speaker_dependent`` (the paper's, section 6.1) puts a random fifth of each speaker's clips
aside; ``speaker_independent`` puts a random fifth of the speakers aside. Other partitions
(``client_partition``) deal the same clips out to clients of a skew that is chosen.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedser_utils.core.errors import InputError, choose
from fedser_utils.core.front_end import SPEECH, FrontEnd
from fedser_utils.core.runs import DEPLOYED, Run
from fedser_utils.core.seeding import rng
from fedser_utils.core.settings import MACHINES, SYNTHETIC, Settings, client_name
from fedser_utils.data import log_mel
from fedser_utils.data.client_partition import assign_clients
from fedser_utils.data.corpora import Corpus, load_corpora, load_corpus, subsample
from fedser_utils.data.readers import COLUMNS, MANIFEST

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


Standard = tuple[np.ndarray, np.ndarray]  # mean and standard deviation per Mel band, (bands,)


@dataclass(frozen=True)
class Federation:
    """A corpus shared out over clients.

    clips: the corpus's table with the columns split and client; clients: those who train, sorted;
    log_mels: (clips, frames, bands) float32, not standardised, in the table's order; mean, std:
    (bands,) pooled from the clients' training clips. by: the column of ``clips`` (corpus, client)
    each of whose ``groups`` is standardised by its own statistics; None: all by the pooled.
    """

    corpus: Corpus
    clips: pd.DataFrame
    clients: tuple[str, ...]
    log_mels: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    by: str | None = None
    groups: Mapping[str, Standard] = field(default_factory=dict)
    front: FrontEnd = SPEECH
    level: str = "none"

    @property
    def classes(self) -> tuple[str, ...]:
        return self.corpus.classes

    def table(self, part: str, client: str | None = None) -> pd.DataFrame:
        """Rows of one part ("train" or "test"), of one client or of all."""
        chosen = self.clips["split"] == part
        if client is not None:
            chosen &= self.clips["client"] == client
        return self.clips[chosen]

    def validation_clips(self, *, share: float, seed: int) -> pd.DataFrame:
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
        """x: (n, 1, frames, bands) float32, standardised log-Mel; y: (n,) int64 class indices."""
        mean, std = self.standardisation_of(table)
        x = (torch.from_numpy(self.log_mels[table.index][:, None]) - mean) / std
        y = pd.Categorical(table["emotion"], categories=self.classes).codes.astype(np.int64)
        return x.to(device), torch.from_numpy(y).to(device)

    def standardisation_of(
        self, table: pd.DataFrame, *, device: str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """What the clips of some rows are standardised with: mean and standard deviation, float32,
        (bands,), or (n, 1, 1, bands) where groups have their own."""
        mean, std = self.mean, self.std
        if self.by is not None:
            own = [self.groups[name] for name in table[self.by]]
            mean, std = (np.stack(column)[:, None, None] for column in zip(*own, strict=True))
        return torch.from_numpy(mean).to(device), torch.from_numpy(std).to(device)

    def waveform(self, index: int, *, device: str = "cpu") -> Tensor:
        """(1, samples) at the front end's rate: the clip of one row of ``clips``, not repeated nor
        cut."""
        path = self.corpus.root / self.clips["path"][index]
        return log_mel.load_waveform(path, rate=self.front.sample_rate, device=device)

    def input_transform(self, index: int, *, device: str = "cpu") -> log_mel.StandardisedLogMel:
        """From a waveform to what ``tensors`` holds, for the clip of one row of ``clips``."""
        own = self.standardisation_of(self.clips.loc[[index]])
        mean, std = (value.reshape(-1).numpy() for value in own)
        return log_mel.StandardisedLogMel(mean, std, self.front, level=self.level).to(device)


def federate(corpus: Corpus, settings: Settings) -> Federation:
    """Split a corpus, deal it out, extract (or find) its log-Mels, and pool the statistics.

    Pooled, one client has all training clips, and everything else is the same.

    Raises InputError if fewer than two speakers are left to train, or nothing to test on, or a
    client would be left without a training clip.
    """
    clips = corpus.clips.assign(split=split(corpus.clips, how=settings.split, seed=settings.seed))
    speakers = clips.loc[clips["split"] == "train", "speaker"].nunique()
    tests = (clips["split"] == "test").sum()
    if speakers < 2 or not tests:
        raise InputError(
            f"corpus {corpus.name!r} is too small for split {settings.split!r}: {speakers} "
            f"speakers with training clips, {tests} test clips"
        )
    clips["client"] = assign_clients(
        clips, how=settings.partition, count=settings.client_count or clips["speaker"].nunique(),
        alpha=settings.skew_alpha, seed=settings.seed,
    )  # fmt: skip
    log_mels = log_mel.cached_log_mels(
        corpus.root, list(clips["path"]), list(clips["digest"]),
        cache=Path(settings.outputs) / "cache", front=settings.front_end, level=settings.level,
    )  # fmt: skip
    train = clips[clips["split"] == "train"]
    mean, std = log_mel.pool_statistics(_sums(log_mels, train, "speaker").values())
    by = None if settings.standardisation == "all" else settings.standardisation
    groups = _groups(log_mels, clips, by) if by else {}
    if settings.clients == POOLED:
        clips["own"], clips["client"] = clips["client"], POOLED
        by = "own" if by == "client" else by
    clients = tuple(sorted(clips.loc[train.index, "client"].unique()))
    return Federation(
        corpus, clips, clients, log_mels, mean, std, by, groups, settings.front_end, settings.level
    )


def _sums(log_mels: np.ndarray, clips: pd.DataFrame, by: str) -> dict[str, log_mel.Sums]:
    return {
        name: log_mel.client_sums(log_mels[own])
        for name, own in sorted(clips.groupby(by).groups.items())
    }


def _groups(log_mels: np.ndarray, clips: pd.DataFrame, by: str) -> dict[str, Standard]:
    """Each group's statistics over its training clips; over all its clips, which needs no labels,
    where it has none for training (a speaker put aside)."""
    train = clips[clips["split"] == "train"]
    aside = clips[~clips[by].isin(train[by])]
    sums = _sums(log_mels, train, by) | _sums(log_mels, aside, by)
    return {name: log_mel.pool_statistics([own]) for name, own in sums.items()}


@dataclass(frozen=True)
class ClientData:
    """What one client has: its own clips (with the column split) and their log-Mels."""

    corpus: Corpus
    clips: pd.DataFrame
    log_mels: np.ndarray
    front: FrontEnd
    level: str

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

    def sums(self) -> log_mel.Sums:
        """What it reveals for the standardisation."""
        return log_mel.client_sums(self.log_mels[self.clips.index[self.clips["split"] == "train"]])

    def federation(
        self, classes: Sequence[str], standard: tuple[Sequence[float], Sequence[float]] | None
    ) -> Federation:
        """The part of the federation that this client sees, with what the server tells it.
        standard: mean and standard deviation; None: the client's own."""
        corpus = replace(self.corpus, classes=tuple(classes))
        standard = log_mel.pool_statistics([self.sums()]) if standard is None else standard
        mean, std = (np.asarray(value, np.float32) for value in standard)
        clips, own = self.clips.assign(client=self.client), (self.client,)
        return Federation(
            corpus, clips, own, self.log_mels, mean, std, front=self.front, level=self.level
        )


@functools.lru_cache(maxsize=16)
def load_client_data(
    folder: str, *, seed: int, cache: str, front: FrontEnd = SPEECH, level: str = "none"
) -> ClientData:
    """One client's recordings, split as ``federate`` splits each speaker's; read once per process.

    Raises InputError if they are not one speaker's, or too few for training and test.
    """
    corpus = load_corpus(folder, alone=True)
    clips = corpus.clips.assign(split=split(corpus.clips, how="speaker_dependent", seed=seed))
    if clips["split"].nunique() < 2:
        raise InputError(f"corpus {folder!r} has {len(clips)} clips; a client needs three or more")
    log_mels = log_mel.cached_log_mels(
        corpus.root, list(clips["path"]), list(clips["digest"]), cache=Path(cache), front=front,
        level=level,
    )  # fmt: skip
    return ClientData(corpus, clips, log_mels, front, level)


def write_client_folders(corpus: Corpus, folder: Path) -> list[Path]:
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
        own[COLUMNS].to_csv(place / MANIFEST, index=False)
        folders.append(place)
    return folders


@functools.lru_cache(maxsize=2)
def load_federation(settings: Settings) -> Federation:
    """The federation these settings describe, read, split and extracted once per process."""
    return federate(corpus_of(settings), settings)


def federation_of(run: Run) -> Federation:
    """The federation a run was trained on. Raises InputError where its corpus is another one now:
    files have changed, or the embedded corpus has with this version of the package."""
    data, made = load_federation(run.settings), run.config["fingerprint"]
    if made not in (data.corpus.fingerprint, DEPLOYED):
        raise InputError(
            f"run {run.id} was trained on a corpus with fingerprint {made}; "
            f"{run.settings.corpus!r} has {data.corpus.fingerprint} now: train anew with 02"
        )
    return data


def corpus_of(settings: Settings) -> Corpus:
    """The corpus, or the corpora as one; an embedded one is written at its first use."""
    places = {n: _place(c, settings) for n, c in zip(settings.corpus_names, settings.corpora)}
    reader = None if settings.reader == "auto" else settings.reader
    if len(places) > 1:
        corpus = load_corpora(places, classes=settings.classes, reader=reader)
    else:
        [(name, root)] = places.items()
        corpus = load_corpus(root, reader=reader, name=name)
    most = settings.clips_per_speaker
    return subsample(corpus, most) if most else corpus


def _place(corpus: str, settings: Settings) -> Path:
    size = {"clips": settings.clips, "seed": 0}
    if corpus == SYNTHETIC:
        from fedser_utils.data import (
            synthetic_speech,  # here, so that a client alone starts at once
        )

        return synthetic_speech.write_corpus(settings.outputs, speakers=settings.speakers, **size)
    if corpus == MACHINES:
        from fedser_utils.data import synthetic_machines

        return synthetic_machines.write_corpus(settings.outputs, machines=settings.speakers, **size)
    return Path(corpus)

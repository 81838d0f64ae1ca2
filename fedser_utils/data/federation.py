"""The federation: a corpus split into training and test clips, and shared among clients.

By default each speaker is a client; ``client_partition`` has other ways, and pooled, one client
has all clips (centralised training). ``speaker_dependent`` (the paper's, section 6.1) tests on a
random fifth of each speaker's clips, ``speaker_independent`` on a random fifth of the speakers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedser_utils.core.errors import InputError, choose
from fedser_utils.core.front_end import SPEECH, FrontEnd
from fedser_utils.core.runs import DEPLOYED, Run, commit
from fedser_utils.core.seeding import rng
from fedser_utils.core.settings import MACHINES, SYNTHETIC, Settings
from fedser_utils.data import audio, log_mel
from fedser_utils.data.client_partition import assign_clients
from fedser_utils.data.corpora import Corpus, load_corpora, load_corpus, subsample

TEST_SHARE = 0.2
SPLITS = ("speaker_dependent", "speaker_independent")
POOLED = "pooled"


def split(clips: pd.DataFrame, *, how: str, seed: int) -> pd.Series:
    """Return "train" or "test" for every row of ``clips`` (clip, speaker).

    how: "speaker_dependent", ``round(0.2 n)`` random clips of each speaker's n are for testing,
    which gives the paper's 7,491 / 1,874 on DEMoS; "speaker_independent", all clips of
    ``round(0.2 n)`` (at least one) random speakers of n.
    """
    choose("split", how, SPLITS)
    parts = pd.Series("train", index=clips.index)
    if how == "speaker_independent":
        speakers = sorted(clips["speaker"].unique())
        count = max(1, round(TEST_SHARE * len(speakers)))
        tested = rng(seed, "split").choice(speakers, count, replace=False)
        parts[clips["speaker"].isin(tested)] = "test"
        return parts
    for speaker, rows in clips.sort_values("clip").groupby("speaker"):
        count = round(TEST_SHARE * len(rows))
        parts[rng(seed, "split", speaker).choice(rows.index, count, replace=False)] = "test"
    return parts


Standard = tuple[np.ndarray, np.ndarray]  # mean and standard deviation per Mel band, (bands,)


@dataclass(frozen=True)
class Federation:
    """A corpus shared among clients.

    clips: the corpus's table with the columns split and client; clients: those that train, sorted;
    log_mels: (clips, frames, bands) float32, not standardised, in the table's order; mean, std:
    (bands,) pooled from the clients' training clips; by: None, or the column of ``clips`` (corpus,
    client) whose ``groups`` are standardised by their statistics instead.
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
        """The labels, sorted."""
        return self.corpus.classes

    @property
    def origin(self) -> str:
        """Where a figure of the clips comes from: the corpus and the present commit."""
        return f"corpus {self.corpus.fingerprint}; drawn with {commit()}"

    def table(self, part: str, client: str | None = None) -> pd.DataFrame:
        """Return the clips of one part ("train" or "test"), of one client or of all."""
        chosen = self.clips["split"] == part
        if client is not None:
            chosen &= self.clips["client"] == client
        return self.clips[chosen]

    def validation_clips(self, *, share: float, seed: int) -> pd.DataFrame:
        """Return a random share of each speaker's training clips, at least one, to tune a defence
        without the test clips. (Models have been trained on them.)"""
        train = self.clips[self.clips["split"] == "train"].sort_values("clip")
        chosen = [
            rng(seed, "validation", speaker).choice(
                rows.index, max(1, round(share * len(rows))), replace=False
            )
            for speaker, rows in train.groupby("speaker")
        ]
        return self.clips.loc[np.sort(np.concatenate(chosen))]

    def tensors(self, table: pd.DataFrame, *, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Return x and y of some rows of ``clips``: (n, 1, frames, bands) float32, standardised
        log-Mel; (n,) int64 class indices."""
        mean, std = self.standardisation_of(table)
        x = (torch.from_numpy(self.log_mels[table.index][:, None]) - mean) / std
        y = pd.Categorical(table["emotion"], categories=self.classes).codes.astype(np.int64)
        return x.to(device), torch.from_numpy(y).to(device)

    def standardisation_of(
        self, table: pd.DataFrame, *, device: str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation that standardise some rows of ``clips``, float32,
        (bands,), or (n, 1, 1, bands) where groups differ."""
        mean, std = self.mean, self.std
        if self.by is not None:
            pairs = [self.groups[name] for name in table[self.by]]
            mean, std = (np.stack(column)[:, None, None] for column in zip(*pairs, strict=True))
        return torch.from_numpy(mean).to(device), torch.from_numpy(std).to(device)

    def waveform(self, index: int, *, device: str = "cpu") -> Tensor:
        """Return the waveform of one row of ``clips``, (1, samples) at the front end's rate,
        neither repeated nor cut."""
        path = self.corpus.root / self.clips["path"][index]
        return log_mel.load_waveform(path, rate=self.front.sample_rate, device=device)

    def waveforms(self) -> Iterator[np.ndarray]:
        """Yield every clip's waveform, (samples,) at 16 kHz, reading one at a time."""
        for path in self.clips["path"]:
            yield audio.read(self.corpus.root / path).waveform

    def examples(self, classes: int = 3) -> pd.DataFrame:
        """Return the first training clip of each of the first ``classes`` classes."""
        return self.table("train").groupby("emotion").head(1).head(classes)

    def input_transform(self, index: int, *, device: str = "cpu") -> log_mel.StandardisedLogMel:
        """Return the transform from waveforms to the model's input for one row of ``clips``."""
        statistics = self.standardisation_of(self.clips.loc[[index]])
        mean, std = (value.reshape(-1).numpy() for value in statistics)
        return log_mel.StandardisedLogMel(mean, std, self.front, level=self.level).to(device)


def federate(corpus: Corpus, settings: Settings) -> Federation:
    """Return the corpus as a federation: split, assigned to clients, with log-Mels and statistics.

    Pooled, one client has all training clips, and everything else is the same.

    Raises InputError if fewer than two speakers train, or there is no test clip, or a client has
    no training clip.
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
        name: log_mel.client_sums(log_mels[rows])
        for name, rows in sorted(clips.groupby(by).groups.items())
    }


def _groups(log_mels: np.ndarray, clips: pd.DataFrame, by: str) -> dict[str, Standard]:
    """Each group's statistics over its training clips; of a group without any (a test speaker)
    over all its clips, which needs no labels."""
    train = clips[clips["split"] == "train"]
    others = clips[~clips[by].isin(train[by])]
    sums = _sums(log_mels, train, by) | _sums(log_mels, others, by)
    return {name: log_mel.pool_statistics([group]) for name, group in sums.items()}


@functools.lru_cache(maxsize=2)
def load_federation(settings: Settings) -> Federation:
    """Return the federation that the settings describe; read once per process."""
    return federate(corpus_of(settings), settings)


def federation_of(run: Run) -> Federation:
    """Return the federation that a run was trained on. Raises InputError where its corpus has
    changed since: its files, or the embedded corpus with this version of the package."""
    data, trained_on = load_federation(run.settings), run.config["fingerprint"]
    if trained_on not in (data.corpus.fingerprint, DEPLOYED):
        raise InputError(
            f"run {run.id} was trained on a corpus with fingerprint {trained_on}; "
            f"{run.settings.corpus!r} has {data.corpus.fingerprint} now: train anew with 02"
        )
    return data


def corpus_of(settings: Settings) -> Corpus:
    """Return the settings' corpus, or several as one; embedded ones are written on first use."""
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
        from fedser_utils.data import synthetic_speech  # here, so that a client starts at once

        return synthetic_speech.write_corpus(settings.outputs, speakers=settings.speakers, **size)
    if corpus == MACHINES:
        from fedser_utils.data import synthetic_machines

        return synthetic_machines.write_corpus(settings.outputs, machines=settings.speakers, **size)
    return Path(corpus)

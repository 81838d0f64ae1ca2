"""One client's recordings, their log-Mel images, and what the client reveals of them.

In a deployment each client loads its folder alone.
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

from fedser_utils.core.errors import InputError
from fedser_utils.core.front_end import SPEECH, FrontEnd
from fedser_utils.core.settings import client_name
from fedser_utils.data import log_mel
from fedser_utils.data.corpora import Corpus, load_corpus
from fedser_utils.data.federation import Federation, split
from fedser_utils.data.readers import COLUMNS, MANIFEST


@dataclass(frozen=True)
class ClientData:
    """A client's clips (with the column split) and their log-Mels, (clips, frames, bands)."""

    corpus: Corpus
    clips: pd.DataFrame
    log_mels: np.ndarray
    front: FrontEnd
    level: str

    @property
    def client(self) -> str:
        """The client's name, which is its speaker's."""
        return self.clips["speaker"].iloc[0]

    def counts(self) -> dict[str, list[int]]:
        """Return emotion -> [number of training clips, of test clips]."""
        table = pd.crosstab(self.clips["emotion"], self.clips["split"])
        return {
            emotion: [int(row.get("train", 0)), int(row.get("test", 0))]
            for emotion, row in table.iterrows()
        }

    def sums(self) -> log_mel.Sums:
        """Return what the client reveals for the standardisation."""
        return log_mel.client_sums(self.log_mels[self.clips.index[self.clips["split"] == "train"]])

    def federation(
        self, classes: Sequence[str], standard: tuple[Sequence[float], Sequence[float]] | None
    ) -> Federation:
        """Return the federation as this client knows it: with itself as the only client.

        classes, standard (mean and standard deviation, (bands,) each): from the server; standard
        None: of the client's training clips.
        """
        corpus = replace(self.corpus, classes=tuple(classes))
        standard = log_mel.pool_statistics([self.sums()]) if standard is None else standard
        mean, std = (np.asarray(value, np.float32) for value in standard)
        clips = self.clips.assign(client=self.client)
        return Federation(
            corpus, clips, (self.client,), self.log_mels, mean, std,
            front=self.front, level=self.level,
        )  # fmt: skip


@functools.lru_cache(maxsize=16)
def load_client_data(
    folder: str, *, seed: int, cache: str, front: FrontEnd = SPEECH, level: str = "none"
) -> ClientData:
    """Return a client's data, split as ``federate`` splits each speaker's; read once per process.

    folder: of its recordings; cache: folder of log-Mel caches. Raises InputError if the clips are
    not one speaker's, or too few for training and test.
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
    """Write a folder with clips and a manifest for each speaker, and return the folders.

    They are called ``client-00`` and so on in the speakers' order, for the clients of a deployment
    on one machine. Files are linked where the disk allows it.
    """
    folders = []
    for i, (_, clips) in enumerate(corpus.clips.groupby("speaker")):
        place = folder / client_name(i)
        for path in clips["path"]:
            target = place / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():
                try:
                    os.link(corpus.root / path, target)
                except OSError:
                    shutil.copy2(corpus.root / path, target)
        clips[COLUMNS].to_csv(place / MANIFEST, index=False)
        folders.append(place)
    return folders

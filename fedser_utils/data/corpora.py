"""Corpora: one table of clips from a folder of recordings, a manifest, or several of them.

Every file that cannot be used is in ``Corpus.rejected`` with its reason. Several corpora are
joined under one vocabulary of classes.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from fedser_utils.core.errors import InputError
from fedser_utils.core.seeding import rng
from fedser_utils.data import audio
from fedser_utils.data.readers import (
    FOLDERS,
    MANIFEST,
    audio_files,
    read_manifest,
    read_names,
    recognise,
)

log = logging.getLogger(__name__)

# several corpora's names for one emotion
VOCABULARY = {"joy": "happiness", "happy": "happiness", "surprised": "surprise", "angry": "anger"}
VOCABULARY |= {"sad": "sadness", "fearful": "fear", "disgusted": "disgust"}
AMBIGUOUS = ("boredom", "calm")  # neutral in some corpora, absent in others


@dataclass(frozen=True)
class Corpus:
    """A corpus. clips: a row per usable clip (clip, path, speaker, gender, emotion, corpus,
    language, seconds, digest, rate), sorted by clip, paths relative to the root; emotion is the
    label, also of machines; classes: the labels, sorted; rejected: clip and reason of every other
    audio file; reader: the name of the reader of its file names."""

    root: Path
    reader: str
    clips: pd.DataFrame
    classes: tuple[str, ...]
    rejected: pd.DataFrame

    @property
    def name(self) -> str:
        """The names of the corpora in it, joined by " + "."""
        return " + ".join(sorted(self.clips["corpus"].unique()))

    @property
    def fingerprint(self) -> str:
        """Hex digest of all clips' bytes, speakers and labels."""
        rows = self.clips[["digest", "speaker", "emotion"]].astype(str).agg(" ".join, axis=1)
        return hashlib.blake2b("\n".join(rows).encode(), digest_size=8).hexdigest()


def load_corpus(
    root: str | Path, *, reader: str | None = None, alone: bool = False, name: str | None = None
) -> Corpus:
    """Return a corpus, with every file decoded and checked.

    root: a folder of WAV, FLAC or MP3 files in any sub-folders, a folder with a ``manifest.csv``,
    or a CSV file with a column path (relative to it), a column of ``CLIENT``, one of ``LABEL`` (or
    one other column, which is the label then), and perhaps gender, corpus and language.
    reader: a name from ``READERS``, "manifest" or "folders"; None: recognised by file names.
    alone: it belongs to one client: one speaker, any classes. name: None: the folder's.

    Raises InputError for no clips, a single speaker (alone: several), a class with a single clip,
    an unknown reader, or a manifest that lacks a column.
    """
    corpus = _read(Path(root), reader, name)
    _check(corpus, repr(str(root)), alone=alone)
    _report(corpus)
    return corpus


def load_corpora(
    places: Mapping[str, Path], *, classes: str = "shared", reader: str | None = None
) -> Corpus:
    """Return several corpora as one. places: name -> a root as ``load_corpus`` takes it.

    Clips and speakers are prefixed by their corpus's name, labels translated by ``VOCABULARY``.
    classes: "shared": those that every corpus has, without ``AMBIGUOUS`` ones; "all": any. Clips
    of other classes are rejected.

    Raises InputError for fewer than two classes, naming each corpus's, and as ``load_corpus``.
    """
    read = {name: _prefixed(_read(root, reader, name), name) for name, root in places.items()}
    for name, corpus in read.items():
        _check(corpus, repr(str(places[name])), part=True)
    base = Path(os.path.commonpath([corpus.root for corpus in read.values()]))
    tables = [
        corpus.clips.assign(path=[(corpus.root.relative_to(base) / p).as_posix() for p in paths])
        for corpus, paths in ((corpus, corpus.clips["path"]) for corpus in read.values())
    ]
    labels = {name: set(corpus.clips["emotion"]) for name, corpus in read.items()}
    used = set.union(*labels.values())
    if classes == "shared":
        used = set.intersection(*labels.values()) - {*AMBIGUOUS}
    if len(used) < 2:
        listed = "; ".join(f"{name} has {', '.join(sorted(has))}" for name, has in labels.items())
        raise InputError(
            f"corpora {', '.join(places)} share {len(used)} classes, not two or more: {listed}"
        )
    table = pd.concat(tables, ignore_index=True)
    out = ~table["emotion"].isin(used)
    reasons = table.loc[out, "emotion"].map(_left_out)
    rejected = [corpus.rejected for corpus in read.values()]
    rejected.append(pd.DataFrame({"clip": table.loc[out, "clip"], "reason": reasons}))
    joined = Corpus(
        root=base,
        reader="+".join(corpus.reader for corpus in read.values()),
        clips=table[~out].sort_values("clip", ignore_index=True),
        classes=tuple(sorted(used)),
        rejected=pd.concat(rejected).sort_values("clip", ignore_index=True),
    )
    _check(joined, joined.name)
    _report(joined)
    return joined


def _left_out(label: str) -> str:
    why = "is left out where corpora are joined" if label in AMBIGUOUS else "is not of all corpora"
    return f"class {label} {why}"


def _prefixed(corpus: Corpus, name: str) -> Corpus:
    clips = corpus.clips
    clips = clips.assign(
        clip=name + "/" + clips["clip"],
        speaker=name + "-" + clips["speaker"],
        emotion=clips["emotion"].str.lower().replace(VOCABULARY),
    )
    rejected = corpus.rejected.assign(clip=name + "/" + corpus.rejected["clip"])
    return replace(corpus, clips=clips, rejected=rejected)


def subsample(corpus: Corpus, most: int) -> Corpus:
    """Return the corpus with at most ``most`` random clips of each speaker, as evenly from its
    classes as possible."""
    shuffled = corpus.clips.sample(frac=1, random_state=rng(0, "thinned"))
    turn = shuffled.groupby(["speaker", "emotion"]).cumcount()
    order = shuffled.assign(turn=turn).sort_values(["speaker", "turn"], kind="stable")
    chosen = order.groupby("speaker").head(most).index.sort_values()
    return replace(corpus, clips=corpus.clips.loc[chosen].reset_index(drop=True))


def _read(root: Path, reader: str | None, name: str | None) -> Corpus:
    if not root.exists():
        raise InputError(f"corpus {str(root)!r} does not exist; give a folder or a CSV manifest")
    manifest = root if root.is_file() else root / MANIFEST
    if reader in (None, FOLDERS) and manifest.is_file():
        reader = "manifest"
    if reader == "manifest":
        table, rejected = read_manifest(manifest)
        base = manifest.parent
    else:
        base = root
        names = audio_files(root)
        if reader in (None, FOLDERS):
            reader = recognise(names, root, otherwise=reader)
        table, rejected = read_names(names, reader=reader)
    name = name or (root.stem if root.is_file() else root.name)
    table = table.assign(corpus=table["corpus"].fillna(name), language=table["language"].fillna(""))
    table, unusable = _decode(table, base)
    rejected = pd.concat([rejected, unusable]).sort_values("clip", ignore_index=True)
    return Corpus(base, reader, table, tuple(sorted(table["emotion"].unique())), rejected)


def _decode(table: pd.DataFrame, base: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The usable clips with seconds, digest and rate (Hz), and clip and reason of the others."""

    def inspect(name: str) -> tuple[float | None, str, int]:
        try:
            clip = audio.read(base / name)
        except audio.BadClipError as error:
            return None, str(error), 0
        return clip.seconds, clip.digest, clip.rate

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(inspect, table["path"])
        checked = list(tqdm(results, "checking clips", len(table), unit="clip", leave=False))
    table = table.assign(
        seconds=pd.Series([seconds for seconds, _, _ in checked], dtype=float),
        digest=[text for _, text, _ in checked],
        rate=[rate for _, _, rate in checked],
    )
    bad = table["seconds"].isna()
    rejected = table.loc[bad, ["clip", "digest"]].rename(columns={"digest": "reason"})
    return table[~bad].sort_values("clip", ignore_index=True), rejected


def _check(corpus: Corpus, where: str, *, alone: bool = False, part: bool = False) -> None:
    """Raise InputError where no experiment is possible. alone: the clips of one client; part: one
    of several corpora to be joined."""
    table, rejected, where = corpus.clips, corpus.rejected, f"corpus {where}"
    if table.empty:
        first = f", the first: {rejected['reason'].iloc[0]}" if len(rejected) else ""
        raise InputError(f"{where} has no usable clip ({len(rejected)} rejected{first})")
    speakers, emotions = table["speaker"].unique(), table["emotion"].value_counts()
    if alone and len(speakers) > 1:
        raise InputError(f"{where} has speakers {', '.join(speakers)}; a client has one")
    if alone or part:
        return
    if len(speakers) < 2:
        raise InputError(f"{where} has one speaker ({speakers[0]}); a federation needs two or more")
    if len(emotions) < 2:
        raise InputError(f"{where} has one class ({emotions.index[0]}); two or more are needed")
    if emotions.min() < 2:
        single = ", ".join(sorted(emotions.index[emotions < 2]))
        raise InputError(f"{where}: class {single} has one clip; training and test need one each")


def _report(corpus: Corpus) -> None:
    """Log the corpus's size, and warn of rejected clips, twins, several rates, missing classes."""
    table, rejected = corpus.clips, corpus.rejected
    log.info(
        "%s: %d clips, %d speakers, %d classes, reader %s",
        corpus.name, len(table), table["speaker"].nunique(), table["emotion"].nunique(),
        corpus.reader,
    )  # fmt: skip
    for reason, count in rejected["reason"].str.split(":").str[0].value_counts().items():
        log.warning("%d clips rejected: %s", count, reason)
    twins = table[table.duplicated("digest", keep=False)]
    if len(twins):
        first = twins.loc[twins["digest"] == twins["digest"].iloc[0], "clip"]
        log.warning("%d clips have a byte-identical twin: %s", len(twins), ", ".join(first))
    if len(set(table["rate"])) > 1:
        counts = table["rate"].value_counts().sort_index(ascending=False)
        listed = ", ".join(f"{count} of {rate} Hz" for rate, count in counts.items())
        log.warning("recordings of several rates, the lower ones lack high bands: %s", listed)
    lacking = pd.crosstab(table["speaker"], table["emotion"]) == 0
    if lacking.any(axis=None):
        by_speaker = lacking[lacking.any(axis=1)]
        speaker, row = next(by_speaker.iterrows())
        count = "1 speaker has" if len(by_speaker) == 1 else f"{len(by_speaker)} speakers have"
        first = ", ".join(row.index[row])
        log.warning("%s no clip of some class, such as %s: %s", count, speaker, first)

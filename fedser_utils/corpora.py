"""A folder of recordings -> one tidy table of clips.

A reader is a file-name pattern and the meaning of its parts; it is recognised by the names or
asked for by name. Whatever does not fit is listed with its reason in ``Corpus.rejected``, never
guessed and never dropped in silence.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from fedser_utils import audio
from fedser_utils.config import InputError, choose

log = logging.getLogger(__name__)

MANIFEST = "manifest.csv"
COLUMNS = ["path", "speaker", "gender", "emotion"]


@dataclass(frozen=True)
class Reader:
    """A corpus's file-name pattern. Its groups: ``speaker``, ``emotion``, perhaps ``gender``.

    emotions maps codes to English names; None there leaves the clip out, with ``left_out`` as
    the reason. gender: speaker's code -> "f" or "m", where the name does not say it.
    """

    name: str
    pattern: str
    emotions: dict[str, str | None]
    left_out: str = ""
    gender: Callable[[str], str | None] = lambda speaker: None

    def parse(self, stem: str) -> dict[str, str | None] | None:
        """speaker, gender and emotion of a file name without its ending; None if it has another
        pattern. The emotion is None when the corpus's protocol leaves the clip out."""
        match = re.fullmatch(self.pattern, stem)
        if match is None:
            return None
        parts = match.groupdict()
        return {
            "speaker": parts["speaker"],
            "gender": parts.get("gender") or self.gender(parts["speaker"]),
            "emotion": self.emotions[parts["emotion"]],
        }


_ITALIAN = {"dis": "disgust", "gio": "happiness", "pau": "fear", "rab": "anger"}
_ITALIAN |= {"sor": "surprise", "tri": "sadness"}
_EMODB_MEN = {"03", "10", "11", "12", "15"}
_RAVDESS = ("neutral", "calm", "happiness", "sadness", "anger", "fear", "disgust", "surprise")
_CREMAD = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happiness"}
_CREMAD |= {"NEU": "neutral", "SAD": "sadness"}

READERS = {
    reader.name: reader
    for reader in (
        Reader(
            "demos",
            r"(?:(?:NP|PR)_)?(?P<gender>[fm])_(?P<speaker>\d\d)"
            r"_(?P<emotion>col|dis|gio|neu|pau|rab|sor|tri)\d\d[abc]?",
            _ITALIAN | {"col": "guilt", "neu": None},
            left_out="neutral is a minority class and left out (paper, section 6.1)",
        ),
        Reader(
            "emovo",
            r"(?P<emotion>dis|gio|neu|pau|rab|sor|tri)-(?P<speaker>(?P<gender>[fm])\d)-[a-z]\d",
            _ITALIAN | {"neu": "neutral"},
        ),
        Reader(
            "emodb",
            r"(?P<speaker>\d\d)[ab]\d\d(?P<emotion>[WLEAFTN])[a-z]?",
            {"W": "anger", "L": "boredom", "E": "disgust", "A": "fear"}
            | {"F": "happiness", "T": "sadness", "N": "neutral"},
            gender=lambda speaker: "m" if speaker in _EMODB_MEN else "f",
        ),
        Reader(
            "ravdess",
            r"03-(?P<emotion>0[12]-0[1-8])-0[12]-0[12]-0[12]-(?P<speaker>\d\d)",
            {f"01-{i:02d}": name for i, name in enumerate(_RAVDESS, 1)}
            | {f"02-{i:02d}": None for i in range(1, 9)},
            left_out="song, not speech",
            gender=lambda speaker: "m" if int(speaker) % 2 else "f",
        ),
        Reader(
            "cremad",
            r"(?P<speaker>1\d{3})_[A-Z]{3}_(?P<emotion>ANG|DIS|FEA|HAP|NEU|SAD)_(?:LO|MD|HI|XX|X)",
            _CREMAD,
        ),
        Reader(
            "nemo",
            r"(?P<speaker>[A-Z]{2}\d)_(?P<emotion>anger|fear|happiness|neutral|sadness|surprised?)_\d+",
            {e: e for e in ("anger", "fear", "happiness", "neutral", "sadness", "surprise")}
            | {"surprised": "surprise"},
        ),
    )
}


@dataclass(frozen=True)
class Corpus:
    """clips: one row per usable clip (clip, path, speaker, gender, emotion, seconds, digest),
    sorted by clip, the path below the root; classes: the emotions, sorted; rejected: clip and
    reason of every other audio file; reader: whose pattern the names have."""

    root: Path
    reader: str
    clips: pd.DataFrame
    classes: tuple[str, ...]
    rejected: pd.DataFrame

    @property
    def fingerprint(self) -> str:
        """Hex digest of every clip's bytes and label: equal corpora, equal fingerprints."""
        rows = self.clips[["digest", "speaker", "emotion"]].astype(str).agg(" ".join, axis=1)
        return hashlib.blake2b("\n".join(rows).encode(), digest_size=8).hexdigest()


def load_corpus(root: str | Path, *, reader: str | None = None, alone: bool = False) -> Corpus:
    """Read a corpus: every file is named, decoded and checked once.

    root: a folder of WAV, FLAC or MP3 files in any sub-folders, a folder with a ``manifest.csv``,
    or a CSV file with the columns path (relative to it), speaker, emotion and perhaps gender.
    reader: a name from ``READERS`` or "manifest"; None recognises it. alone: it is the share of
    one client: one speaker, and whatever classes.

    Raises InputError for no clips, a single speaker (alone: several), a class with a single clip,
    an unknown reader, or a manifest that lacks a column.
    """
    root = Path(root)
    if not root.exists():
        raise InputError(f"corpus {str(root)!r} does not exist; give a folder or a CSV manifest")
    manifest = root if root.is_file() else root / MANIFEST
    if reader is None and manifest.is_file():
        reader = "manifest"
    if reader == "manifest":
        table, rejected = read_manifest(manifest)
        base = manifest.parent
    else:
        base = root
        names = audio_files(root)
        reader = reader or recognise(names, root)
        table, rejected = read_names(names, reader=reader)
    table, unusable = _decode(table, base)
    rejected = pd.concat([rejected, unusable], ignore_index=True).sort_values("clip")
    classes = _check(table, root, rejected, alone=alone)
    _report(table, rejected, root, reader)
    return Corpus(base, reader, table, classes, rejected.reset_index(drop=True))


def audio_files(root: Path) -> list[str]:
    """Paths of the audio files below ``root``, relative, with forward slashes, sorted."""
    found = (p for p in root.rglob("*") if p.suffix.lower() in audio.EXTENSIONS and p.is_file())
    return sorted(p.relative_to(root).as_posix() for p in found)


def recognise(names: Iterable[str], root: str | Path = "") -> str:
    """The reader whose pattern most of the names have. Raises InputError if none has any."""
    stems = [Path(name).stem for name in names]
    counts = {key: sum(r.parse(s) is not None for s in stems) for key, r in READERS.items()}
    best = max(counts, key=counts.get)
    if not stems:
        raise InputError(f"corpus {str(root)!r} holds no {', '.join(audio.EXTENSIONS)} file")
    if not counts[best]:
        raise InputError(
            f"corpus {str(root)!r}: no file name (such as {stems[0]!r}) has the pattern of "
            f"{', '.join(READERS)}; describe it in a {MANIFEST} with path, speaker, emotion"
        )
    return best


def read_names(names: Iterable[str], *, reader: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """File names -> (clips: clip, path, speaker, gender, emotion; rejected: clip, reason)."""
    parser = READERS[choose("reader", reader, [*READERS, "manifest"])]
    rows, rejected = [], []
    for name in names:
        parts = parser.parse(Path(name).stem)
        if parts is None:
            rejected.append((name, f"the name does not have the pattern of {reader}"))
        elif parts["emotion"] is None:
            rejected.append((name, parser.left_out))
        else:
            rows.append({"clip": name, "path": name} | parts)
    clips = pd.DataFrame(rows, columns=["clip", *COLUMNS])
    return clips, pd.DataFrame(rejected, columns=["clip", "reason"])


def read_manifest(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A CSV of path, speaker, emotion (gender optional) -> the tables of ``read_names``."""
    if not path.is_file():
        raise InputError(f"manifest {str(path)!r} does not exist")
    try:
        table = pd.read_csv(path, dtype=str, skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"manifest {str(path)!r} is not a CSV table: {error}") from error
    table.columns = table.columns.str.strip().str.lower()
    missing = [c for c in COLUMNS if c not in table.columns and c != "gender"]
    if missing:
        raise InputError(
            f"manifest {str(path)!r} has no column {', '.join(missing)}; it needs path, speaker, "
            f"emotion (gender optional), and has {', '.join(table.columns)}"
        )
    table = table.reindex(columns=COLUMNS).astype("string").apply(lambda column: column.str.strip())
    table.insert(0, "clip", table["path"])
    incomplete = table[["path", "speaker", "emotion"]].replace("", None).isna().any(axis=1)
    again = table.duplicated("path") & ~incomplete
    bad = incomplete | again
    reason = again.map({True: "listed twice", False: "path, speaker or emotion is missing"})[bad]
    rejected = pd.DataFrame({"clip": table["clip"].fillna("")[bad], "reason": reason})
    return table[~bad].reset_index(drop=True), rejected


def _decode(table: pd.DataFrame, base: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decode every clip: adds seconds and digest; the unusable ones go to the second table."""

    def inspect(name: str) -> tuple[float | None, str]:
        try:
            clip = audio.read(base / name)
        except audio.BadClipError as error:
            return None, str(error)
        return clip.seconds, clip.digest

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(inspect, table["path"])
        checked = list(tqdm(found, "checking clips", len(table), unit="clip", leave=False))
    table = table.assign(
        seconds=pd.Series([seconds for seconds, _ in checked], dtype=float),
        digest=[text for _, text in checked],
    )
    bad = table["seconds"].isna()
    rejected = table.loc[bad, ["clip", "digest"]].rename(columns={"digest": "reason"})
    return table[~bad].sort_values("clip", ignore_index=True), rejected


def _check(
    table: pd.DataFrame, root: Path, rejected: pd.DataFrame, *, alone: bool
) -> tuple[str, ...]:
    """The classes, sorted. Raises InputError where no experiment is possible."""
    where = f"corpus {str(root)!r}"
    if table.empty:
        first = f", the first: {rejected['reason'].iloc[0]}" if len(rejected) else ""
        raise InputError(f"{where} has no usable clip ({len(rejected)} rejected{first})")
    speakers, emotions = table["speaker"].unique(), table["emotion"].value_counts()
    if alone:
        if len(speakers) > 1:
            raise InputError(f"{where} has speakers {', '.join(speakers)}; a client has one")
        return tuple(sorted(emotions.index))
    if len(speakers) < 2:
        raise InputError(f"{where} has one speaker ({speakers[0]}); a federation needs two or more")
    if len(emotions) < 2:
        raise InputError(f"{where} has one class ({emotions.index[0]}); two or more are needed")
    if emotions.min() < 2:
        single = ", ".join(sorted(emotions.index[emotions < 2]))
        raise InputError(f"{where}: class {single} has one clip; training and test need one each")
    return tuple(sorted(emotions.index))


def _report(table: pd.DataFrame, rejected: pd.DataFrame, root: Path, reader: str) -> None:
    log.info(
        "%s: %d clips, %d speakers, %d classes, reader %s",
        root.name, len(table), table["speaker"].nunique(), table["emotion"].nunique(), reader,
    )  # fmt: skip
    for reason, count in rejected["reason"].str.split(":").str[0].value_counts().items():
        log.warning("%d clips rejected: %s", count, reason)
    twins = table[table.duplicated("digest", keep=False)]
    if len(twins):
        first = twins.loc[twins["digest"] == twins["digest"].iloc[0], "clip"]
        log.warning("%d clips have a byte-identical twin: %s", len(twins), ", ".join(first))

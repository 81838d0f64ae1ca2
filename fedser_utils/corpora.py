"""A folder of recordings, or several -> one tidy table of clips.

A reader is a file-name pattern and the meaning of its parts; it is recognised by the names or
asked for by name. Whatever does not fit is listed with its reason in ``Corpus.rejected``, never
guessed and never dropped in silence. Several corpora are joined under one vocabulary.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from fedser_utils import audio
from fedser_utils.config import InputError, choose
from fedser_utils.seeding import rng

log = logging.getLogger(__name__)

MANIFEST = "manifest.csv"
COLUMNS = ["path", "speaker", "gender", "emotion", "corpus", "language"]
CLIENT = ("speaker", "client", "machine")  # what a manifest may call its column of clients
LABEL = ("emotion", "label", "class")  # and of labels; if it has none of these, its only other one
FOLDERS = "folders"  # the reader of .../client/class/file
# several corpora's names for one emotion
VOCABULARY = {"joy": "happiness", "happy": "happiness", "surprised": "surprise", "angry": "anger"}
VOCABULARY |= {"sad": "sadness", "fearful": "fear", "disgusted": "disgust"}
UNSHARED = ("boredom", "calm")  # some corpora take them for neutral, others do not know them


@dataclass(frozen=True)
class Reader:
    """A corpus's file-name pattern. Its groups: ``speaker``, ``emotion``, perhaps ``gender``.

    emotions maps codes to English names; None there leaves the clip out, with ``left_out`` as
    the reason. gender: speaker's code -> "f" or "m", where the name does not say it; language: of
    all its clips.
    """

    name: str
    pattern: str
    emotions: dict[str, str | None]
    language: str = ""
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
            "Italian",
            left_out="neutral is a minority class and left out (paper, section 6.1)",
        ),
        Reader(
            "emovo",
            r"(?P<emotion>dis|gio|neu|pau|rab|sor|tri)-(?P<speaker>(?P<gender>[fm])\d)-[a-z]\d",
            _ITALIAN | {"neu": "neutral"},
            "Italian",
        ),
        Reader(
            "emodb",
            r"(?P<speaker>\d\d)[ab]\d\d(?P<emotion>[WLEAFTN])[a-z]?",
            {"W": "anger", "L": "boredom", "E": "disgust", "A": "fear"}
            | {"F": "happiness", "T": "sadness", "N": "neutral"},
            "German",
            gender=lambda speaker: "m" if speaker in _EMODB_MEN else "f",
        ),
        Reader(
            "ravdess",
            r"03-(?P<emotion>0[12]-0[1-8])-0[12]-0[12]-0[12]-(?P<speaker>\d\d)",
            {f"01-{i:02d}": name for i, name in enumerate(_RAVDESS, 1)}
            | {f"02-{i:02d}": None for i in range(1, 9)},
            "English",
            left_out="song, not speech",
            gender=lambda speaker: "m" if int(speaker) % 2 else "f",
        ),
        Reader(
            "cremad",
            r"(?P<speaker>1\d{3})_[A-Z]{3}_(?P<emotion>ANG|DIS|FEA|HAP|NEU|SAD)_(?:LO|MD|HI|XX|X)",
            _CREMAD,
            "English",
        ),
        Reader(
            "nemo",
            r"(?P<speaker>[A-Z]{2}\d)_(?P<emotion>anger|fear|happiness|neutral|sadness|surprised?)_\d+",
            {e: e for e in ("anger", "fear", "happiness", "neutral", "sadness", "surprise")}
            | {"surprised": "surprise"},
            "Polish",
        ),
    )
}


@dataclass(frozen=True)
class Corpus:
    """clips: one row per usable clip (clip, path, speaker, gender, emotion, corpus, language,
    seconds, digest), sorted by clip, the path below the root; emotion is the label, of whatever
    kind; classes: the labels, sorted; rejected: clip and reason of every other audio file; reader:
    whose pattern the names have."""

    root: Path
    reader: str
    clips: pd.DataFrame
    classes: tuple[str, ...]
    rejected: pd.DataFrame

    @property
    def name(self) -> str:
        return " + ".join(sorted(self.clips["corpus"].unique()))

    @property
    def fingerprint(self) -> str:
        """Hex digest of every clip's bytes and label: equal corpora, equal fingerprints."""
        rows = self.clips[["digest", "speaker", "emotion"]].astype(str).agg(" ".join, axis=1)
        return hashlib.blake2b("\n".join(rows).encode(), digest_size=8).hexdigest()


def load_corpus(
    root: str | Path, *, reader: str | None = None, alone: bool = False, name: str | None = None
) -> Corpus:
    """Read a corpus: every file is named, decoded and checked once.

    root: a folder of WAV, FLAC or MP3 files in any sub-folders, a folder with a ``manifest.csv``,
    or a CSV file with a column path (relative to it), a column of ``CLIENT``, one of ``LABEL`` (or
    one other column, which is the label then), and perhaps gender, corpus and language.
    reader: a name from ``READERS``, "manifest" or "folders"; None recognises it. alone: it is the
    share of one client: one speaker, and whatever classes. name: None: the folder's.

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
    """Read several corpora as one. places: name -> as ``load_corpus``'s root.

    Clips and speakers are prefixed by their corpus's name, labels are brought under one
    ``VOCABULARY``. classes: "shared": those that every corpus has, but for ``UNSHARED``; "all":
    any. A clip of another class is among the rejected.

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
    own = {name: set(corpus.clips["emotion"]) for name, corpus in read.items()}
    kept = set.union(*own.values())
    if classes == "shared":
        kept = set.intersection(*own.values()) - {*UNSHARED}
    if len(kept) < 2:
        listed = "; ".join(f"{name} has {', '.join(sorted(has))}" for name, has in own.items())
        raise InputError(
            f"corpora {', '.join(places)} share {len(kept)} classes, not two or more: {listed}"
        )
    table = pd.concat(tables, ignore_index=True)
    out = ~table["emotion"].isin(kept)
    reasons = table.loc[out, "emotion"].map(_left_out)
    rejected = [corpus.rejected for corpus in read.values()]
    rejected.append(pd.DataFrame({"clip": table.loc[out, "clip"], "reason": reasons}))
    joined = Corpus(
        root=base,
        reader="+".join(corpus.reader for corpus in read.values()),
        clips=table[~out].sort_values("clip", ignore_index=True),
        classes=tuple(sorted(kept)),
        rejected=pd.concat(rejected).sort_values("clip", ignore_index=True),
    )
    _check(joined, joined.name)
    _report(joined)
    return joined


def _left_out(label: str) -> str:
    why = "is left out where corpora are joined" if label in UNSHARED else "is not of all corpora"
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


def thinned(corpus: Corpus, most: int) -> Corpus:
    """At most ``most`` clips of each speaker, at random, as evenly from its classes as that
    allows; the others are neither used nor among the rejected."""
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


def audio_files(root: Path) -> list[str]:
    """Paths of the audio files below ``root``, relative, with forward slashes, sorted."""
    found = (p for p in root.rglob("*") if p.suffix.lower() in audio.EXTENSIONS and p.is_file())
    return sorted(p.relative_to(root).as_posix() for p in found)


def recognise(names: Iterable[str], root: str | Path = "", *, otherwise: str | None = None) -> str:
    """The reader whose pattern most of the names have; ``otherwise``, if it is given, where none
    has any. Raises InputError if there is none to take."""
    stems = [Path(name).stem for name in names]
    counts = {key: sum(r.parse(s) is not None for s in stems) for key, r in READERS.items()}
    best = max(counts, key=counts.get)
    if not stems:
        raise InputError(f"corpus {str(root)!r} holds no {', '.join(audio.EXTENSIONS)} file")
    if counts[best]:
        return best
    if otherwise:
        return otherwise
    raise InputError(
        f"corpus {str(root)!r}: no file name (such as {stems[0]!r}) has the pattern of "
        f"{', '.join(READERS)}; describe it in a {MANIFEST} with path, speaker, emotion (or "
        f"client, label), or, if the files lie in .../client/class/, give reader {FOLDERS}"
    )


def read_names(names: Iterable[str], *, reader: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """File names -> (clips: clip and ``COLUMNS``; rejected: clip, reason)."""
    choose("reader", reader, [*READERS, "manifest", FOLDERS])
    parser = READERS.get(reader)
    rows, rejected = [], []
    for name in names:
        parts = parser.parse(Path(name).stem) if parser else _by_folders(name)
        if parts is None:
            rejected.append((name, f"the name does not have the pattern of {reader}"))
        elif parts["emotion"] is None:
            rejected.append((name, parser.left_out))
        else:
            own = {"corpus": None, "language": parser.language if parser else None}
            rows.append({"clip": name, "path": name} | parts | own)
    clips = pd.DataFrame(rows, columns=["clip", *COLUMNS])
    return clips, pd.DataFrame(rejected, columns=["clip", "reason"])


def _by_folders(name: str) -> dict[str, str | None] | None:
    """MIMII's way: the file's folder is its class, the folders above that are its client."""
    *client, label = Path(name).parent.parts or ("",)
    return {"speaker": "-".join(client), "gender": None, "emotion": label} if client else None


def read_manifest(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A CSV as ``load_corpus`` describes it -> the tables of ``read_names``."""
    if not path.is_file():
        raise InputError(f"manifest {str(path)!r} does not exist")
    try:
        table = pd.read_csv(path, dtype=str, skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"manifest {str(path)!r} is not a CSV table: {error}") from error
    table.columns = table.columns.str.strip().str.lower()
    table = table.rename(columns=_roles([*table.columns], path))
    table = table.reindex(columns=COLUMNS).astype("string").apply(lambda column: column.str.strip())
    table.insert(0, "clip", table["path"])
    table = table.replace("", None)
    incomplete = table[["path", "speaker", "emotion"]].isna().any(axis=1)
    again = table.duplicated("path") & ~incomplete
    bad = incomplete | again
    reason = again.map({True: "listed twice", False: "path, client or label is missing"})[bad]
    rejected = pd.DataFrame({"clip": table["clip"].fillna("")[bad], "reason": reason})
    return table[~bad].reset_index(drop=True), rejected


def _roles(columns: list[str], path: Path) -> dict[str, str]:
    """A manifest's names for the client and the label -> ours. Raises InputError where they, or
    path, are not to be found."""
    client = next((name for name in CLIENT if name in columns), None)
    label = next((name for name in LABEL if name in columns), None)
    others = [c for c in columns if c not in COLUMNS and c not in CLIENT]
    if label is None and len(others) == 1:
        label = others[0]
    found = {"path": "path" in columns, " or ".join(CLIENT): client, " or ".join(LABEL): label}
    missing = [name for name, there in found.items() if not there]
    if missing:
        raise InputError(
            f"manifest {str(path)!r} has no column {', '.join(missing)}; it needs path, speaker "
            "(or client), emotion (or label, or one column of another name), and has "
            f"{', '.join(columns)}"
        )
    return {client: "speaker", label: "emotion"}


def _decode(table: pd.DataFrame, base: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decode every clip: adds seconds, digest and rate (Hz); the unusable ones go to the second
    table."""

    def inspect(name: str) -> tuple[float | None, str, int]:
        try:
            clip = audio.read(base / name)
        except audio.BadClipError as error:
            return None, str(error), 0
        return clip.seconds, clip.digest, clip.rate

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(inspect, table["path"])
        checked = list(tqdm(found, "checking clips", len(table), unit="clip", leave=False))
    table = table.assign(
        seconds=pd.Series([seconds for seconds, _, _ in checked], dtype=float),
        digest=[text for _, text, _ in checked],
        rate=[rate for _, _, rate in checked],
    )
    bad = table["seconds"].isna()
    rejected = table.loc[bad, ["clip", "digest"]].rename(columns={"digest": "reason"})
    return table[~bad].sort_values("clip", ignore_index=True), rejected


def _check(corpus: Corpus, where: str, *, alone: bool = False, part: bool = False) -> None:
    """Raises InputError where no experiment is possible. alone: with one client's share; part:
    with a part of a corpus that is joined of several."""
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
    """Say what has been read, and what of it may surprise."""
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
        own = lacking[lacking.any(axis=1)].apply(lambda row: ", ".join(row.index[row]), axis=1)
        count = "1 speaker has" if len(own) == 1 else f"{len(own)} speakers have"
        log.warning("%s no clip of some class, such as %s: %s", count, own.index[0], own.iloc[0])

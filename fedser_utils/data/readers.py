"""Readers: speaker, label, gender and language of clips, from file names, folders or a manifest.

To add a corpus, add a row to ``READERS``: a file-name pattern and the meaning of its parts. File
names that do not fit are returned with the reason, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fedser_utils.core.errors import InputError, choose
from fedser_utils.data import audio

MANIFEST = "manifest.csv"
COLUMNS = ["path", "speaker", "gender", "emotion", "corpus", "language"]
CLIENT = ("speaker", "client", "machine")  # what a manifest may call its column of clients
LABEL = ("emotion", "label", "class")  # and of labels; without these, its only other column
FOLDERS = "folders"  # the reader of .../client/class/file


@dataclass(frozen=True)
class Reader:
    """A corpus's file-name pattern. Its groups: ``speaker``, ``emotion``, perhaps ``gender``.

    emotions maps codes to English names; None there leaves the clip out, with ``left_out`` as
    the reason. gender: speaker's code -> "f" or "m", for names without it; language: of
    all its clips.
    """

    name: str
    pattern: str
    emotions: dict[str, str | None]
    language: str = ""
    left_out: str = ""
    gender: Callable[[str], str | None] = lambda speaker: None

    def parse(self, stem: str) -> dict[str, str | None] | None:
        """Return speaker, gender and emotion of a file name without its ending, or None if it
        does not fit. The emotion is None for clips that the corpus's protocol leaves out."""
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


def audio_files(root: Path) -> list[str]:
    """Return the paths of the audio files below ``root``, relative and sorted."""
    paths = (p for p in root.rglob("*") if p.suffix.lower() in audio.EXTENSIONS and p.is_file())
    return sorted(p.relative_to(root).as_posix() for p in paths)


def recognise(names: Iterable[str], root: str | Path = "", *, otherwise: str | None = None) -> str:
    """Return the name of the reader that fits most file names; ``otherwise`` if none fits any.
    Raises InputError for no names, and where none fits and ``otherwise`` is None."""
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
    """Return two tables of file names: clips (clip and ``COLUMNS``) and rejected (clip, reason)."""
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
            rest = {"corpus": None, "language": parser.language if parser else None}
            rows.append({"clip": name, "path": name} | parts | rest)
    clips = pd.DataFrame(rows, columns=["clip", *COLUMNS])
    return clips, pd.DataFrame(rejected, columns=["clip", "reason"])


def _by_folders(name: str) -> dict[str, str | None] | None:
    """As in MIMII: the file's folder is its class, the folders above are its client."""
    *client, label = Path(name).parent.parts or ("",)
    return {"speaker": "-".join(client), "gender": None, "emotion": label} if client else None


def read_manifest(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of ``read_names`` for a CSV as ``load_corpus`` describes it."""
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
    """New names of a manifest's columns of clients and labels. Raises InputError where one of
    them, or path, is missing."""
    client = next((name for name in CLIENT if name in columns), None)
    label = next((name for name in LABEL if name in columns), None)
    others = [c for c in columns if c not in COLUMNS and c not in CLIENT]
    if label is None and len(others) == 1:
        label = others[0]
    needed = {"path": "path" in columns, " or ".join(CLIENT): client, " or ".join(LABEL): label}
    missing = [name for name, there in needed.items() if not there]
    if missing:
        raise InputError(
            f"manifest {str(path)!r} has no column {', '.join(missing)}; it needs path, speaker "
            "(or client), emotion (or label, or one column of another name), and has "
            f"{', '.join(columns)}"
        )
    return {client: "speaker", label: "emotion"}

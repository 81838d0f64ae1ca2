"""Clips in a page: players, pictures of log-Mels, and where a run's recordings are.

Torch is imported when the first recording that is on this machine is opened, for its log-Mel:
neither this module nor clips without a recording need it.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from IPython.display import HTML

from fedser_utils.core import count_tables
from fedser_utils.core.front_end import SPEECH, FrontEnd
from fedser_utils.core.runs import Run
from fedser_utils.core.settings import EMBEDDED, Settings
from fedser_utils.data import audio
from fedser_utils.workbook.canvas import Canvas

if TYPE_CHECKING:
    from fedser_utils.data.log_mel import LogMel

RANGE = 80  # dB shown below a clip's loudest
NOTE = (
    "Sounds and log-Mels are those of the recordings; under an attack the model gets a changed "
    f"log-Mel. The colours of a log-Mel go {RANGE} dB down from its loudest point."
)


@dataclass(frozen=True)
class Recordings:
    """The recordings of a run's clips, by the clips' names.

    roots: a corpus's name -> its folder, or "" -> the folder of the only corpus; a corpus that is
    not on this machine is left out; front: of the run.
    """

    roots: Mapping[str, Path] = field(default_factory=dict)
    front: FrontEnd = SPEECH

    def path(self, clip: str) -> Path | None:
        """Return the path of a clip's recording, or None where its corpus is not here.

        clip: the path below the corpus's folder; of several corpora after the corpus's name.
        """
        corpus, _, below = ("", "", clip) if "" in self.roots else clip.partition("/")
        return self.roots[corpus] / below if corpus in self.roots else None

    def sound(self, clip: str) -> bytes | None:
        """Return a mono WAV that browsers play, or None where there is no recording."""
        return self._media(clip)[0]

    def picture(self, clip: str) -> bytes | None:
        """Return a PNG of a clip's log-Mel, or None where there is no recording."""
        return self._media(clip)[1]

    def _media(self, clip: str) -> tuple[bytes | None, bytes | None]:
        path = self.path(clip)
        try:
            return _wav_and_png(path, self.front) if path else (None, None)
        except audio.BadClipError:
            return None, None


@functools.lru_cache(maxsize=128)  # clips, of about 0.2 MB each
def _wav_and_png(path: Path, front: FrontEnd) -> tuple[bytes, bytes]:
    """Return a recording's WAV and the PNG of its log-Mel. Raises BadClipError, as
    ``audio.read``, which is not kept: the recording may be there the next time."""
    waveform = audio.read(path, rate=front.sample_rate).waveform
    wav = audio.playable(waveform, rate=front.sample_rate)
    return wav, log_mel_png(log_mel(waveform, front), front)


NO_RECORDINGS = Recordings()


def recordings_of(run: Run, *, corpus: str) -> Recordings:
    """Return the recordings of a run's clips; none for a deployment, whose clients keep them.

    corpus: where they are now, in the run's order: "synthetic", "machines" or a path, several with
    commas. Raises InputError for a path that does not exist.
    """
    values = run.config["settings"] | {"corpus": corpus}
    settings = Run(run.folder, run.config | {"settings": values}).settings
    if settings.runtime == "deployment":
        return Recordings(front=settings.front_end)
    names = settings.corpus_names if len(settings.corpora) > 1 else [""]
    folders = (_corpus_folder(entry, settings) for entry in settings.corpora)
    roots = {name: folder for name, folder in zip(names, folders, strict=True) if folder}
    return Recordings(roots, settings.front_end)


def _corpus_folder(entry: str, settings: Settings) -> Path | None:
    """Return the folder of one corpus, or None for an embedded one that was not written."""
    if entry in EMBEDDED:
        pattern = f"{entry}-{settings.speakers}x{settings.clips}-s0-*"
        written = (Path(settings.outputs) / "corpora").glob(pattern)
        return max(written, key=lambda path: path.stat().st_mtime, default=None)
    return Path(entry).parent if Path(entry).is_file() else Path(entry)


def log_mel(waveform: np.ndarray, front: FrontEnd = SPEECH) -> np.ndarray:
    """Return the (frames, mels) log-Mel of a recording, without the repetitions of a short one.

    waveform: (samples,) at the front end's rate.
    """
    import torch  # here, since a page of tables needs none

    frames = 1 + max(0, len(waveform) - front.window) // front.hop
    return _transform(front)(torch.from_numpy(waveform)[None])[0, 0, :frames].numpy()


@functools.cache  # its filters take longer than its log-Mels
def _transform(front: FrontEnd) -> LogMel:
    from fedser_utils.data.log_mel import LogMel  # here, as it imports torch

    return LogMel(front)


_canvas = functools.cache(Canvas)  # to set up axes takes longer than to paint


def log_mel_png(image: np.ndarray, front: FrontEnd = SPEECH) -> bytes:
    """Return a PNG of a log-Mel, (frames, mels), from its loudest point to 80 dB below it."""
    decibels = 20 / np.log(10) * (image - image.max())
    canvas = _canvas(("",), front=front, size=(3.4, 1.5))
    return canvas.paint([decibels + RANGE / 2], [RANGE / 2], ["magma"])


def player(wav: bytes, *, name: str = "sound") -> str:
    """Return HTML that plays a WAV; the sound is in it, so that it needs no server."""
    style = "display:block;width:340px;max-width:100%;height:34px;margin:4px 0"
    source = f"data:audio/wav;base64,{base64.b64encode(wav).decode()}"
    return f'<audio controls style="{style}" aria-label="{escape(name)}" src="{source}"></audio>'


def players(sounds: pd.DataFrame, classes: Sequence[str], *, truth: str) -> HTML:
    """Return a table of players with the model's decision on each sound, wrong ones in bold.

    sounds: rows of ``robustness.evaluation.predict_sounds``; truth: the clip's class. The sounds
    are stored in the notebook and play wherever it is opened.
    """
    rows = []
    for sound, path, y_pred in sounds[["sound", "path", "y_pred"]].itertuples(index=False):
        decision = escape(classes[y_pred])
        decision = decision if classes[y_pred] == truth else f"<b>{decision}</b>"
        cells = (escape(sound), player(Path(path).read_bytes(), name=sound), decision)
        rows.append("".join(f"<td>{cell}</td>" for cell in cells))
    head = f"<tr><th>sound</th><th></th><th>decision (truth: {escape(truth)})</th></tr>"
    return HTML(f"<table>{head}{''.join(f'<tr>{row}</tr>' for row in rows)}</table>")


def clips_html(clips: pd.DataFrame, recordings: Recordings, *, most: int) -> str:
    """Return HTML of the first ``most`` clips with player and log-Mel, and how many more there are.

    clips: columns clip, speaker, note; at least one row.
    """
    if count_tables.is_counted(clips["clip"]):
        counts = clips.groupby("speaker", sort=False).size()
        lines = "".join(f"<li>{escape(str(name))}: {n}</li>" for name, n in counts.items())
        return (
            "<p>The recordings stay with the clients; the server knows only how many clips of "
            f"this cell each client has.</p><ul>{lines}</ul>"
        )
    rows = clips[["clip", "speaker", "note"]].head(most).itertuples(index=False)
    cards = "".join(_card(*row, recordings) for row in rows)
    tail = f"<p>… and {len(clips) - most} more.</p>" if len(clips) > most else ""
    tail += f'<p style="opacity:.75">{NOTE}</p>' if "<audio" in cards else ""
    grid = "display:grid;grid-template-columns:repeat(auto-fill,minmax(350px,1fr));gap:10px"
    return f'<div style="{grid};line-height:1.4">{cards}</div>{tail}'


def _card(clip: str, speaker: str, note: str, recordings: Recordings) -> str:
    """Return a clip as HTML: name, speaker, note, player, log-Mel."""
    text = f"<b>{escape(clip)}</b><br>speaker {escape(str(speaker))}"
    text += f", {escape(note)}" if note else ""
    wav, png = recordings.sound(clip), recordings.picture(clip)
    text += "<br>The recording is not on this machine." if wav is None else player(wav, name=clip)
    if png is not None:
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        text += f'<img style="max-width:100%" alt="log-Mel of {escape(clip)}" src="{source}">'
    return f'<div style="overflow-wrap:anywhere">{text}</div>'  # long paths must not overlap

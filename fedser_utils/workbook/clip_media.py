"""The recordings of a run's clips, to be heard and seen in a notebook. Never imports torch.

A clip's name is its path below the corpus's folder; of several corpora, the corpus's name and
that path. A deployment has no such folder: its recordings stay with their owners.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from fedser_utils.core import count_tables
from fedser_utils.core.front_end import SPEECH, FrontEnd
from fedser_utils.core.runs import Run
from fedser_utils.core.settings import EMBEDDED, Settings
from fedser_utils.data import audio

Find = Callable[[str], bytes | None]  # a clip's name -> its WAV, or its PNG; None: not at hand
NOTE = (
    "Sounds and log-Mels are of the recordings; under an attack the model was shown a changed "
    "log-Mel. A log-Mel's colours go 80 dB down from its loudest."
)
FLOOR = 1e-8  # spectral magnitude
RANGE = 80  # dB shown below a clip's loudest
TICKS = np.array([100, *(500 * 2**octave for octave in range(11))])  # Hz


@dataclass(frozen=True)
class Recordings:
    """Recordings below folders. roots: a corpus's name -> its folder, or "" -> the only one;
    corpora that are not at hand are left out. front: what the models saw of them."""

    roots: Mapping[str, Path]
    front: FrontEnd = SPEECH

    def path(self, clip: str) -> Path | None:
        """Where a clip's recording should be; None where its corpus is not at hand."""
        corpus, _, below = ("", "", clip) if "" in self.roots else clip.partition("/")
        return self.roots[corpus] / below if corpus in self.roots else None

    def sound(self, clip: str) -> bytes | None:
        """A mono WAV of a clip that browsers play; None where its recording is not at hand."""
        rate = self.front.sample_rate
        waveform = _waveform(self.path(clip), rate)
        return None if waveform is None else audio.playable(waveform, rate=rate)

    def picture(self, clip: str) -> bytes | None:
        """A PNG of a clip's log-Mel; None where its recording is not at hand."""
        return _picture(self.path(clip), self.front)


def _waveform(path: Path | None, rate: int) -> np.ndarray | None:
    try:
        return None if path is None else audio.read(path, rate=rate).waveform
    except audio.BadClipError:
        return None


@functools.lru_cache(maxsize=256)
def _picture(path: Path | None, front: FrontEnd) -> bytes | None:
    waveform = _waveform(path, front.sample_rate)
    return None if waveform is None else png(log_mel(waveform, front), front)


def of(run: Run, *, corpus: str) -> Recordings:
    """The recordings of a run's clips.

    corpus: where they are now, in the run's order: "synthetic", "machines" or a path, several with
    commas. Raises InputError for a path that does not exist.
    """
    moved = run.config["settings"] | {"corpus": corpus}
    made = Run(run.folder, run.config | {"settings": moved}).settings
    if made.runtime == "deployment":
        return Recordings({}, made.front_end)
    names = made.corpus_names if len(made.corpora) > 1 else [""]
    folders = (_folder(entry, made) for entry in made.corpora)
    found = {name: root for name, root in zip(names, folders, strict=True) if root}
    return Recordings(found, made.front_end)


def _folder(entry: str, made: Settings) -> Path | None:
    """Where the recordings of one corpus are; None where an embedded one is not written."""
    if entry in EMBEDDED:
        written = f"{entry}-{made.speakers}x{made.clips}-s0-*"
        found = (Path(made.outputs) / "corpora").glob(written)
        return max(found, key=lambda path: path.stat().st_mtime, default=None)
    return Path(entry).parent if Path(entry).is_file() else Path(entry)


def mel(hz: np.ndarray | float) -> np.ndarray:
    """Hz on Slaney's Mel scale: linear below 1 kHz, logarithmic above."""
    above = 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4)
    return np.where(np.less(hz, 1000), 3 * np.asarray(hz) / 200, above)


@functools.cache
def filters(front: FrontEnd = SPEECH) -> np.ndarray:
    """(window / 2 + 1, mels): triangles over the spectrum, equally wide in Mel and of equal area in
    Hz."""
    mels = np.linspace(mel(front.lowest), mel(front.highest), front.bands + 2)
    corners = np.where(mels < 15, 200 * mels / 3, 1000 * 6.4 ** ((mels - 15) / 27))  # Hz
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    hz = np.linspace(0, front.sample_rate / 2, front.window // 2 + 1)[:, None]
    sides = np.minimum((hz - low) / (middle - low), (high - hz) / (high - middle))
    return np.maximum(sides, 0) * 2 / (high - low)


def log_mel(waveform: np.ndarray, front: FrontEnd = SPEECH) -> np.ndarray:
    """What ``log_mel.LogMel`` makes of a recording (at the level it has), as long as the recording
    is: not repeated, but cut. waveform: (samples,) at the front end's rate. Returns (frames, mels),
    ln(magnitude + 1e-8)."""
    window = np.hamming(front.window)
    window /= np.sqrt(front.sample_rate * np.square(window).sum())
    heard = waveform[: front.samples].astype(float)
    filled = np.pad(heard, (0, max(0, front.window - len(heard))))
    frames = np.lib.stride_tricks.sliding_window_view(filled, front.window)[:: front.hop] * window
    return np.log(np.abs(np.fft.rfft(frames)) @ filters(front) + FLOOR)


def png(image: np.ndarray, front: FrontEnd = SPEECH) -> bytes:
    """A picture of a log-Mel, (frames, mels): seconds across, Hz up on the Mel scale, 80 dB down
    from the clip's loudest from bright to dark."""
    figure, axes, shown = _drawing(front)
    seconds = len(image) * front.hop / front.sample_rate
    shown.set_data(20 / np.log(10) * (image - image.max()).T)
    shown.set_extent((0, seconds, 0, front.bands))
    axes.set(xlim=(0, seconds), ylim=(0, front.bands))
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


@functools.cache
def _drawing(front: FrontEnd) -> tuple[Figure, Axes, AxesImage]:
    """A figure with its axes and an image to be replaced: to set up axes takes longer than to
    draw."""
    figure = Figure(figsize=(3.4, 1.3), dpi=100)
    axes = figure.add_axes((0.14, 0.27, 0.84, 0.69))
    look = {"origin": "lower", "aspect": "auto", "cmap": "magma", "vmin": -RANGE, "vmax": 0}
    shown = axes.imshow(np.zeros((front.bands, 1)), **look)
    step = (mel(front.highest) - mel(front.lowest)) / (front.bands + 1)
    ticks = TICKS[(front.lowest <= TICKS) & (front.highest >= TICKS)]
    places = (mel(ticks) - mel(front.lowest)) / step - 0.5  # band b's middle is at b + 0.5
    axes.set_yticks(places.clip(0, front.bands), [str(hz) for hz in ticks])
    axes.tick_params(labelsize=7, length=2, pad=2)
    axes.set_xlabel("s", fontsize=7, labelpad=1)
    axes.set_ylabel("Hz", fontsize=7, labelpad=1)
    return figure, axes, shown


def listed(clips: pd.DataFrame, *, sound: Find, picture: Find, most: int) -> str:
    """HTML of the first clips: name, speaker, note, player, log-Mel; and how many more there are.

    clips: clip, speaker, note, at least one.
    """
    if count_tables.is_counted(clips["clip"]):
        own = clips.groupby("speaker", sort=False).size()
        lines = "".join(f"<li>{escape(str(who))}: {n}</li>" for who, n in own.items())
        return (
            "<p>The recordings are at their owners: known here is how many clips each has in this "
            f"cell, not which.</p><ul>{lines}</ul>"
        )
    rows = list(clips[["clip", "speaker", "note"]].itertuples(index=False, name=None))
    cards = [_card(*row, wav=sound(row[0]), png=picture(row[0])) for row in rows[:most]]
    tail = f"<p>… and {len(rows) - most} more.</p>" if len(rows) > most else ""
    tail += f'<p style="opacity:.75">{NOTE}</p>' if any("<audio" in card for card in cards) else ""
    grid = "display:grid;grid-template-columns:repeat(auto-fill,minmax(350px,1fr));gap:10px"
    return f'<div style="{grid};line-height:1.4">{"".join(cards)}</div>{tail}'


def _card(clip: str, speaker: str, note: str, *, wav: bytes | None, png: bytes | None) -> str:
    """A clip in HTML; the sound and the picture are in it, so that it needs no server."""
    name = escape(clip)
    text = f"<b>{name}</b><br>speaker {escape(str(speaker))}" + (
        f", {escape(note)}" if note else ""
    )
    if wav is None:
        text += "<br>The recording is not at hand."
    else:
        source = f"data:audio/wav;base64,{base64.b64encode(wav).decode()}"
        style = "display:block;width:340px;max-width:100%;height:34px;margin:4px 0"
        text += f'<audio controls style="{style}" aria-label="{name}" src="{source}"></audio>'
    if png is not None:
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        text += f'<img style="max-width:100%" alt="log-Mel of {name}" src="{source}">'
    return f'<div style="overflow-wrap:anywhere">{text}</div>'  # long paths must not overlap

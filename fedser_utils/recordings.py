"""The recordings of a run's clips, to be heard and seen in a notebook. Never imports torch.

A clip's name is its path below the corpus's folder. A deployment has no such folder: its
recordings stay with their owners.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from fedser_utils import audio, counted
from fedser_utils.audio import SAMPLE_RATE
from fedser_utils.config import SYNTHETIC
from fedser_utils.runs import Run

Find = Callable[[str], bytes | None]  # a clip's name -> its WAV, or its PNG; None: not at hand
NOTE = (
    "Sounds and log-Mels are of the recordings; under an attack the model was shown a changed "
    "log-Mel. A log-Mel's colours go 80 dB down from its loudest."
)
LONGEST = 95_744  # samples that a model sees; what is longer is cut
WINDOW, HOP, MELS = 512, 256, 64
LOWEST, HIGHEST, FLOOR = 20.0, 8000.0, 1e-8  # Hz, Hz, spectral magnitude
RANGE = 80  # dB shown below a clip's loudest
TICKS = (100, 500, 1000, 2000, 4000, 8000)  # Hz


@dataclass(frozen=True)
class Recordings:
    """The recordings below a folder; None: they are not at hand."""

    root: Path | None

    def sound(self, clip: str) -> bytes | None:
        """A 16-bit mono WAV at 16 kHz of a clip; None where its recording is not at hand."""
        waveform = None if self.root is None else _waveform(self.root / clip)
        if waveform is None:
            return None
        wav = io.BytesIO()
        peak = max(1.0, float(np.abs(waveform).max()))  # resampled, it may go a little beyond 1
        soundfile.write(wav, waveform / peak, SAMPLE_RATE, format="WAV", subtype="PCM_16")
        return wav.getvalue()

    def picture(self, clip: str) -> bytes | None:
        """A PNG of a clip's log-Mel; None where its recording is not at hand."""
        return None if self.root is None else _picture(self.root / clip)


def _waveform(path: Path) -> np.ndarray | None:
    try:
        return audio.read(path).waveform
    except audio.BadClipError:
        return None


@functools.lru_cache(maxsize=256)
def _picture(path: Path) -> bytes | None:
    waveform = _waveform(path)
    return None if waveform is None else png(log_mel(waveform))


def of(run: Run, *, corpus: str) -> Recordings:
    """The recordings of a run's clips. corpus: where they are now, "synthetic" or a path."""
    made = run.config["settings"]
    if made["runtime"] == "deployment":
        return Recordings(None)
    if corpus == SYNTHETIC:
        name = f"synthetic-{made['speakers']}x{made['clips']}-s0-*"
        found = (run.folder.parent / "corpora").glob(name)
        return Recordings(max(found, key=lambda path: path.stat().st_mtime, default=None))
    root = Path(corpus).expanduser()
    return Recordings(root.parent if root.is_file() else root)


def mel(hz: np.ndarray | float) -> np.ndarray:
    """Hz on Slaney's Mel scale: linear below 1 kHz, logarithmic above."""
    above = 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4)
    return np.where(np.less(hz, 1000), 3 * np.asarray(hz) / 200, above)


@functools.cache
def filters() -> np.ndarray:
    """(257, 64): triangles over the spectrum, equally wide in Mel and of equal area in Hz."""
    mels = np.linspace(mel(LOWEST), mel(HIGHEST), MELS + 2)
    corners = np.where(mels < 15, 200 * mels / 3, 1000 * 6.4 ** ((mels - 15) / 27))  # Hz
    low, middle, high = corners[:-2], corners[1:-1], corners[2:]
    hz = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)[:, None]
    sides = np.minimum((hz - low) / (middle - low), (high - hz) / (high - middle))
    return np.maximum(sides, 0) * 2 / (high - low)


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """What ``features.LogMel`` makes of a recording, as long as the recording is: not repeated,
    but cut. waveform: (samples,) at 16 kHz. Returns (frames, 64), ln(magnitude + 1e-8)."""
    window = np.hamming(WINDOW)
    window /= np.sqrt(SAMPLE_RATE * np.square(window).sum())
    filled = np.pad(waveform[:LONGEST].astype(float), (0, max(0, WINDOW - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(filled, WINDOW)[::HOP] * window
    return np.log(np.abs(np.fft.rfft(frames)) @ filters() + FLOOR)


def png(image: np.ndarray) -> bytes:
    """A picture of a log-Mel, (frames, 64): seconds across, Hz up on the Mel scale, 80 dB down
    from the clip's loudest from bright to dark."""
    figure, axes, shown = _drawing()
    seconds = len(image) * HOP / SAMPLE_RATE
    shown.set_data(20 / np.log(10) * (image - image.max()).T)
    shown.set_extent((0, seconds, 0, MELS))
    axes.set(xlim=(0, seconds), ylim=(0, MELS))
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


@functools.cache
def _drawing() -> tuple[Figure, Axes, AxesImage]:
    """A figure with its axes and an image to be replaced: to set up axes takes longer than to
    draw."""
    figure = Figure(figsize=(3.4, 1.3), dpi=100)
    axes = figure.add_axes((0.14, 0.27, 0.84, 0.69))
    look = {"origin": "lower", "aspect": "auto", "cmap": "magma", "vmin": -RANGE, "vmax": 0}
    shown = axes.imshow(np.zeros((MELS, 1)), **look)
    step = (mel(HIGHEST) - mel(LOWEST)) / (MELS + 1)
    places = (mel(np.array(TICKS)) - mel(LOWEST)) / step - 0.5  # band b's middle is at b + 0.5
    axes.set_yticks(np.minimum(places, MELS), [str(hz) for hz in TICKS])
    axes.tick_params(labelsize=7, length=2, pad=2)
    axes.set_xlabel("s", fontsize=7, labelpad=1)
    axes.set_ylabel("Hz", fontsize=7, labelpad=1)
    return figure, axes, shown


def listed(clips: pd.DataFrame, *, sound: Find, picture: Find, most: int) -> str:
    """HTML of the first clips: name, speaker, note, player, log-Mel; and how many more there are.

    clips: clip, speaker, note, at least one.
    """
    if counted.is_counted(clips["clip"]):
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

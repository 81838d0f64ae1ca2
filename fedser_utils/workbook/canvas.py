"""Images in a frame of axes that is drawn once: a new one takes milliseconds, not a new figure."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fedser_utils.core.front_end import SPEECH, FrontEnd

HERTZ = tuple(250 * 2**octave for octave in range(11))  # of the axis, as far as it goes
DPI = 110


def band_of(hertz: float, front: FrontEnd = SPEECH) -> float:
    """The Mel band (from 0) with its centre at a frequency, on Slaney's scale."""

    def mel(f: float) -> float:
        return 3 * f / 200 if f < 1000 else 15 + 27 * np.log(f / 1000) / np.log(6.4)

    low, high = mel(front.lowest), mel(front.highest)
    return (mel(hertz) - low) / (high - low) * (front.bands + 1) - 1


class Canvas:
    """Log-Mels of a front end beside each other, axes in seconds and Hz. titles: of each."""

    def __init__(
        self, titles: Sequence[str], *, front: FrontEnd = SPEECH, width: float = 11.0
    ) -> None:
        figure = Figure(figsize=(width, 2.3), dpi=DPI, layout="constrained")
        drawn = FigureCanvasAgg(figure)
        grid = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
        seconds = front.frames * (front.hop / front.sample_rate)
        hertz = [f for f in HERTZ if front.lowest < f < front.highest]
        for axes, title in zip(grid, titles, strict=True):
            axes.set_title(title, fontsize=9)
            axes.set(xlim=(0, seconds), ylim=(-0.5, front.bands - 0.5))
            axes.set_xlabel("Time [s]", fontsize=8)
            axes.set_yticks([band_of(f, front) for f in hertz], hertz)
            axes.tick_params(labelsize=8)
        grid[0].set_ylabel("Frequency [Hz]", fontsize=8)
        drawn.draw()
        self._frame = np.asarray(drawn.buffer_rgba())[..., :3].copy()
        height = len(self._frame)
        self._boxes = []
        for axes in grid:
            box = axes.get_window_extent()
            rows = slice(round(height - box.y1) + 1, round(height - box.y0) - 1)
            self._boxes.append((rows, slice(round(box.x0) + 1, round(box.x1) - 1)))

    def paint(
        self, images: Sequence[np.ndarray], limits: Sequence[float], colours: Sequence[str]
    ) -> bytes:
        """PNG. images: (frames, mels) each; colours: of matplotlib's maps, from -limit to limit."""
        picture = self._frame.copy()
        for image, limit, name, (rows, columns) in zip(
            images, limits, colours, self._boxes, strict=True
        ):
            tall, wide = rows.stop - rows.start, columns.stop - columns.start
            band = (np.arange(tall)[::-1] * image.shape[1] // tall).astype(int)
            frame = np.arange(wide) * image.shape[0] // wide
            shown = image[frame][:, band].T
            scaled = mpl.colormaps[name]((shown / (limit or 1.0) + 1) / 2, bytes=True)
            picture[rows, columns] = scaled[..., :3]
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "png", compress_level=1)
        return file.getvalue()

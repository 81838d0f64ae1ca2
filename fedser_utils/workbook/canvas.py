"""Pictures of log-Mels: the axes are drawn once, so that a new image takes milliseconds."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fedser_utils.core.front_end import SPEECH, FrontEnd, band_of

TICKS = np.array([100, *(500 * 2**octave for octave in range(11))])  # Hz
DPI = 110


class Canvas:
    """A row of axes in seconds and Hz, into which log-Mels of one front end are painted.

    titles: one for each axes; size: of the figure, in inches.
    """

    def __init__(
        self,
        titles: Sequence[str],
        *,
        front: FrontEnd = SPEECH,
        size: tuple[float, float] = (11.0, 2.3),
    ) -> None:
        self._frames = front.frames
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        agg = FigureCanvasAgg(figure)
        grid = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
        hertz = TICKS[(front.lowest <= TICKS) & (front.highest >= TICKS)]
        bands = (-0.5, front.bands - 0.5)
        for axes, title in zip(grid, titles, strict=True):
            axes.set_title(title, fontsize=9)
            axes.set(xlim=(0, front.frames * front.hop / front.sample_rate), ylim=bands)
            axes.set_xlabel("Time [s]", fontsize=8)
            axes.set_yticks(band_of(hertz, front).clip(*bands), [str(hz) for hz in hertz])
            axes.tick_params(labelsize=7)
        grid[0].set_ylabel("Frequency [Hz]", fontsize=8)
        agg.draw()
        self._background = np.asarray(agg.buffer_rgba())[..., :3].copy()
        height = len(self._background)
        self._boxes = []  # the pixels inside each axes: rows, columns
        for axes in grid:
            box = axes.get_window_extent()
            rows = slice(round(height - box.y1) + 1, round(height - box.y0) - 1)
            self._boxes.append((rows, slice(round(box.x0) + 1, round(box.x1) - 1)))

    def paint(
        self, images: Sequence[np.ndarray], limits: Sequence[float], colormaps: Sequence[str]
    ) -> bytes:
        """Return a PNG with an image in each axes.

        images: (frames, mels) each; what has fewer frames than the front end leaves the rest
        white; limits: each colormap goes from -limit to limit; colormaps: names of matplotlib's.
        """
        picture = self._background.copy()
        for image, limit, name, (rows, columns) in zip(
            images, limits, colormaps, self._boxes, strict=True
        ):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            band = np.arange(height)[::-1] * image.shape[1] // height
            frame = np.arange(width) * self._frames // width
            frame = frame[frame < len(image)]
            pixels = image[frame][:, band].T
            colours = mpl.colormaps[name]((pixels / (limit or 1.0) + 1) / 2, bytes=True)
            picture[rows, columns.start : columns.start + len(frame)] = colours[..., :3]
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "png", compress_level=1)
        return file.getvalue()

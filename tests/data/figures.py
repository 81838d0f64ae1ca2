"""What a few numbers tell of clips and images, to notice that they are no longer those of before.

Their names have a version instead of a digest of the code that makes them; whoever changes that
code must raise it, or older ones are taken for the new. The numbers of the present versions are
in ``figures/``. After raising a version, write its file anew: remove it and run its test twice.
"""

import json
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent / "figures"


def check(name, version, figures, remedy, **tolerance):
    """Compare {what: numbers} with those stored in ``figures/<name>.json``. remedy: the sentence
    with which a difference fails; tolerance: of ``pytest.approx``."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        rows = [f"{json.dumps(key)}: {json.dumps(row)}" for key, row in figures.items()]
        head = f'{{\n"version": {version},\n"figures": {{\n'
        path.write_text(head + ",\n".join(rows) + "\n}\n}\n")
        pytest.fail(f"{path.name} was missing and is written now; look at it and run again")
    stored = json.loads(path.read_text())
    if version != stored["version"]:
        pytest.fail(f"{path.name} is of version {stored['version']}; remove it, run this twice")
    assert figures.keys() == stored["figures"].keys(), remedy
    wrong = [
        key for key, row in figures.items()
        if row != pytest.approx(stored["figures"][key], **tolerance)
    ]  # fmt: skip
    assert not wrong, f"{remedy}: {', '.join(wrong)} changed"


def rounded(numbers):
    return [float(f"{number:.6g}") for number in numbers]


def of_clip(clip):
    """Seconds, RMS, zero crossings per second, power in three bands, RMS of three thirds."""
    power = np.abs(np.fft.rfft(clip) / len(clip)) ** 2
    hertz = np.fft.rfftfreq(len(clip), 1 / 16_000)
    bands = [power[(hertz >= low) & (hertz < 4 * low)].sum() for low in (125, 500, 2000)]
    seconds = len(clip) / 16_000
    crossings = np.count_nonzero(np.diff(clip > 0)) / seconds
    return rounded(
        [seconds, clip.std(), crossings, *bands, *(part.std() for part in np.array_split(clip, 3))]
    )


def of_image(image):
    """Mean and deviation, and the means of four parts of the bands and of four of the frames."""
    image = image.astype(np.float64)
    parts = [*np.array_split(image, 4, axis=1), *np.array_split(image, 4)]
    return rounded([image.mean(), image.std(), *(part.mean() for part in parts)])

"""Writing a synthesised corpus to a folder under ``outputs/corpora`` on first use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from tqdm.auto import tqdm

from fedser_utils.data.audio import SAMPLE_RATE


def write(
    outputs: str | Path,
    name: str,
    paths: Sequence[str],
    synthesise: Callable[[str], np.ndarray],
    *,
    version: int,
    manifest: pd.DataFrame | None = None,
) -> Path:
    """Return the folder ``outputs/corpora/<name>-v<version>``, written whole or not at all.

    paths: of the clips in it; synthesise: a path -> (samples,) in [-1, 1] at 16 kHz; version: of
    the synthesiser, so that clips of an older one are never taken.
    """
    folder = Path(outputs) / "corpora" / f"{name}-v{version}"
    if folder.exists():
        return folder
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    for parent in {(partial / path).parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)

    def write_clip(path: str) -> None:
        samples = np.round(synthesise(path) * 32767).astype(np.int16)
        soundfile.write(partial / path, samples, SAMPLE_RATE, subtype="PCM_16")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(
            tqdm(pool.map(write_clip, paths), "synthesising", len(paths), unit="clip", leave=False)
        )
    if manifest is not None:
        manifest.to_csv(partial / "manifest.csv", index=False)
    try:
        partial.rename(folder)
    except OSError:  # another process was faster; its clips are the same
        shutil.rmtree(partial)
    return folder

"""Where a synthesised corpus lives: a folder under ``outputs/corpora``, written on first use."""

from __future__ import annotations

import hashlib
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
    module: str,
    manifest: pd.DataFrame | None = None,
) -> Path:
    """The folder ``outputs/corpora/<name>-<digest of the file module>``.

    paths: of the clips in it; synthesise: a path -> (samples,) in [-1, 1] at 16 kHz. With the
    digest a changed synthesiser never meets clips of an older one. It appears whole or not at all.
    """
    version = hashlib.blake2b(Path(module).read_bytes(), digest_size=4).hexdigest()
    folder = Path(outputs) / "corpora" / f"{name}-{version}"
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

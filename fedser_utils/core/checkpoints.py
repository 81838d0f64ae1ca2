"""Checkpoints of a training: saving them whole, and loading the newest undamaged one.

A checkpoint is a folder of safetensors files with a manifest of their SHA-256 (neither torch nor
safetensors notices a flipped bit). It is written to a temporary folder and renamed; the newest two
remain, and a damaged one is refused with its reason.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from fedser_utils.core.errors import InputError

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]


class CheckpointError(InputError):
    """No usable checkpoint where there should be one."""


def newest_two(rounds: list[int]) -> Collection[int]:
    """Return the last two of the sorted ``rounds``."""
    return rounds[-2:]


def save(
    folder: Path,
    round_number: int,
    parts: Mapping[str, Arrays],
    *,
    keep: Callable[[list[int]], Collection[int]] = newest_two,
) -> None:
    """Save the state after ``round_number`` and remove older checkpoints.

    folder: the run's ``checkpoint``; parts: file name without ending -> arrays; keep: the sorted
    rounds with a checkpoint -> those whose checkpoints are not removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".partial-*"):
        shutil.rmtree(stale)
    partial, final = folder / f".partial-{os.getpid()}", folder / f"round-{round_number:06d}"
    partial.mkdir()
    digests = {}
    for name, arrays in parts.items():
        path = partial / f"{name}.safetensors"
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path)
        digests[path.name] = _sha256(path)
    manifest = {"round": round_number, "sha256": digests}
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=2))
    for path in (*partial.iterdir(), partial):
        _fsync(path)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    _fsync(folder)
    saved = {_round(path): path for path in sorted(folder.glob("round-*"))}
    for number in saved.keys() - set(keep([*saved])):
        shutil.rmtree(saved[number])


def _round(path: Path) -> int:
    return int(path.name.removeprefix("round-"))


def load(folder: Path, *, before: float = math.inf) -> tuple[int, dict[str, Arrays]] | None:
    """Return round and parts of the newest undamaged checkpoint of a round below ``before``, or
    None if there is no checkpoint.

    Raises CheckpointError, with every reason, if all checkpoints are damaged.
    """
    reasons = []
    for path in sorted(folder.glob("round-*"), reverse=True):
        if _round(path) >= before:
            continue
        try:
            return _load_checked(path)
        except (OSError, ValueError, KeyError) as error:
            reasons.append(f"{path.name}: {error}")
            log.warning("checkpoint refused: %s", reasons[-1])
    if reasons:
        raise CheckpointError(
            f"no sound checkpoint in {folder} ({'; '.join(reasons)}); "
            f"remove the run's folder to start anew"
        )
    return None


def _load_checked(path: Path) -> tuple[int, dict[str, Arrays]]:
    manifest = json.loads((path / "manifest.json").read_text())
    for name, digest in manifest["sha256"].items():
        if _sha256(path / name) != digest:
            raise ValueError(f"{name} does not match its checksum")
    parts = {
        name.removesuffix(".safetensors"): load_file(path / name) for name in manifest["sha256"]
    }
    return manifest["round"], parts


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

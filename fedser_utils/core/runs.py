"""A run's folder: its settings, tables, weights and lock, and finding the runs of a study.

Every file is written under a temporary name and renamed, so no reader meets half a file. No pickle
anywhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from fedser_utils.core.errors import InputError
from fedser_utils.core.settings import EXECUTION, FORMER_DEFAULTS, IDENTITY, ROOT, Settings

log = logging.getLogger(__name__)

Arrays = dict[str, np.ndarray]
DEPLOYED = "deployment"  # instead of a corpus's fingerprint, which only the clients know
PREDICTIONS = ["run", "model", "round", "attack", "condition", "draw", "clip", "speaker"]
PREDICTIONS += ["y_true", "y_pred"]
LOCKS = Path("/proc/locks")  # Linux's list of locks, with the process that holds each
_PACKAGES = ("torch", "torchaudio", "flwr", "numpy", "pandas", "scikit-learn", "soundfile")


class RunBusyError(InputError):
    """Another process is writing this run."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path; its file is renamed to ``path`` after success."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@dataclass(frozen=True)
class Run:
    """A run. folder: where it lies; config: the content of its config.json."""

    folder: Path
    config: dict[str, Any]

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def settings(self) -> Settings:
        """The settings of its training, with its present folder as outputs."""
        return Settings(**self.config["settings"] | {"outputs": str(self.folder.parent)})

    @property
    def complete(self) -> bool:
        """Whether its training has ended and its model is written."""
        return (self.folder / "model.safetensors").exists()

    def table(self, name: str) -> pd.DataFrame:
        """Return a table: predictions, clips (parquet), rounds, rejected (CSV); empty if absent."""
        for path, read in (
            (self.folder / f"{name}.parquet", pd.read_parquet),
            (self.folder / f"{name}.csv", pd.read_csv),
        ):
            if path.exists():
                return read(path)
        return pd.DataFrame()

    def cached(
        self, name: str, key: Mapping[str, Any], make: Callable[[], pd.DataFrame]
    ) -> pd.DataFrame:
        """Return ``name.parquet`` if it was written under the same key (what its content depends
        on); otherwise call ``make`` and write it."""
        key = json.loads(json.dumps(key))
        table = self.table(name)
        if table.attrs.get("key") != key:
            table = make()
            table.attrs["key"] = key
            self.write(f"{name}.parquet", table)
        return table

    def write(self, name: str, table: pd.DataFrame) -> None:
        """Write a table into the folder. name: with its ending, .csv or .parquet."""
        write_table(self.folder / name, table)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV or parquet file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as partial:
        if path.suffix == ".parquet":
            table.to_parquet(partial, index=False)
        else:
            table.to_csv(partial, index=False)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as partial:
        partial.write_text(text)


def settings_digest(settings: Mapping[str, Any], fingerprint: str) -> str:
    """Return the digest that two runs must share to be compared: of all settings that change a
    result, without those of ``IDENTITY``, and of the corpus's content."""
    left_out = {*EXECUTION, *IDENTITY, "corpus"}
    left_out |= {k for k, v in FORMER_DEFAULTS.items() if k in settings and settings[k] == v}
    shared = {k: v for k, v in settings.items() if k not in left_out} | {"corpus": fingerprint}
    text = json.dumps(shared, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def run_name(settings: Settings, fingerprint: str) -> str:
    """Return the name of the run of these settings on this corpus."""
    digest = settings_digest(settings.values(), fingerprint)
    return f"{settings.study}-{settings.model}-s{settings.seed}-{digest}"


def read_run(folder: Path) -> Run:
    """Return the run in a folder."""
    return Run(folder, json.loads((folder / "config.json").read_text()))


def open_run(settings: Settings, fingerprint: str, **facts: Any) -> Run:
    """Return the run of these settings on this corpus; a new one gets its folder and config.json.

    fingerprint: of the corpus's content. facts: further entries for config.json, e.g. device.
    """
    name = run_name(settings, fingerprint)
    folder = Path(settings.outputs) / name
    path = folder / "config.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "run": name,
            "study": settings.study,
            "model": settings.model,
            "setting": settings_digest(settings.values(), fingerprint),
            "fingerprint": fingerprint,
            "settings": settings.values(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {p: importlib.metadata.version(p) for p in _PACKAGES}
            | {"python": platform.python_version()},
            "commit": commit(),
            **facts,
        }
        write_text(path, json.dumps(config, indent=2) + "\n")
    return read_run(folder)


def find_runs(outputs: str | Path, study: str) -> list[Run]:
    """Return all runs of a study, oldest first."""
    configs = (json.loads(path.read_text()) for path in Path(outputs).glob("*/config.json"))
    chosen = [c for c in configs if c["study"] == study]
    return [Run(Path(outputs) / c["run"], c) for c in sorted(chosen, key=lambda c: c["started"])]


def study_runs(settings: Settings) -> list[Run]:
    """Return the complete runs of the settings' study that belong in one table, oldest first.

    Runs that differ in more than model and seed are not mixed: of several such groups, the one
    with exactly these settings is taken. Raises InputError where no run is complete, or where none
    of several groups has these settings.
    """
    outputs, study = settings.outputs, settings.study
    runs = [run for run in find_runs(outputs, study) if run.complete]
    if not runs:
        raise InputError(f"study {study!r} has no complete run in {outputs!r}; run 02 first")
    groups = {run.config["setting"] for run in runs}
    if len(groups) > 1:
        values = settings.values()
        prints = {run.config["fingerprint"] for run in runs}
        same = groups & {settings_digest(values, fingerprint) for fingerprint in prints}
        if len(same) != 1:
            ids = ", ".join(run.id for run in runs)
            fault = "with different settings"
            if same:
                fault = "on different corpora; move those of the former one away"
            raise InputError(f"study {study!r} holds runs {fault}: {ids}")
        log.warning("study %s: %d groups of runs, using %s", study, len(groups), *same)
        groups = same
    runs = [run for run in runs if run.config["setting"] in groups]
    _refuse_other_settings(settings, runs[0])
    return runs


def _refuse_other_settings(settings: Settings, run: Run) -> None:
    """Raise InputError for a setting that was given explicitly and that the runs do not have: what
    only reads runs cannot change how they were made."""
    of_run = run.config["settings"]
    for name in sorted(settings.explicit - {*EXECUTION, *IDENTITY, "preset", "corpus"}):
        value, made = getattr(settings, name), of_run.get(name, FORMER_DEFAULTS.get(name))
        if value != made:
            raise InputError(
                f"{name} {value!r}: the runs of study {run.config['study']!r} have {made!r}; "
                "train others with 02, or leave it out"
            )


def find_run(settings: Settings) -> Run:
    """Return the complete run of the settings' study, model and seed, with the settings' path of
    the corpus. Raises InputError if there is none."""
    runs = study_runs(settings)
    for run in runs:
        values = run.config["settings"]
        if (run.config["model"], values["seed"]) == (settings.model, settings.seed):
            return Run(run.folder, run.config | {"settings": values | {"corpus": settings.corpus}})
    ids = ", ".join(run.id for run in runs)
    raise InputError(
        f"study {settings.study!r} has no complete run of model {settings.model!r} with seed "
        f"{settings.seed}; it has {ids}"
    )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run's folder. Raises RunBusyError if another process locks it."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunBusyError(f"run {folder.name} is being written by another process") from None
        yield


def lock_holder(folder: Path) -> str:
    """Return the process that locks a run's folder, as ``process 123``, or "".

    Takes no lock itself: a training that starts in this instant must not be refused.
    """
    path = folder / ".lock"
    if not path.exists():
        return ""
    number = path.stat().st_ino
    for line in LOCKS.read_text().splitlines() if LOCKS.exists() else ():
        words = line.split()  # number: FLOCK ADVISORY WRITE process place start end
        if "FLOCK" in words and "->" not in words and words[5].rsplit(":", 1)[1] == str(number):
            return f"process {words[4]}"
    return ""


def save_model(run: Run, weights: Arrays, **metadata: str) -> None:
    """Write ``model.safetensors``, which makes the run complete."""
    save_arrays(run.folder / "model.safetensors", weights, **metadata)


def load_model(run: Run) -> Arrays:
    """Return the arrays of ``model.safetensors``."""
    return load_file(run.folder / "model.safetensors")


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], **metadata: str) -> None:
    """Write arrays as safetensors, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as partial:
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, partial, metadata)


def load_arrays(path: Path) -> Arrays:
    """Return what ``save_arrays`` wrote."""
    return load_file(path)


def hardware(runs: Sequence[Run]) -> dict[str, str]:
    """Return the columns ``processor`` and ``precision`` of runs; several joined by semicolons."""
    precisions = {True: "bf16", False: "fp32", None: "precision not recorded"}
    columns = {
        "processor": {run.config["device"] for run in runs},
        "precision": {precisions[run.config.get("bf16")] for run in runs},
    }
    return {name: "; ".join(sorted(values)) for name, values in columns.items()}


def origin(runs: Sequence[Run]) -> str:
    """Return a figure's origin: the runs, their commits and hardware, and the present commit."""
    commits = ", ".join(sorted({run.config["commit"] for run in runs}))
    where = ", ".join(hardware(runs).values())
    ids = ", ".join(run.id for run in runs)
    return f"runs {ids}; made with {commits} on {where}; drawn with {commit()}"


def commit() -> str:
    """Return the repository's commit, with "+" if the work tree differs; "unknown" outside git."""
    try:
        options = {"cwd": ROOT, "capture_output": True, "text": True, "check": True}
        head = subprocess.run(["git", "rev-parse", "HEAD"], **options).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain"], **options).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if dirty else "")

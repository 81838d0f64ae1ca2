"""What lies in an outputs folder, read from outside: the runs of every study, how far each is, what
the paper's tables still need, and the figures.

Nothing is written, no lock is taken and no model is loaded, so a training is not disturbed.
A folder that cannot be read is a row with its reason, never an exception.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open

from fedser_utils.analysis.tables import MODEL_NAMES, paper_order
from fedser_utils.core import runs
from fedser_utils.core.errors import InputError
from fedser_utils.core.runs import Run

FRESH = 120  # seconds; who wrote so lately may still be at work where its lock is not seen
RUN_FILES = ("config.json", "rounds.csv", "predictions.parquet", "model.safetensors", "checkpoint")
RUN_NAME = re.compile(r".+-s\d+-[0-9a-f]{8}")


@dataclass(frozen=True)
class RunStatus:
    """One run folder. round: the last evaluated of ``rounds``; uar: in percent, of original clips;
    attacked: under the model's own attack, or, where it was trained without, the lowest over all;
    attack: which that was; written: when a file was last written, seconds since 1970; writer: who
    holds the lock; note: what else there is to say; settings: those it was made with."""

    run: str
    study: str = ""
    setting: str = ""
    model: str = ""
    seed: int | None = None
    state: str = "damaged"
    round: int | None = None
    rounds: int | None = None
    uar: float | None = None
    attacked: float | None = None
    attack: str = ""
    written: float | None = None
    writer: str = ""
    note: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)


COLUMNS = [name for name in RunStatus.__dataclass_fields__ if name != "settings"]


def find_run_statuses(outputs: str | Path) -> list[RunStatus]:
    """Every run folder in ``outputs``, of all studies: by study, setting, model and seed, and last
    those that do not say it. Empty where there is none, or no such folder."""
    found = [read_status(folder) for folder in folders(outputs) if is_run(folder)]
    models = paper_order((each.model for each in found), MODEL_NAMES)
    return sorted(
        found,
        key=lambda s: (not s.study, s.study, s.setting, models.index(s.model), s.seed or 0, s.run),
    )


def table(seen: Sequence[RunStatus]) -> pd.DataFrame:
    """The runs as rows; columns: ``COLUMNS``."""
    return pd.DataFrame([asdict(each) for each in seen], columns=COLUMNS)


def folders(outputs: str | Path) -> list[Path]:
    """The folders in ``outputs`` by name; none if it cannot be read."""
    try:
        return sorted(p for p in Path(outputs).iterdir() if p.is_dir() and p.name[0] != ".")
    except OSError:
        return []


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, or what is left of one, or looks like one."""
    if RUN_NAME.fullmatch(folder.name):
        return True
    return any((folder / name).exists() for name in RUN_FILES)


def read_status(folder: Path) -> RunStatus:
    """One run folder, whatever it holds."""
    facts: dict[str, Any] = {"run": folder.name, "written": written(folder)}
    try:
        run = runs.read_run(folder)
        facts |= _who(run)
        progress, state = _progress(run, facts["model"]), _state(run)
        notes = [each["note"] for each in (state, progress) if "note" in each]
        facts |= progress | state | {"note": "; ".join(notes)}
    except Exception as error:  # a foreign folder may hold anything; the page goes on without it
        facts |= {"state": "damaged", "note": _reason(error)}
    return RunStatus(**facts)


def _who(run: Run) -> dict[str, Any]:
    """Which run it says it is. Raises InputError, KeyError, TypeError or ValueError if it is not
    one of ours."""
    if not isinstance(run.config, dict) or not isinstance(run.config.get("settings", {}), dict):
        raise InputError("its config.json is not a run's")
    made = run.config["settings"]
    facts = {name: str(run.config[name]) for name in ("study", "setting", "model")}
    if run.config["run"] != run.id:
        raise InputError(f"its config.json is of run {run.config['run']}; rename or remove it")
    return facts | {"seed": int(made["seed"]), "rounds": int(made["rounds"]), "settings": made}


def _progress(run: Run, model: str) -> dict[str, Any]:
    """Its newest row of results; a note where rounds.csv cannot be read."""
    try:
        rounds = run.table("rounds")
        if rounds.empty:
            return {}
        last = rounds[rounds["round"] == rounds["round"].max()]
        original = last[last["condition"] == "original"]
        attacked = last[last["condition"] == "adversarial"]
        own = attacked[attacked["attack"] == model.removeprefix("centralised-")]
        worst = (own if len(own) else attacked).sort_values("uar").iloc[:1]
        facts: dict[str, Any] = {"round": int(last["round"].iloc[0])}
        for name, rows in (("uar", original), ("attacked", worst)):
            facts |= {name: float(rows["uar"].iloc[0])} if len(rows) else {}
        return facts | ({"attack": str(worst["attack"].iloc[0])} if len(worst) else {})
    except KeyError as error:
        return {"note": f"rounds.csv has no column {error}"}
    except (OSError, ValueError, TypeError) as error:
        return {"note": f"rounds.csv: {_reason(error)}"}


def _state(run: Run) -> dict[str, Any]:
    """How far it is: a state, who writes, and a note where there is something to say."""
    if run.complete:
        try:
            with safe_open(run.folder / "model.safetensors", framework="numpy"):
                return {"state": "done"}
        except Exception as error:  # safetensors has an exception of its own
            note = f"model.safetensors: {_reason(error)}; without it the run goes on"
            return {"state": "damaged", "note": note}
    holder = runs.lock_holder(run.folder)
    if holder:
        return {"state": "running", "writer": holder}
    saved = [path.name[6:] for path in (run.folder / "checkpoint").glob("round-*")]
    after = max((int(number) for number in saved if number.isdigit()), default=0)
    note = f"goes on after round {after}" if after else "stopped before its first checkpoint"
    if time.time() - (written(run.folder) or 0) < FRESH:
        note += "; written just now: stopped just now, or at work on another machine"
    return {"state": "stopped", "note": note}


def written(folder: Path) -> float | None:
    """When a file of the run was last written, seconds since 1970; the lock is not counted."""
    times = []
    for path in (*folder.glob("*"), *folder.glob("checkpoint/round-*")):
        try:
            if path.name != ".lock":
                times.append(path.stat().st_mtime)
        except OSError:  # it was renamed or removed just now
            continue
    return max(times, default=None)


def _reason(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, FileNotFoundError):
        return f"{Path(error.filename or 'a file').name} is missing"
    if isinstance(error, JSONDecodeError):
        return f"config.json cannot be read: {error}"
    if isinstance(error, KeyError):
        return f"its config.json has no {error}: not a run's"
    return " ".join(f"{error or type(error).__name__}".split())

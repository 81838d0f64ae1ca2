"""The runs in an outputs folder: how far each is, and what the paper's tables still miss.

Only reads: no lock is taken and no model is loaded, so a training is not disturbed. A folder that
cannot be read is a row with its reason, never an exception.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open

from fedser_utils.analysis.labels import MODEL_NAMES, MODELS, paper_order
from fedser_utils.core import runs
from fedser_utils.core.errors import InputError
from fedser_utils.core.presets import load_settings
from fedser_utils.core.runs import Run
from fedser_utils.core.settings import EMBEDDED, EXECUTION, IDENTITY, ROOT, SYNTHETIC

# the states of a run, of a step of a study, and of tables
DONE, RUNNING, STOPPED = "done", "running", "stopped"
DAMAGED, OUTDATED, MISSING = "damaged", "outdated", "missing"
RECENT = 120  # seconds; such a run may be at work on another machine, whose locks do not show here
RUN_FILES = ("config.json", "rounds.csv", "predictions.parquet", "model.safetensors", "checkpoint")
RUN_NAME = re.compile(r".+-s\d+-[0-9a-f]{8}")
PAPER_MODELS = (*MODELS, "centralised")
TABLES = "tables"
COLUMNS = ["study", "setting", "seed", "item", "state", "round", "rounds", "command"]


@dataclass(frozen=True)
class RunStatus:
    """One run folder. round: the last evaluated of ``rounds``; uar: in percent, of original clips;
    attacked: under the model's attack, or, where it was trained without, the lowest over all;
    attack: which that was; written: when a file was last written, seconds since 1970; note: who
    writes it, or what else matters; settings: those it was made with."""

    run: str
    study: str = ""
    setting: str = ""
    model: str = ""
    seed: int | None = None
    state: str = DAMAGED
    round: int | None = None
    rounds: int | None = None
    uar: float | None = None
    attacked: float | None = None
    attack: str = ""
    written: float | None = None
    note: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)


def find_run_statuses(outputs: str | Path) -> list[RunStatus]:
    """Every run folder in ``outputs``, of all studies: by study, setting, model and seed, and last
    those that do not say it. Empty where there is none, or no such folder."""
    statuses = [read_status(folder) for folder in folders(outputs) if is_run(folder)]
    models = paper_order((status.model for status in statuses), MODEL_NAMES)
    return sorted(
        statuses,
        key=lambda s: (not s.study, s.study, s.setting, models.index(s.model), s.seed or 0, s.run),
    )


def folders(outputs: str | Path) -> list[Path]:
    """The folders in ``outputs`` by name; none if it cannot be read."""
    try:
        return sorted(p for p in Path(outputs).iterdir() if p.is_dir() and p.name[0] != ".")
    except OSError:
        return []


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, or what is left of one, or is named like one."""
    named = RUN_NAME.fullmatch(folder.name)
    return bool(named) or any((folder / name).exists() for name in RUN_FILES)


def read_status(folder: Path) -> RunStatus:
    """The status of one run folder, whatever it holds."""
    files = [path for path in folder.glob("*") if path.name != ".lock"]
    times = map(modified, [*files, *folder.glob("checkpoint/round-*")])
    facts: dict[str, Any] = {"run": folder.name, "written": max(filter(None, times), default=None)}
    try:
        run = runs.read_run(folder)
        facts |= _identity(run)
        state, note = run_state(run)
        if state == STOPPED and time.time() - (facts["written"] or 0) < RECENT:
            note += "; written just now: stopped just now, or at work on another machine"
        results = _newest_results(run, facts["model"])
        notes = filter(None, (note, results.pop("note", "")))
        facts |= results | {"state": state, "note": "; ".join(notes)}
    except Exception as error:  # a foreign folder may hold anything; the page goes on without it
        facts |= {"note": _reason(error)}
    return RunStatus(**facts)


def _identity(run: Run) -> dict[str, Any]:
    """Which run its config.json says it is. Raises InputError, KeyError, TypeError or ValueError
    if it is not one of ours."""
    if not isinstance(run.config, dict) or not isinstance(run.config.get("settings", {}), dict):
        raise InputError("its config.json is not a run's")
    settings = run.config["settings"]
    facts = {name: str(run.config[name]) for name in ("study", "setting", "model")}
    if run.config["run"] != run.id:
        raise InputError(f"its config.json is of run {run.config['run']}; rename or remove it")
    return facts | {n: int(settings[n]) for n in ("seed", "rounds")} | {"settings": settings}


def _newest_results(run: Run, model: str) -> dict[str, Any]:
    """round, uar, attacked and attack of the last evaluation; a note if rounds.csv is damaged."""
    try:
        rounds = run.table("rounds")
        if rounds.empty:
            return {}
        last = rounds[rounds["round"] == rounds["round"].max()]
        facts: dict[str, Any] = {"round": int(last["round"].iloc[0])}
        for row in last[last["condition"] == "original"][:1].itertuples():
            facts["uar"] = float(row.uar)
        attacked = last[last["condition"] == "adversarial"].sort_values("uar")
        trained = attacked[attacked["attack"] == model.removeprefix("centralised-")]
        for row in (trained if len(trained) else attacked)[:1].itertuples():
            facts |= {"attacked": float(row.uar), "attack": str(row.attack)}
        return facts
    except KeyError as error:
        return {"note": f"rounds.csv has no column {error}"}
    except (OSError, ValueError, TypeError) as error:
        return {"note": f"rounds.csv: {_reason(error)}"}


def run_state(run: Run) -> tuple[str, str]:
    """A run's state (done, running, stopped or damaged), and a note on it."""
    if run.complete:
        try:
            with safe_open(run.folder / "model.safetensors", framework="numpy"):
                return DONE, ""
        except Exception as error:  # safetensors raises exceptions that it does not export
            note = f"model.safetensors: {_reason(error)}; without it the run goes on"
            return DAMAGED, note
    if holder := runs.lock_holder(run.folder):
        return RUNNING, holder
    after = checkpoint_round(run)
    return (
        STOPPED,
        f"goes on after round {after}" if after else "stopped before its first checkpoint",
    )


def checkpoint_round(run: Run) -> int:
    """The round of a run's newest checkpoint; 0 if there is none."""
    saved = [
        path.name.removeprefix("round-") for path in (run.folder / "checkpoint").glob("round-*")
    ]
    return max((int(number) for number in saved if number.isdigit()), default=0)


def modified(path: Path) -> float | None:
    """When a file was last written, seconds since 1970; None if it is missing."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _reason(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, FileNotFoundError):
        return f"{Path(error.filename or 'a file').name} is missing"
    if isinstance(error, JSONDecodeError):
        return f"config.json cannot be read: {error}"
    if isinstance(error, KeyError):
        return f"its config.json has no {error}: not a run's"
    return " ".join(f"{error or type(error).__name__}".split())


def missing_results(statuses: Sequence[RunStatus], outputs: str | Path) -> pd.DataFrame:
    """A row for every model of the paper's tables, for each study, setting and seed of which there
    is a run, and one for the study's tables.

    statuses: of ``find_run_statuses``. Columns: study, setting (the digest; "" of the tables),
    seed, item (a model, or ``tables``), state (of the tables done, outdated or missing), round,
    rounds, command (to be given in notebooks/ or, where it is make's, in the repository; "" where
    nothing is left to do).
    """
    rows: list[dict[str, Any]] = []
    for study, of_study in groupby((s for s in statuses if s.settings), lambda s: s.study):
        members, models = list(of_study), []
        for setting, seed in sorted({(s.setting, s.seed or 0) for s in members}):
            group = [s for s in members if s.setting == setting]
            pooled = group[0].settings.get("runtime") != "deployment"  # there, clips never meet
            names = PAPER_MODELS if pooled else MODELS
            models += [_model_row(group, model, seed, outputs) for model in names]
        rows += [*models, {"study": study} | _tables_row(members, models, outputs)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _model_row(
    group: Sequence[RunStatus], model: str, seed: int, outputs: str | Path
) -> dict[str, Any]:
    """A model of one setting, by the run that is furthest, and the command that trains it."""
    order, first = (DONE, RUNNING, STOPPED, DAMAGED), group[0]
    of_model = [s for s in group if (s.model, s.seed) == (model, seed)]
    best = min(of_model, key=lambda s: order.index(s.state), default=None)
    state, command = best.state if best else MISSING, ""
    if state not in (DONE, RUNNING):
        options: dict[str, Any] = {
            "attack": "none" if model in ("nature", "centralised") else model
        }
        options |= {"clients": "pooled"} if model == "centralised" else {}
        options |= ({"seed": seed} if seed else {}) | changed_settings(first.settings)
        command = notebook_command("02_fl_advtrain", first.settings, options, outputs)
    return {
        "study": first.study, "setting": first.setting, "seed": seed, "item": model, "state": state,
        "round": best.round if best else None, "rounds": first.rounds, "command": command,
    }  # fmt: skip


def _tables_row(
    members: Sequence[RunStatus], models: Sequence[Mapping[str, Any]], outputs: str | Path
) -> dict[str, Any]:
    """A study's tables: done if they are younger than all its models."""
    written = modified(Path(outputs) / members[0].study / "table3.csv")
    trained = (modified(Path(outputs) / s.run / "model.safetensors") for s in members)
    facts = {"setting": "", "item": TABLES, "state": OUTDATED if written else MISSING}
    if written and written >= max(filter(None, trained), default=0.0):
        return facts | {"state": DONE, "command": ""}
    settings = members[0].settings
    by_make = any(row["state"] != DONE for row in models)
    by_make = by_make and settings.get("runtime") != "deployment"
    if by_make and not any(changed_settings(s.settings) for s in members):
        return facts | {"command": study_command(settings, outputs)}
    return facts | {"command": notebook_command("05_analysis", settings, {}, outputs)}


def notebook_command(
    notebook: str, settings: Mapping[str, Any], options: Mapping[str, Any], outputs: str | Path
) -> str:
    """papermill's command for a notebook on the settings' preset and corpus."""
    corpus = settings.get("corpus", SYNTHETIC)
    given = {"preset": settings.get("preset", "demo")}
    given |= ({"corpus": corpus} if corpus != SYNTHETIC else {}) | options
    given |= {"outputs": outputs} if _elsewhere(outputs) else {}
    words = [str(word) for pair in given.items() for word in ("-p", *pair)]
    return shlex.join(["papermill", f"{notebook}.ipynb", "out.ipynb", *words])


def study_command(settings: Mapping[str, Any], outputs: str | Path) -> str:
    """The command, given in the repository, that makes whatever a study lacks."""
    preset, corpus = settings.get("preset", "demo"), settings.get("corpus", SYNTHETIC)
    words = ["make", "paper"] if preset == "paper" else ["make", "study", f"PRESET={preset}"]
    words += [f"CORPUS={corpus}"] if corpus != SYNTHETIC else []
    if _elsewhere(outputs):  # a relative folder is meant from notebooks/, where the page is made
        words += [f"OUTPUTS={os.path.normpath(Path('notebooks') / outputs)}"]
    return shlex.join(words)


def _elsewhere(outputs: str | Path) -> bool:
    return Path(outputs).resolve() != ROOT / "outputs"


def changed_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change a result and are not as their preset has them, without those that
    tell a study's runs apart. Empty where the preset is not known here."""
    named, embedded = settings.get("log_mel"), settings.get("corpus") in EMBEDDED
    try:
        preset = load_settings(str(settings.get("preset")), log_mel=named).values()
    except InputError:
        return {}
    names = preset.keys() - {*EXECUTION, *IDENTITY, "preset", "corpus"}
    changed = {n: v for n, v in settings.items() if n in names and v not in (None, preset[n])}
    return changed if embedded or named in (None, "speech") else {"log_mel": named} | changed

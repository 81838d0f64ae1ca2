"""What the paper's tables still need: the four models and the centralised one of every study, the
tables made from them, and the command that makes what is not there."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from fedser_utils.analysis.tables import MODELS
from fedser_utils.core.errors import InputError
from fedser_utils.core.settings import EMBEDDED, EXECUTION, IDENTITY, ROOT, SYNTHETIC, load_settings
from fedser_utils.workbook.study.run_status import RunStatus

WANTED = (*MODELS, "centralised")
TABLES = "tables"
COLUMNS = ["study", "setting", "seed", "item", "state", "round", "rounds", "command"]
_BEST = ("done", "running", "stopped", "damaged")


def missing_results(seen: Sequence[RunStatus], outputs: str | Path) -> pd.DataFrame:
    """A row for every model that the paper's tables need, for each study, setting and seed of which
    there is a run, and one for the study's tables.

    seen: as ``run_status.look`` gives them. Columns: study, setting (the digest; "" of the tables),
    seed, item (a model, or ``tables``), state (done, running, stopped, damaged, missing; of the
    tables also outdated), round, rounds, command (to be given in notebooks/ or, where it is make's,
    in the repository; "" where nothing is left to do).
    """
    known = [each for each in seen if each.settings]
    rows: list[dict[str, Any]] = []
    for study, of_study in groupby(known, lambda s: s.study):
        own = list(of_study)
        for _, group in groupby(own, lambda s: s.setting):
            members = list(group)
            for seed in sorted({s.seed or 0 for s in members}):
                rows += _models(members, seed, outputs)
        rows.append({"study": study, "setting": "", "item": TABLES} | _tables(own, rows, outputs))
    return pd.DataFrame(rows, columns=COLUMNS)


def _models(group: Sequence[RunStatus], seed: int, outputs: str | Path) -> Iterable[dict[str, Any]]:
    """The rows of one setting and seed."""
    first = group[0]
    for model in WANTED:
        if model == "centralised" and first.settings.get("runtime") == "deployment":
            continue  # the clients keep their recordings
        own = [s for s in group if (s.model, s.seed) == (model, seed)]
        best = min(own, key=lambda s: _BEST.index(s.state), default=None)
        state = best.state if best else "missing"
        yield {
            "study": first.study,
            "setting": first.setting,
            "seed": seed,
            "item": model,
            "state": state,
            "round": best.round if best else None,
            "rounds": first.rounds,
            "command": ""
            if state in ("done", "running")
            else training_command(first.settings, model, seed, outputs),
        }


def _tables(
    own: Sequence[RunStatus], rows: Sequence[Mapping[str, Any]], outputs: str | Path
) -> dict[str, Any]:
    """State and command of a study's tables: done if they are younger than all its models."""
    study, settings = own[0].study, own[0].settings
    made = _changed_at(Path(outputs) / study / "table3.csv")
    models = [_changed_at(Path(outputs) / s.run / "model.safetensors") for s in own]
    if made and made >= max((time for time in models if time), default=0.0):
        return {"state": "done", "command": ""}
    trained = all(row["state"] == "done" for row in rows if row["study"] == study)
    whole = not trained and settings.get("runtime") != "deployment"
    command = (
        study_command(settings, outputs)
        if whole and not any(differences(s.settings) for s in own)
        else notebook_command("05_analysis", settings, {}, outputs)
    )
    return {"state": "outdated" if made else "missing", "command": command}


def _changed_at(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def training_command(
    settings: Mapping[str, Any], model: str, seed: int, outputs: str | Path
) -> str:
    """The command, given in notebooks/, that trains ``model`` as ``settings`` have it otherwise."""
    pooled = model.startswith("centralised")
    attack = model.removeprefix("centralised").removeprefix("-")
    options = {"attack": "none" if attack in ("nature", "") else attack}
    options |= {"clients": "pooled"} if pooled else {}
    options |= {"seed": seed} if seed else {}
    return notebook_command("02_fl_advtrain", settings, options | differences(settings), outputs)


def notebook_command(
    notebook: str, settings: Mapping[str, Any], options: Mapping[str, Any], outputs: str | Path
) -> str:
    """papermill's command for a notebook on the settings' preset and corpus."""
    given = {"preset": settings.get("preset", "demo")}
    if settings.get("corpus", SYNTHETIC) != SYNTHETIC:
        given["corpus"] = settings["corpus"]
    given |= options
    given |= {"outputs": Path(outputs).resolve()} if _elsewhere(outputs) else {}
    words = [str(word) for pair in given.items() for word in ("-p", *pair)]
    return shlex.join(["papermill", f"{notebook}.ipynb", "out.ipynb", *words])


def study_command(settings: Mapping[str, Any], outputs: str | Path) -> str:
    """The command, given in the repository, that makes whatever a study lacks."""
    preset, corpus = settings.get("preset", "demo"), settings.get("corpus", SYNTHETIC)
    words = ["make", "paper"] if preset == "paper" else ["make", "study", f"PRESET={preset}"]
    words += [f"CORPUS={corpus}"] if corpus != SYNTHETIC else []
    words += [f"OUTPUTS={Path(outputs).resolve()}"] if _elsewhere(outputs) else []
    return shlex.join(words)


def _elsewhere(outputs: str | Path) -> bool:
    return Path(outputs).resolve() != ROOT / "outputs"


def differences(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that change a result and are not as their preset has them, without those that
    tell a study's runs apart. Empty where the preset is not known here."""
    named = settings.get("log_mel")
    try:
        preset = load_settings(str(settings.get("preset")), log_mel=named).values()
    except InputError:
        return {}
    skipped = {*EXECUTION, *IDENTITY, "preset", "corpus"}
    alone = settings.get("corpus") in EMBEDDED or named in (None, "speech")
    return ({} if alone else {"log_mel": named}) | {
        name: value
        for name, value in settings.items()
        if name in preset.keys() - skipped and value is not None and value != preset[name]
    }

"""Presets: settings by name, from ``notebooks/presets/*.yaml``; and the list of all settings.

``python -m fedser_utils.core.presets > docs/settings.md`` writes that list (``make docs``).
"""

from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

import yaml

from fedser_utils.core.errors import choose
from fedser_utils.core.settings import ROOT, Settings

PRESETS = ROOT / "notebooks" / "presets"
PAGE_SECTION = "notebooks"  # of a preset: parameters of notebooks that are no settings of a run
LISTED = ("demo", "smoke", "paper")  # presets in docs/settings.md
GROUPS = {  # headings of docs/settings.md, by the first setting below each
    "preset": "What is trained, on what",
    "reader": "The clips",
    "log_mel": "The log-Mel image",
    "clients": "The federation",
    "local_epochs": "A client's training",
    "epsilon": "The attacks, in training and evaluation alike, and the randomisation",
    "eval_every": "Evaluation",
    "checkpoint_every": "How and where it is computed",
}


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_settings(preset: str | None = None, **parameters: Any) -> Settings:
    """Return the preset's settings, with the parameters that are not None in their place.

    Raises InputError for an unknown preset or parameter, and for a value out of range.
    """
    preset = choose("preset", "demo" if preset is None else preset, preset_names())
    values = _read(preset)
    values.pop(PAGE_SECTION, None)
    given = {name: value for name, value in parameters.items() if value is not None}
    known = sorted(spec.name for spec in fields(Settings))
    for name in [*values, *given]:
        choose("parameter", name, known, listed="in docs/settings.md")
    settings = Settings(**(values | given | {"preset": preset}))
    object.__setattr__(settings, "explicit", frozenset(given))
    return settings


def page_defaults(preset: str) -> dict[str, Any]:
    """Return the values that the preset has for parameters of notebooks, by name."""
    return _read(preset).get(PAGE_SECTION, {})


def settings_page() -> str:
    """Return docs/settings.md: every setting with what it takes, its default, and presets."""
    presets = {name: _read(name) for name in LISTED}
    lines = [
        "# Settings",
        "",
        "Made by `make docs` from `fedser_utils/core/settings.py` and `notebooks/presets`.",
        "Every setting can be given to every notebook, also where its parameters cell does not",
        "name it: `papermill 02_fl_advtrain.ipynb out.ipynb -p client_state reset`.",
        "An empty cell of a preset means the default.",
    ]
    for spec in fields(Settings):
        if spec.name in GROUPS:
            lines += ["", f"## {GROUPS[spec.name]}", "", *_header("setting", "takes", "default")]
        values = [_shown(presets[name].get(spec.name, "")) for name in LISTED]
        cells = [f"`{spec.name}`", _takes(spec), _shown(spec.default), *values]
        lines.append(_row(*cells, spec.metadata["help"]))
    lines += ["", "## Parameters of notebooks", ""]
    lines += ["Each notebook's parameters cell says what they mean.", "", *_header("parameter")]
    for name in presets["paper"][PAGE_SECTION]:
        values = [_shown(presets[preset][PAGE_SECTION].get(name, "")) for preset in LISTED]
        lines.append(_row(f"`{name}`", *values))
    return "\n".join(lines) + "\n"


def _header(*first: str) -> list[str]:
    names = [*first, *LISTED, *(["meaning"] if len(first) > 1 else [])]
    return [_row(*names), _row(*["---"] * len(names))]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value).removeprefix(f"{ROOT}/")


def _takes(spec: Field) -> str:
    """What a setting may be, in words."""
    if "choices" in spec.metadata:
        return ", ".join(spec.metadata["choices"])
    if "range" not in spec.metadata:
        return "text"
    bounds = spec.metadata["range"]
    word = "whole number" if bounds["type"] is int else "number"
    text = f"{word} {'>' if bounds.get('above') else '>='} {bounds['low']:g}"
    return text if bounds["high"] is None else f"{text}, <= {bounds['high']:g}"


def _read(preset: str) -> dict[str, Any]:
    return yaml.safe_load((PRESETS / f"{preset}.yaml").read_text()) or {}


if __name__ == "__main__":
    print(settings_page(), end="")

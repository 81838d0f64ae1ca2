"""The settings of a notebook: its parameters cell, and what papermill injects after it."""

from __future__ import annotations

import ast
import logging
import sys
from collections.abc import Mapping
from dataclasses import fields
from types import SimpleNamespace
from typing import Any

from fedser_utils.core.errors import InputError, choose, number
from fedser_utils.core.presets import load_settings, page_defaults
from fedser_utils.core.settings import Settings

LISTED = "in docs/settings.md and by papermill --help-notebook"


def notebook_settings(namespace: Mapping[str, Any]) -> tuple[Settings, SimpleNamespace]:
    """Return a notebook's settings, and those of its parameters that are no settings of a run.

    The first code cell of a notebook calls ``settings, page = notebook_settings(globals())``.

    namespace: the notebook's ``globals()``. Its parameters cell and papermill's injected cell both
    start with ``# Parameters``. Every field of Settings may be injected, also one that the cell
    does not name. Names of the cell that are no fields are the page's: their kinds are their
    annotations (bool, str, int, float, list[int], list[float], list[str]), and one that is None
    is as the preset's section ``notebooks`` says. Whole numbers are at least 1 and real ones above
    0, unless the cell has a value of 0 or less for it.

    From here on an InputError ends a cell with one line and without a traceback, and the
    package's log goes to the cell's output.

    Raises InputError, in one line, for an unknown name and for a value of another kind.
    """
    if "get_ipython" in namespace:
        _prepare_shell(namespace["get_ipython"]())
    cell, *injected = (text for text in namespace["In"] if text.startswith("# Parameters"))
    declared, known = _assignments(cell), {spec.name for spec in fields(Settings)}
    given = declared.keys() | {name for text in injected for name in _assigned(text)}
    for name in sorted(given):
        choose("parameter", name, sorted(declared.keys() | known), listed=LISTED)
    settings = load_settings(**{name: namespace[name] for name in given & known})
    defaults = page_defaults(settings.preset)
    values = {}
    for name in declared.keys() - known:
        value = defaults.get(name) if namespace[name] is None else namespace[name]
        values[name] = _checked(name, value, *declared[name])
    return settings, SimpleNamespace(**values)


def _assigned(cell: str) -> set[str]:
    """The names that a cell assigns to; papermill writes NaN as a call, which is no literal."""
    nodes = [node for node in ast.parse(cell).body if isinstance(node, ast.Assign | ast.AnnAssign)]
    targets = [t for n in nodes for t in (n.targets if isinstance(n, ast.Assign) else [n.target])]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _assignments(cell: str) -> dict[str, tuple[str, Any]]:
    """The names that a cell assigns -> their annotation and value."""
    values = {}
    for node in ast.parse(cell).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            values[node.target.id] = (ast.unparse(node.annotation), ast.literal_eval(node.value))
        elif isinstance(node, ast.Assign):
            value = ast.literal_eval(node.value)
            values |= {t.id: ("", value) for t in node.targets if isinstance(t, ast.Name)}
    return values


def _checked(name: str, value: Any, kind: str, default: Any) -> Any:
    """``value``, or InputError if it is not of the kind that the cell's annotation names."""
    if kind.startswith("list["):
        one = kind.removeprefix("list[").removesuffix("]")
        if not isinstance(value, list) or not value:
            such = "names, such as [a, b]" if one == "str" else "numbers, such as [1, 2]"
            raise InputError(f"{name} {value!r} must be a list of {such}")
        defaults = default if isinstance(default, list) else [default]
        smallest = min((v for v in defaults if isinstance(v, int | float)), default=None)
        return [_checked(name, item, one, smallest) for item in value]
    if kind == "bool":
        return choose(name, value, (True, False))
    if kind == "str":
        if not isinstance(value, str) or not value:
            raise InputError(f"{name} {value!r} must be a text")
        return value
    free = isinstance(default, int | float) and default <= 0
    if kind == "int":
        return number(name, value, low=None if free else 1)
    if kind == "float":
        return number(name, value, type=float, low=None if free else 0, above=not free)
    raise TypeError(f"parameter {name} is annotated {kind!r}")


def _prepare_shell(shell: Any) -> None:
    """Show InputErrors as one line, and the package's log as ordinary output."""
    shell.set_custom_exc((InputError,), _show_one_line)
    log = logging.getLogger("fedser_utils")
    if not log.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def _show_one_line(shell: Any, etype: type, value: Exception, trace: Any, **options: Any) -> None:
    shell._showtraceback(etype, value, [f"InputError: {value}"])

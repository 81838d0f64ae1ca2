"""InputError and the checks that raise it: one line with the value and the choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any


class InputError(ValueError):
    """A user's input cannot be used; the text is one line with the value and the choices."""


def choose(name: str, value: Any, choices: Sequence[Any], *, listed: str = "") -> Any:
    """Return ``value``, which must be one of the choices.

    Raises InputError with all choices, or, where ``listed`` says where to read them ("in
    docs/settings.md"), with the one that is spelt most like it.
    """
    if value in choices:
        return value
    if not listed:
        names = ", ".join(map(str, choices))
        raise InputError(f"{name} {value!r} is unknown; choose from {names}")
    near = get_close_matches(str(value), map(str, choices), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"{name} {value!r} is unknown; {hint}all are listed {listed}")


def number(
    name: str,
    value: Any,
    *,
    type: type = int,
    low: float | None = 1,
    high: float | None = None,
    above: bool = False,
) -> Any:
    """Return ``value`` as a finite number of ``type`` in [low, high], or in (low, high] with
    ``above``. Raises InputError if it is none."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18
    fits = fits and (type is float or int(value) == value)
    if fits and low is not None:
        fits = value > low or (value == low and not above)
    if not fits or (high is not None and value > high):
        word = "a whole number" if type is int else "a number"
        bounds = [] if low is None else [f"{'>' if above else '>='} {low:g}"]
        bounds += [] if high is None else [f"<= {high:g}"]
        raise InputError(f"{name} {value!r} must be {word} {' and '.join(bounds)}".rstrip())
    return type(value)


@contextmanager
def refusals() -> Iterator[None]:
    """In a script: end with one line instead of a traceback where InputError is raised."""
    try:
        yield
    except InputError as error:
        raise SystemExit(str(error)) from None

"""What is said to a user whose input cannot be used: one line with the value and the choices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any


class InputError(ValueError):
    """What a user gave cannot be used; the text is one line with the value and the choices."""


def choose(name: str, value: Any, choices: Sequence[Any], *, listed: str = "") -> Any:
    """``value`` if it is among the choices, else InputError with all of them; or, where they are
    many and ``listed`` says where they can be read, with the one that is spelt most like it."""
    if value in choices:
        return value
    if not listed:
        every = ", ".join(map(str, choices))
        raise InputError(f"{name} {value!r} is unknown; choose from {every}")
    near = get_close_matches(str(value), map(str, choices), n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"{name} {value!r} is unknown; {meant}all are listed by {listed}")


def number(
    name: str,
    value: Any,
    *,
    type: type = int,
    low: float = 1,
    high: float | None = None,
    above: bool = False,
) -> Any:
    """``value`` as a finite number of ``type`` from ``low`` (or, with ``above``, above it) to
    ``high``, else InputError."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18
    fits = fits and (type is float or int(value) == value)
    if not fits or value < low or (above and value == low) or (high is not None and value > high):
        word = "a whole number" if type is int else "a number"
        span = f"{'>' if above else '>='} {low:g}" + (f" and <= {high:g}" if high else "")
        raise InputError(f"{name} {value!r} must be {word} {span}")
    return type(value)


@contextmanager
def refusals() -> Iterator[None]:
    """Inside a notebook: turn an InputError into a one-line SystemExit."""
    try:
        yield
    except InputError as error:
        raise SystemExit(str(error)) from None

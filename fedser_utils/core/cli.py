"""Commands: a parser and a runner that report an error in one line and in the exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from fedser_utils.core.errors import InputError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises InputError instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def run(
    parser: Parser,
    work: Callable[..., None],
    arguments: Sequence[str] | None = None,
    *,
    expected: tuple[type[Exception], ...] = (OSError, RuntimeError),
) -> int:
    """Call ``work`` with the parsed arguments as keywords and return the command's exit code.
    expected: exceptions that, as InputError, end it in one line and not in a traceback."""
    try:
        work(**vars(parser.parse_args(arguments)))
    except (InputError, *expected) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0

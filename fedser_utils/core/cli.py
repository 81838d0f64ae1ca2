"""A command's manners: what it cannot use it says in one line, and its exit code tells."""

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


def run(parser: Parser, work: Callable[..., None], arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, do the work with them as keywords. Returns the command's exit code."""
    try:
        work(**vars(parser.parse_args(arguments)))
    except (InputError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0

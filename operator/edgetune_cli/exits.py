"""Exit codes of the command line."""

from enum import IntEnum
from typing import NoReturn

import typer

from edgetune_cli.output import say


class ExitStatus(IntEnum):
    """Exit codes of `edgetune`."""

    OK = 0
    NEGATIVE = 1
    """The command ran, and its answer is no: not published, not verified, or not removed."""

    UNUSABLE_INPUT = 2
    BUSY = 3
    STOPPED = 130


def fail(message: str, status: ExitStatus) -> NoReturn:
    """Print an error message to standard error and exit."""
    say(message, fg=typer.colors.RED, err=True)
    raise typer.Exit(status)

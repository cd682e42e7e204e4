"""How the command line ends."""

from enum import IntEnum
from typing import NoReturn

import typer


class ExitStatus(IntEnum):
    """Exit codes of `edgetune`."""

    OK = 0
    NEGATIVE = 1
    """The answer is no: the model was not published, is not what was written, or was not removed."""

    UNUSABLE_INPUT = 2
    BUSY = 3
    STOPPED = 130


def fail(message: str, status: ExitStatus) -> NoReturn:
    """Say on standard error what is wrong, and end."""
    typer.secho(message, fg=typer.colors.RED, err=True)
    raise typer.Exit(status)

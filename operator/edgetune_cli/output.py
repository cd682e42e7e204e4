"""The output of the command line: everything that is printed goes through here, where `escaped` makes it safe."""

import subprocess
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from edgetune_contract.values.text import escaped


class SafeConsole(Console):
    """A console that prints texts as they are, without markup, and escapes what a terminal would obey.

    Names, messages, scores and answers come from files and clusters that others write to.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(soft_wrap=True, markup=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts and tables. The cells of a table are escaped first, so that its columns have their width."""
        for table in (each for each in objects if isinstance(each, Table)):
            for column in table.columns:
                column._cells = [escaped(cell) if isinstance(cell, str) else cell for cell in column._cells]
        super().print(*objects, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render texts, tables and progress; the escapes of their own styles are no part of a segment's text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escaped(segment.text), segment.style)


def say(text: str = "", *, nl: bool = True, err: bool = False, fg: str | None = None) -> None:
    """Print a text; line breaks and tabs stay.

    Args:
        text: what to print.
        nl: end with a line break.
        err: print to standard error.
        fg: colour on a terminal.
    """
    typer.secho(escaped(text), nl=nl, err=err, fg=fg)


def print_output(command: Sequence[str]) -> int:
    """Run a command, print its output line by line as it comes, and return its exit code."""
    sys.stdout.flush()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace") as process:
        for line in process.stdout or ():
            say(line, nl=False)
            sys.stdout.flush()
    return process.returncode

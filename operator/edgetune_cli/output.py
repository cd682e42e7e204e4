"""The output of the command line: everything that is printed goes through here, where `escaped` makes it safe.

Results go to standard output. Problems, notes and progress go to standard error, so that a pipe gets results only.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Column, Table

from edgetune_contract.values.text import escaped
from edgetune_operator.api.yaml_files import yaml_text


class DataFormat(StrEnum):
    """Output format of data."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"


@dataclass
class Verbosity:
    """How much this process prints besides results and problems. The options --quiet and --verbose set it."""

    quiet: bool = False
    """Print no progress and no notes."""

    verbose: bool = False
    """Also print what happens inside: the logs of stages, the calls of kubectl."""


verbosity = Verbosity()


class SafeConsole(Console):
    """A console that prints texts as they are, without markup, and escapes what a terminal would obey.

    Names, messages, scores and answers come from files and clusters that others write to.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(soft_wrap=True, markup=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts and tables. The cells of a table are escaped first, so that its columns have their width.

        A table that is wider than the terminal is wrapped between words, never within one.
        """
        for table in (each for each in objects if isinstance(each, Table)):
            for column in table.columns:
                column._cells = [escaped(cell) if isinstance(cell, str) else cell for cell in column._cells]
                column.min_width = _least_width(column)
        super().print(*objects, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render texts, tables and progress; the escapes of their own styles are no part of a segment's text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(escaped(segment.text), segment.style)


def _least_width(column: Column) -> int:
    """Cells that the widest word of a column needs, or its widest text if it is not wrapped."""
    texts = [str(each) for each in (column.header, *column._cells)]
    parts = texts if column.no_wrap else [word for text in texts for word in text.split()]
    return max(map(cell_len, parts), default=0)


def say(text: str = "", *, nl: bool = True, err: bool = False, fg: str | None = None) -> None:
    """Print a text; line breaks and tabs stay.

    Args:
        text: what to print.
        nl: end with a line break.
        err: print to standard error.
        fg: colour on a terminal.
    """
    is_plain = fg is None or os.environ.get("NO_COLOR")  # rich heeds it too
    typer.echo(escaped(text) if is_plain else typer.style(escaped(text), fg=fg), nl=nl, err=err)


def note(text: str, *, fg: str | None = None) -> None:
    """Print something that is neither a result nor a problem, unless --quiet."""
    if not verbosity.quiet:
        say(text, err=True, fg=fg)


def detail(text: str) -> None:
    """Print what happens inside, with --verbose only."""
    if verbosity.verbose:
        say(text, err=True, fg=typer.colors.BRIGHT_BLACK)


def working(text: str) -> AbstractContextManager[object]:
    """On a terminal, show that something takes a while, unless --quiet."""
    return contextlib.nullcontext() if verbosity.quiet else SafeConsole(stderr=True).status(text)


@contextlib.contextmanager
def shown_logging() -> Iterator[None]:
    """Print log messages of this process to standard error, for --verbose."""
    handler = logging.StreamHandler()
    handler.setFormatter(_SafeFormatter("%(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("edgetune_jobs", "edgetune_operator")]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.setLevel(logging.NOTSET)
            logger.removeHandler(handler)


class _SafeFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The message, with escapes for what a terminal would obey."""
        return escaped(super().format(record))


def print_data(value: Any, output: DataFormat, lines: Iterable[str] = ()) -> None:
    """Print data in the wanted format.

    Args:
        value: the data as plain values, for JSON and YAML.
        output: the format.
        lines: the data as text.
    """
    if output is DataFormat.JSON:
        say(json.dumps(value, indent=2, ensure_ascii=False))
    elif output is DataFormat.YAML:
        say(yaml_text(value), nl=False)
    else:
        for line in lines:
            say(line)


def print_output(command: Sequence[str]) -> int:
    """Run a command, print its output line by line as it comes, and return its exit code."""
    sys.stdout.flush()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", errors="replace") as process:
        for line in process.stdout or ():
            say(line, nl=False)
            sys.stdout.flush()
    return process.returncode

"""`edgetune validate`: every problem of the LoraFineTunes of files, folders and standard input."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any

import typer

from edgetune_cli.documents.many import Contents, FileObject, PlacedProblem, read_contents
from edgetune_cli.documents.single import UnusableFile
from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.output import DataFormat, print_data
from edgetune_contract.values.text import escaped_line
from edgetune_operator.api import names

Filenames = Annotated[
    list[str],
    typer.Option(
        "--filename",
        "-f",
        help="YAML file, folder, or - for standard input; repeat it for several.",
        show_default=False,
    ),
]


class ValidateFormat(StrEnum):
    """Output format of `edgetune validate`."""

    TEXT = "text"
    JSON = "json"
    YAML = "yaml"
    GITHUB = "github"


def validate(
    filename: Filenames,
    output: Annotated[
        ValidateFormat, typer.Option("--output", "-o", help="Output format; github annotates the lines of a commit.")
    ] = ValidateFormat.TEXT,
) -> None:
    """Check the specs of all LoraFineTunes without reading any data, and print every problem with its line and path.

    A folder is read with all folders in it. Documents of other kinds are skipped. A file:// path with nothing behind it
    is a warning. Exits with 0 if all LoraFineTunes are valid, 1 if one is not, or 2 if a file cannot be read or there
    is no LoraFineTune.
    """
    contents = read_files(filename)
    if output is ValidateFormat.GITHUB:
        print_data(None, DataFormat.TEXT, map(escaped_line, _github(contents)))
    else:
        print_data(_json(contents), DataFormat(output.value), map(escaped_line, _text(contents)))
    raise typer.Exit(ExitStatus.NEGATIVE if contents.problems else ExitStatus.OK)


def read_files(filenames: list[str]) -> Contents:
    """The contents of files; exits with an error if one cannot be read, or if there is no LoraFineTune."""
    try:
        contents = read_contents(filenames)
    except UnusableFile as error:
        fail(str(error), ExitStatus.UNUSABLE_INPUT)
    if not contents.objects and not contents.unreadable:
        where = ", ".join(filenames)
        fail(f"{where}: no {names.KIND} among {_documents(contents.skipped)}", ExitStatus.UNUSABLE_INPUT)
    return contents


def _documents(count: int) -> str:
    return "1 document" if count == 1 else f"{count} documents"


def _text(contents: Contents) -> Iterator[str]:
    for each in contents.objects:
        if not each.problems:
            yield f"{each.file}:{each.line}: {names.KIND} {each.title} is valid"
        for problem in each.problems:
            yield f"{problem.file}:{problem.line}: {_sentence(each, problem)}"
        for warning in each.warnings:
            yield f"{warning.file}:{warning.line}: warning: {_sentence(each, warning)}"
    yield from map(str, contents.unreadable)
    yield _summary(contents)


def _sentence(found: FileObject, problem: PlacedProblem) -> str:
    return ": ".join(filter(None, (found.title, problem.path, problem.message)))


def _summary(contents: Contents) -> str:
    invalid = sum(bool(each.problems) for each in contents.objects)
    parts = [f"{len(contents.objects) - invalid} valid", f"{invalid} invalid"]
    if contents.unreadable:
        parts.append(f"{len(contents.unreadable)} unreadable")
    if contents.skipped:
        parts.append(f"{_documents(contents.skipped)} of other kinds skipped")
    return ", ".join(parts)


def _json(contents: Contents) -> dict[str, Any]:
    return {
        "objects": [
            {
                "file": each.file,
                "line": each.line,
                "namespace": each.key.namespace,
                "name": each.key.name,
                "valid": not each.problems,
                "problems": [_problem(problem) for problem in each.problems],
                "warnings": [_problem(warning) for warning in each.warnings],
            }
            for each in contents.objects
        ],
        "unreadable": [{"file": problem.file, **_problem(problem)} for problem in contents.unreadable],
        "skipped": contents.skipped,
    }


def _problem(problem: PlacedProblem) -> dict[str, Any]:
    return {"line": problem.line, "path": problem.path, "message": problem.message}


def _github(contents: Contents) -> Iterator[str]:
    """Workflow commands, which GitHub Actions shows beside the lines of a commit, and the summary."""
    for each in contents.objects:
        for problem in each.problems:
            yield _annotation(problem, _sentence(each, problem))
        for warning in each.warnings:
            yield _annotation(warning, _sentence(each, warning), level="warning")
    for problem in contents.unreadable:
        yield _annotation(problem, problem.message)
    yield _summary(contents)


def _annotation(problem: PlacedProblem, message: str, level: str = "error") -> str:
    return f"::{level} file={_escaped(problem.file, ':,')},line={problem.line}::{_escaped(message)}"


def _escaped(text: str, separators: str = "") -> str:
    """A value of a workflow command, so that no name or message is taken as another command."""
    return "".join(f"%{ord(each):02X}" if each in f"%\r\n{separators}" else each for each in text)

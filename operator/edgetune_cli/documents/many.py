"""All LoraFineTunes of files, folders and standard input, each with its problems and their lines."""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from edgetune_cli.documents.single import UnusableFile, missing_paths, non_string_key, resolve_relative_uris
from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.api.spec_check import check_object
from edgetune_operator.api.yaml_files import OutOfBounds, YamlDocument, parse_yaml, split_yaml

STANDARD_INPUT = "-"
SHOWN_INPUT = "stdin"
_SUFFIXES = (".yaml", ".yml", ".json")
# A rendered folder may have CustomResourceDefinitions of many megabytes; only documents of this group are parsed.
_MAX_BYTES = 64 * 2**20
_OF_THIS_GROUP = re.compile(rf"apiVersion[\"']?\s*:\s*[\"']?{re.escape(names.GROUP)}/")
_CONTENT = re.compile(r"^[ \t]*[^#%\s]", re.MULTILINE)


@dataclass(frozen=True)
class PlacedProblem:
    """One thing that is wrong in a file."""

    file: str
    line: int
    """From 1."""

    path: str
    """Field path such as spec.lora.rank; empty for a document that cannot be read."""

    message: str

    def __str__(self) -> str:
        return ": ".join(filter(None, (f"{self.file}:{self.line}", self.path, self.message)))


@dataclass(frozen=True)
class FileObject:
    """One LoraFineTune as a file has it, valid or not."""

    file: str
    line: int
    """Line at which it begins, from 1."""

    document: Mapping[str, Any]
    """The object. Paths relative to the file's folder are file:// URIs."""

    problems: tuple[PlacedProblem, ...]
    warnings: tuple[PlacedProblem, ...] = ()
    """What makes a run here fail, in a valid object: paths with nothing behind them."""

    @property
    def key(self) -> Key:
        """Namespace and name; of an invalid object as far as they are there."""
        metadata = self.document.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        return Key(str(metadata.get("namespace", "default")), str(metadata.get("name", "")))

    @property
    def title(self) -> str:
        """Name for messages, with the namespace if the file has one."""
        metadata = self.document.get("metadata")
        has_namespace = isinstance(metadata, dict) and metadata.get("namespace") is not None
        return f"{self.key.namespace}/{self.key.name}" if has_namespace else self.key.name


@dataclass(frozen=True)
class Contents:
    """What is in files."""

    objects: tuple[FileObject, ...]
    unreadable: tuple[PlacedProblem, ...]
    """Documents that name this API, but are not YAML within bounds."""

    skipped: int
    """Number of documents of other kinds."""

    @property
    def problems(self) -> tuple[PlacedProblem, ...]:
        """All problems."""
        return (*self.unreadable, *(problem for each in self.objects for problem in each.problems))


def read_contents(sources: Sequence[str]) -> Contents:
    """All LoraFineTunes of these files and folders, in order. Documents of other kinds are only counted.

    Args:
        sources: files, folders, or - for standard input. Of a folder, all .yaml, .yml and .json files below it are
            read, except those whose name, or whose folder's name, begins with a dot.

    Raises:
        UnusableFile: a file or folder does not exist or cannot be read, or is not UTF-8.
    """
    objects: list[FileObject] = []
    unreadable: list[PlacedProblem] = []
    skipped = 0
    for source in sources:
        for file, text in _texts(source):
            folder = Path() if source == STANDARD_INPUT else Path(file).parent
            for line, part in split_yaml(text):
                if not _names_this_api(part):
                    skipped += _CONTENT.search(part) is not None
                    continue
                try:
                    found, others = _objects(file, folder, parse_yaml(part, line))
                except (yaml.YAMLError, RecursionError, ValueError) as error:
                    unreadable.append(_unreadable(file, line, error))
                    continue
                objects += found
                skipped += others
    return Contents(tuple(objects), tuple(unreadable), skipped)


def _texts(source: str) -> Iterator[tuple[str, str]]:
    """Names and contents of the files of a source."""
    if source == STANDARD_INPUT:
        yield SHOWN_INPUT, _decoded(Path(SHOWN_INPUT), sys.stdin.buffer.read(_MAX_BYTES + 1))
        return
    path = Path(source)
    try:
        for file in _files_below(path) if path.is_dir() else (path,):
            with file.open("rb") as stream:
                yield str(file), _decoded(file, stream.read(_MAX_BYTES + 1))
    except OSError as error:
        raise UnusableFile(Path(error.filename or path), (error.strerror or str(error),)) from None


def _files_below(folder: Path) -> Iterator[Path]:
    def stop(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.endswith(_SUFFIXES) and not name.startswith("."):
                yield Path(place, name)


def _decoded(path: Path, content: bytes) -> str:
    if len(content) > _MAX_BYTES:
        raise UnusableFile(path, (f"has more than {_MAX_BYTES:,} bytes",))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableFile(path, (f"is not valid UTF-8 at byte {error.start}",)) from None


def _names_this_api(text: str) -> bool:
    """Whether a document may be a LoraFineTune, also one whose kind or apiVersion is misspelled."""
    return names.KIND in text or _OF_THIS_GROUP.search(text) is not None


def _is_of_this_api(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return value.get("kind") == names.KIND or str(value.get("apiVersion")).startswith(f"{names.GROUP}/")


def _objects(file: str, folder: Path, document: YamlDocument | None) -> tuple[list[FileObject], int]:
    """The LoraFineTunes of a document, which may be a list of objects, and the number of other objects."""
    if document is None:
        return [], 0
    value, parts = document.value, {"": document.value}
    if isinstance(value, dict) and str(value.get("kind")).endswith("List") and isinstance(value.get("items"), list):
        parts = {f"items[{index}]": item for index, item in enumerate(value["items"])}
    ours = {path: item for path, item in parts.items() if _is_of_this_api(item)}
    return [_object(file, folder, document, *each) for each in ours.items()], len(parts) - len(ours)


def _object(file: str, folder: Path, document: YamlDocument, prefix: str, value: dict[str, Any]) -> FileObject:
    def placed(path: str, message: str) -> PlacedProblem:
        return PlacedProblem(file, document.line_of(".".join(filter(None, (prefix, path)))), path, message)

    warnings: list[PlacedProblem] = []
    if key := non_string_key(value):
        problems = [placed("", f"key {key} is not a string: quote it")]
    else:
        resolve_relative_uris(value, folder.resolve())
        problems = [placed(problem.path, problem.message) for problem in check_object(value)]
        warnings += [placed(problem.path, problem.message) for problem in missing_paths(value)]
    problems.sort(key=lambda problem: problem.line)
    return FileObject(file, document.line_of(prefix), value, tuple(problems), tuple(warnings))


def _unreadable(file: str, first_line: int, error: Exception) -> PlacedProblem:
    if isinstance(error, OutOfBounds):
        return PlacedProblem(file, first_line, "", str(error))
    mark = getattr(error, "problem_mark", None)
    what = str(getattr(error, "problem", None) or " ".join(str(error).split()))
    return PlacedProblem(file, first_line + (mark.line if mark else 0), "", f"is not valid YAML: {what}")

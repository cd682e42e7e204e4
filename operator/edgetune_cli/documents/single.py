"""The only LoraFineTune of a file, for commands on one object."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from edgetune_contract.values.suggestions import missing_path
from edgetune_operator.api.spec_check import Problem, check_object
from edgetune_operator.api.yaml_files import OutOfBounds, read_yaml, syntax_problem

_URI_FIELDS = (("baseModel",), ("dataset", "train"), ("dataset", "eval"))


class UnusableFile(Exception):
    """A file that does not have exactly one valid object; the message has one line per problem."""

    def __init__(self, path: Path, problems: tuple[Problem | str, ...]) -> None:
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))


def load_object(path: Path) -> dict[str, Any]:
    """The only LoraFineTune of a YAML file, validated. Paths relative to the file's folder become file:// URIs.

    Raises:
        UnusableFile: the file cannot be read, is not YAML, or does not have exactly one valid object.
    """
    documents = _load_documents(path)
    if len(documents) != 1:
        raise UnusableFile(path, (f"has {len(documents)} objects; this command takes exactly one",))
    document = documents[0]
    if key := non_string_key(document):
        raise UnusableFile(path, (f"key {key} is not a string: quote it",))
    resolve_relative_uris(document, path.resolve().parent)
    if problems := check_object(document):
        raise UnusableFile(path, problems)
    return dict(document)


def non_string_key(value: Any) -> str:
    """The first key that is not a string, which JSON does not allow; empty if there is none."""
    if isinstance(value, list):
        return next((key for item in value if (key := non_string_key(item))), "")
    if not isinstance(value, dict):
        return ""
    for key, item in value.items():
        if not isinstance(key, str):
            return str(key)
        if found := non_string_key(item):
            return found
    return ""


def _load_documents(path: Path) -> list[Any]:
    try:
        return [document for document in read_yaml(path) if document is not None]
    except OSError as error:
        raise UnusableFile(path, (error.strerror or str(error),)) from None
    except UnicodeDecodeError as error:
        raise UnusableFile(path, (f"is not valid UTF-8 at byte {error.start}",)) from None
    except OutOfBounds as error:
        raise UnusableFile(path, (str(error),)) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UnusableFile(path, (syntax_problem(error),)) from None


def resolve_relative_uris(document: Any, folder: Path) -> None:
    """Paths without a scheme are valid in local runs only, so they are resolved here and not in the models."""
    for _, node in _sources(document):
        if node["uri"] and "://" not in node["uri"]:
            node["uri"] = (folder / node["uri"]).resolve().as_uri()


def missing_paths(document: Any) -> tuple[Problem, ...]:
    """The file:// URIs of an object, after `resolve_relative_uris`, with no file or folder behind them."""
    problems = []
    for field, node in _sources(document):
        path = Path(unquote(urlsplit(node["uri"]).path)) if node["uri"].startswith("file:///") else None
        if path is not None and not _exists(path):
            message = missing_path(path, path.name, _neighbours(path))
            problems.append(Problem(path=f"spec.{field}.uri", message=message))
    return tuple(problems)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # ValueError: an encoded zero byte
        return False


def _neighbours(path: Path) -> list[str]:
    try:
        return sorted(each.name for each in path.parent.iterdir())
    except (OSError, ValueError):
        return []


def _sources(document: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Paths below spec and nodes of the sources of an object whose uri is a text."""
    for field in _URI_FIELDS:
        node = document.get("spec") if isinstance(document, dict) else None
        for part in field:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get("uri"), str):
            yield ".".join(field), node

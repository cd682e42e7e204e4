"""LoraFineTunes from YAML files that users write."""

from pathlib import Path
from typing import Any

import yaml

from edgetune_operator.api.spec_check import Problem, check_object
from edgetune_operator.api.yaml_files import OutOfBounds, read_yaml

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
    if key := _non_string_key(document):
        raise UnusableFile(path, (f"key {key} is not a string: quote it",))
    _resolve_relative_uris(document, path.resolve().parent)
    if problems := check_object(document):
        raise UnusableFile(path, problems)
    return dict(document)


def _non_string_key(value: Any) -> str:
    """The first key that is not a string, which JSON does not allow; empty if there is none."""
    if isinstance(value, list):
        return next((key for item in value if (key := _non_string_key(item))), "")
    if not isinstance(value, dict):
        return ""
    for key, item in value.items():
        if not isinstance(key, str):
            return str(key)
        if found := _non_string_key(item):
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
        raise UnusableFile(path, (f"is not valid YAML: {' '.join(str(error).split())}",)) from None


def _resolve_relative_uris(document: Any, folder: Path) -> None:
    """Paths without a scheme are valid in local runs only, so they are resolved here and not in the models."""
    for field in _URI_FIELDS:
        node = document.get("spec") if isinstance(document, dict) else None
        for part in field:
            node = node.get(part) if isinstance(node, dict) else None
        uri = node.get("uri") if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(uri, str) and uri and "://" not in uri:
            node["uri"] = (folder / uri).resolve().as_uri()

"""LoraFineTunes from YAML files that users write."""

import re
from pathlib import Path
from typing import Any

import yaml

from edgetune_operator.api.spec_check import Problem, check_object

_MERGE = "tag:yaml.org,2002:merge"
_URI_FIELDS = (("baseModel",), ("dataset", "train"), ("dataset", "eval"))


class UnusableFile(Exception):
    """A file that does not have exactly one valid object; the message has one line per problem."""

    def __init__(self, path: Path, problems: tuple[Problem | str, ...]) -> None:
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))


class _StrictLoader(yaml.SafeLoader):
    """YAML as kubectl reads it: 2e-4 is a number, and duplicate keys are refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key) if isinstance(key, str) else None
        return super().construct_mapping(node, deep)


# YAML 1.1 requires a dot and a sign in numbers with an exponent; YAML 1.2 and JSON do not.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+"), list("-+0123456789")
)


def load_object(path: Path) -> dict[str, Any]:
    """The only LoraFineTune of a YAML file, validated. Paths relative to the file's folder become file:// URIs.

    Raises:
        UnusableFile: the file cannot be read, is not YAML, or does not have exactly one valid object.
    """
    documents = _load_documents(path)
    if len(documents) != 1:
        raise UnusableFile(path, (f"has {len(documents)} objects; this command takes exactly one",))
    document = documents[0]
    try:
        if key := _non_string_key(document):
            raise UnusableFile(path, (f"key {key} is not a string: quote it",))
    except RecursionError:
        raise UnusableFile(path, ("refers to itself by an alias, or is nested too deeply",)) from None
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
        text = path.read_text(encoding="utf-8")
        return [document for document in yaml.load_all(text, _StrictLoader) if document is not None]
    except OSError as error:
        raise UnusableFile(path, (error.strerror or str(error),)) from None
    except UnicodeDecodeError as error:
        raise UnusableFile(path, (f"is not valid UTF-8 at byte {error.start}",)) from None
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

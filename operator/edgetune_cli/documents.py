"""Objects from YAML files, as a user writes them."""

from pathlib import Path
from typing import Any

import yaml

from edgetune_operator.spec_check import Problem, check_object

_URI_FIELDS = (("baseModel",), ("dataset", "train"), ("dataset", "eval"))


class UnusableFile(Exception):
    """A file that holds no valid object; one line a problem."""

    def __init__(self, path: Path, problems: tuple[Problem | str, ...]) -> None:
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML's own loader silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key) if isinstance(key, str) else None
        return super().construct_mapping(node, deep)


def load_object(path: Path) -> dict[str, Any]:
    """The one valid LoraFineTune of a YAML file. Relative paths in it become file:// URIs from the file's folder.

    Raises:
        UnusableFile: the file cannot be read, is not YAML, or does not hold exactly one valid object.
    """
    documents = _load_documents(path)
    if len(documents) != 1:
        raise UnusableFile(path, (f"holds {len(documents)} objects; this command takes one",))
    document = documents[0]
    _resolve_relative_uris(document, path.resolve().parent)
    if problems := check_object(document):
        raise UnusableFile(path, problems)
    return dict(document)


def _load_documents(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        return [document for document in yaml.load_all(text, _StrictLoader) if document is not None]
    except OSError as error:
        raise UnusableFile(path, (error.strerror or str(error),)) from None
    except UnicodeDecodeError as error:
        raise UnusableFile(path, (f"is not UTF-8 at byte {error.start}",)) from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UnusableFile(path, (f"is not valid YAML: {' '.join(str(error).split())}",)) from None


def _resolve_relative_uris(document: Any, folder: Path) -> None:
    """A path without a scheme works in a local run only, so it is resolved here and not in the models."""
    for field in _URI_FIELDS:
        node = document.get("spec") if isinstance(document, dict) else None
        for part in field:
            node = node.get(part) if isinstance(node, dict) else None
        uri = node.get("uri") if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(uri, str) and uri and "://" not in uri:
            node["uri"] = (folder / uri).resolve().as_uri()

"""YAML that users write, read within bounds: a few aliases can repeat more values than fit into memory."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 2**20
MAX_VALUES = 50_000
"""Values of one file, of which those behind an alias count each time. An object and its status have a few hundred."""

# Longer numbers cost more than their length: 1:2:3 is a number of YAML 1.1 to the base 60.
_LONGEST_NUMBER = 64
_TOO_MANY = f"has more than {MAX_VALUES:,} values, which include those that aliases repeat"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MERGE = "tag:yaml.org,2002:merge"


class OutOfBounds(yaml.YAMLError):
    """The file is larger than any that Edgetune reads; the message is a predicate."""


class _StrictLoader(yaml.SafeLoader):
    """YAML as kubectl reads it: 2e-4 is a number, and duplicate keys are refused."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._sizes: dict[int, int] = {}
        """Values in each node of this document by its identity, without nodes whose parts are not yet composed."""
        self._composed = 0

    def compose_document(self) -> Any:
        """Compose a document; its aliases refer to its own nodes only."""
        self._sizes.clear()
        return super().compose_document()

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node; refuse more of them than MAX_VALUES."""
        is_alias = self.check_event(yaml.AliasEvent)
        self._composed += 1
        if self._composed > MAX_VALUES:
            raise OutOfBounds(_TOO_MANY)
        node = super().compose_node(parent, index)
        if not is_alias:
            self._sizes[id(node)] = self._size(node)
        elif id(node) not in self._sizes:
            raise OutOfBounds("refers to itself by an alias")
        return node

    def _size(self, node: Any) -> int:
        """Number of values of a node whose parts are composed."""
        if isinstance(node, yaml.ScalarNode):
            if node.tag in _NUMBERS and len(node.value) > _LONGEST_NUMBER:
                raise OutOfBounds(f"has a number of {len(node.value):,} characters{node.start_mark}")
            return 1
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        size = 1 + sum(self._sizes[id(part)] for part in parts)
        if size > MAX_VALUES:
            raise OutOfBounds(_TOO_MANY)
        return size

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


class _StrictDumper(yaml.SafeDumper):
    """Quotes texts that _StrictLoader would read as numbers, such as the digits 12e4 of a digest."""


# YAML 1.1 requires a dot and a sign in numbers with an exponent; YAML 1.2 and JSON do not.
for _each in (_StrictLoader, _StrictDumper):
    _each.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def yaml_text(document: Mapping[str, Any] | None) -> str:
    """A document as YAML that read_yaml reads unchanged, with its keys in their order."""
    return yaml.dump(document, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> list[Any]:
    """The documents of a YAML file.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it is not UTF-8.
        OutOfBounds: it is too large, or has too many values.
        yaml.YAMLError, ValueError, RecursionError: it is not YAML, has a duplicate key, or is nested too deeply.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise OutOfBounds(f"has more than {MAX_BYTES:,} bytes")
    return list(yaml.load_all(content.decode("utf-8"), _StrictLoader))

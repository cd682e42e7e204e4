"""YAML that users write, read within bounds: a few aliases can repeat more values than fit into memory."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
# kubectl separates documents at these lines too, before it parses any.
_SEPARATOR = re.compile(r"^---(?=\s|$)", re.MULTILINE)


class OutOfBounds(yaml.YAMLError):
    """The file is larger than any that Edgetune reads; the message is a predicate."""


def syntax_problem(error: Exception) -> str:
    """What is wrong with a text that is not YAML, in one line, with its line as far as the parser knows it."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    place = f"line {mark.line + 1}: " if mark is not None else ""
    return f"{place}is not valid YAML: {problem or ' '.join(str(error).split())}"


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


def yaml_text(document: Mapping[str, Any] | Sequence[Any] | None) -> str:
    """A document as YAML that read_yaml reads unchanged, with its keys in their order."""
    return yaml.dump(document, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class YamlDocument:
    """One document of a YAML text, with the lines of its fields."""

    value: Any
    first_line: int
    """Line of the text at which the document begins, from 1."""

    _node: yaml.Node

    def line_of(self, path: str) -> int:
        """Line of a field such as spec.lora.targetModules[0], or of the last field on its path that is there."""
        line, node = self._node.start_mark.line, self._node
        while path and (found := _child(node, path)):
            line, node, path = found
        return self.first_line + int(line)


def _child(node: yaml.Node, path: str) -> tuple[int, yaml.Node, str] | None:
    """Line and node of the first part of a path, and the rest of the path; None if it is not there."""
    if isinstance(node, yaml.SequenceNode):
        index = re.match(r"\[(\d+)\]\.?", path)
        if index is None or int(index[1]) >= len(node.value):
            return None
        item = node.value[int(index[1])]
        return item.start_mark.line, item, path[index.end() :]
    if not isinstance(node, yaml.MappingNode):
        return None
    # Keys may have dots, such as those of annotations: the longest one is meant.
    for key, value in sorted(node.value, key=lambda pair: len(str(pair[0].value)), reverse=True):
        if isinstance(key, yaml.ScalarNode) and re.match(rf"{re.escape(key.value)}($|[.\[])", path):
            return key.start_mark.line, value, path[len(key.value) :].removeprefix(".")
    return None


def split_yaml(text: str) -> Iterator[tuple[int, str]]:
    """The documents of a YAML text, unparsed, each with its first line, from 1."""
    separators = [*_SEPARATOR.finditer(text)]
    starts, ends = (0, *(each.end() for each in separators)), (*(each.start() for each in separators), len(text))
    line, counted = 1, 0
    for start, end in zip(starts, ends, strict=True):
        line, counted = line + text.count("\n", counted, start), start
        yield line, text[start:end]


def parse_yaml(text: str, first_line: int = 1) -> YamlDocument | None:
    """One document with the lines of its fields; None if it is empty.

    Args:
        text: the document, as from `split_yaml`.
        first_line: its first line in the whole text, from 1.

    Raises:
        OutOfBounds: it is too large, or has too many values.
        yaml.YAMLError, ValueError, RecursionError: it is not YAML, has a duplicate key, or is nested too deeply.
    """
    _check_bytes(len(text.encode()))
    loader = _StrictLoader(text)
    try:
        node = loader.get_single_node()
        value = None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()
    return None if node is None or value is None else YamlDocument(value, first_line, node)


def _check_bytes(count: int) -> None:
    if count > MAX_BYTES:
        raise OutOfBounds(f"has more than {MAX_BYTES:,} bytes")


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
    _check_bytes(len(content))
    return list(yaml.load_all(content.decode("utf-8"), _StrictLoader))

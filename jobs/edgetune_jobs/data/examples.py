"""Parses and validates rows: an example has a prompt, the response to learn, and expected keywords."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgetune_contract.spec import DatasetFields, DatasetSpec, RowFormat
from edgetune_jobs.data.readers.rows import BadRow, Place, RawRow
from edgetune_jobs.wording import some

USER = "user"
ASSISTANT = "assistant"
SYSTEM = "system"
_ROLES = (SYSTEM, USER, ASSISTANT)

# Common names of these fields in other data sets, suggested if a field is missing and no similar name exists.
_KNOWN_AS: Mapping[str, tuple[str, ...]] = {
    "instruction": ("prompt", "question", "input", "query"),
    "response": ("completion", "output", "answer", "target"),
    "messages": ("conversations", "conversation", "dialog"),
    "text": ("content", "body"),
    "expected_keyword": ("expected_keywords", "keywords", "keyword"),
}
_MOST_NAMES = 8


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user or assistant."""

    content: str


@dataclass(frozen=True)
class Example:
    """A valid row."""

    place: Place
    prompt: tuple[Message, ...]
    """The messages before the response: one user message for the format Instruction, none for Text."""

    response: str
    """The text to learn: the response, the last assistant message, or the whole text."""

    keywords: tuple[str, ...] = ()

    def identity(self) -> bytes:
        """Digest of prompt and response."""
        return _digest([[message.role, message.content] for message in self.prompt], self.response)

    def question(self) -> bytes:
        """Digest of the prompt, or of the text for the format Text."""
        return _digest([[message.role, message.content] for message in self.prompt] or self.response)


class RowParser:
    """Parses rows with the data set's format and field names."""

    def __init__(self, dataset: DatasetSpec) -> None:
        self._format = dataset.format
        self._names = dataset.fields

    @property
    def wanted_fields(self) -> frozenset[str]:
        """Names of the fields that are read."""
        return frozenset((*(getattr(self._names, field) for field in self._required), self._names.expected_keyword))

    @property
    def list_fields(self) -> frozenset[str]:
        """Names of the fields whose value may be a list."""
        return frozenset((self._names.messages, self._names.expected_keyword))

    def parse(self, row: RawRow) -> Example | BadRow:
        """The row as an example, or the reason why it is invalid."""
        try:
            return self._parse(row)
        except _InvalidRow as error:
            return BadRow(row.place, str(error))

    def probable_keyword_field(self, fields: Sequence[str]) -> str | None:
        """The name among `fields` that probably holds the expected keywords; None if their own field is there."""
        others = [name for name in fields if name not in self.wanted_fields]
        return None if self._names.expected_keyword in fields else _nearest("expected_keyword", self._names, others)

    @property
    def _required(self) -> tuple[str, ...]:
        if self._format is RowFormat.INSTRUCTION:
            return ("instruction", "response")
        return ("messages",) if self._format is RowFormat.CHAT else ("text",)

    def _parse(self, row: RawRow) -> Example:
        if not isinstance(row.value, Mapping):
            hint = "; if the file is one JSON list, name it .json" if isinstance(row.value, list) else ""
            raise _InvalidRow(f"expected an object, found {_kind(row.value)}{hint}")
        for field in self._required:
            if getattr(self._names, field) not in row.fields:
                raise _InvalidRow(self._missing(field, row.fields))
        values = [(getattr(self._names, field), row.value.get(getattr(self._names, field))) for field in self._required]
        keywords = _keywords(self._names.expected_keyword, row.value.get(self._names.expected_keyword))
        if self._format is RowFormat.CHAT:
            messages = _conversation(*values[0])
            return Example(row.place, messages[:-1], messages[-1].content, keywords)
        texts = [_text(f"{name!r}", value) for name, value in values]
        prompt = tuple(Message(USER, text) for text in texts[:-1])
        return Example(row.place, prompt, texts[-1], keywords)

    def _missing(self, field: str, found: Sequence[str]) -> str:
        name = getattr(self._names, field)
        others = [other for other in found if other not in self.wanted_fields]
        reason = f"missing field {name!r} (found: {some((repr(other[:64]) for other in found), _MOST_NAMES)})"
        meant = _nearest(field, self._names, others)
        if meant is None:
            return f"{reason}; set spec.dataset.fields.{field} to the name of the field"
        return f"{reason}; did you mean {meant!r}? if so, set spec.dataset.fields.{field}: {meant!r}"


class _InvalidRow(Exception):
    """The row is invalid; the message is the reason."""


def _nearest(field: str, names: DatasetFields, found: Sequence[str]) -> str | None:
    """The name in `found` that probably stands for a field: spelled alike, or common in other data sets."""
    alike = difflib.get_close_matches(getattr(names, field).lower(), [name.lower() for name in found], n=1, cutoff=0.75)
    candidates = (*alike, *_KNOWN_AS[field])
    by_lower_case = {name.lower(): name for name in found}
    return next((by_lower_case[name] for name in candidates if name in by_lower_case), None)


def _conversation(name: str, value: object) -> tuple[Message, ...]:
    """The messages of a conversation, whose last one is an assistant message."""
    if not isinstance(value, list):
        raise _InvalidRow(f"{name!r} is {_kind(value)}, not a list of messages with role and content")
    messages = tuple(_message(f"{name}[{index}]", message) for index, message in enumerate(value))
    roles = [message.role for message in messages]
    if ASSISTANT not in roles:
        raise _InvalidRow(f"{name!r} has no assistant message, so there is nothing to learn")
    if roles[-1] != ASSISTANT:
        raise _InvalidRow(f"{name!r} ends with a {roles[-1]} message; the last message must be an assistant message")
    if USER not in roles[: roles.index(ASSISTANT)]:
        raise _InvalidRow(f"{name!r} has no user message before the first assistant message")
    if SYSTEM in roles[1:]:
        raise _InvalidRow(f"{name!r} has a system message that is not the first message")
    return messages


def _message(where: str, value: object) -> Message:
    if not isinstance(value, Mapping):
        raise _InvalidRow(f"{where} is {_kind(value)}, not an object with role and content")
    if "role" not in value or "content" not in value:
        hint = "; rename from to role, and value to content" if {"from", "value"} <= set(value) else ""
        raise _InvalidRow(f"{where} must have role and content{hint}")
    role = value["role"]
    if role not in _ROLES:
        shown = repr(role[:32]) if isinstance(role, str) else _kind(role)
        raise _InvalidRow(f"{where}.role is {shown}; expected {SYSTEM}, {USER} or {ASSISTANT}")
    return Message(str(role), _text(f"{where}.content", value["content"]))


def _keywords(name: str, value: object) -> tuple[str, ...]:
    """Expected keywords: none, one, or a list."""
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple(_text(f"{name}[{index}]", keyword) for index, keyword in enumerate(value))
    return (_text(f"{name!r}", value),)


def _text(where: str, value: object) -> str:
    """A string that can be learned: not empty, without NUL characters or unpaired surrogates."""
    if value is None:
        raise _InvalidRow(f"{where} is empty")
    if not isinstance(value, str):
        raise _InvalidRow(f"{where} is {_kind(value)}, not a string")
    if not value.strip():
        raise _InvalidRow(f"{where} is empty")
    if "\x00" in value:
        raise _InvalidRow(f"{where} contains a NUL character")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise _InvalidRow(f"{where} contains an unpaired surrogate, which is not a valid character")
    return value


def _kind(value: object) -> str:
    """The JSON type of a value, with its article."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, Mapping):
        return "an object"
    return f"of type {type(value).__name__}"


def _digest(*values: object) -> bytes:
    return hashlib.sha256(json.dumps(values, ensure_ascii=False).encode()).digest()

"""One row of a data set as an example: a prompt, the response to learn, and the keywords that a right answer holds."""

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgetune_contract.spec import DatasetFields, DatasetSpec, RowFormat
from edgetune_jobs.data.readers.rows import BadRow, Place, RawRow
from edgetune_jobs.messages import some

USER = "user"
ASSISTANT = "assistant"
SYSTEM = "system"
_ROLES = (SYSTEM, USER, ASSISTANT)

# What other data sets call these fields: offered when a name is missing and nothing spelled alike is there.
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
    """A row that can be used."""

    place: Place
    prompt: tuple[Message, ...]
    """What comes before the response: one user message for the format Instruction, none for Text."""

    response: str
    """What is learned: the response, the last assistant message, or the whole text."""

    keywords: tuple[str, ...] = ()

    def identity(self) -> bytes:
        """Digest of all that is learned from the row."""
        return _digest([[message.role, message.content] for message in self.prompt], self.response)

    def question(self) -> bytes:
        """Digest of what the model is asked: the prompt, or for the format Text the text."""
        return _digest([[message.role, message.content] for message in self.prompt] or self.response)


class RowParser:
    """Judges rows by the data set's format and field names."""

    def __init__(self, dataset: DatasetSpec) -> None:
        self._format = dataset.format
        self._names = dataset.fields

    @property
    def wanted_fields(self) -> frozenset[str]:
        """Names of the fields that are looked at."""
        return frozenset((*(getattr(self._names, field) for field in self._required), self._names.expected_keyword))

    @property
    def list_fields(self) -> frozenset[str]:
        """Names of the fields that may hold a list."""
        return frozenset((self._names.messages, self._names.expected_keyword))

    def parse(self, row: RawRow) -> Example | BadRow:
        """The row as an example, or the reason why it is none."""
        try:
            return self._parse(row)
        except _Unusable as error:
            return BadRow(row.place, str(error))

    def lookalike_of_keyword(self, fields: Sequence[str]) -> str | None:
        """The name among `fields` that was probably meant for expected keywords, when they go by no such name."""
        others = [name for name in fields if name not in self.wanted_fields]
        return None if self._names.expected_keyword in fields else _nearest("expected_keyword", self._names, others)

    @property
    def _required(self) -> tuple[str, ...]:
        if self._format is RowFormat.INSTRUCTION:
            return ("instruction", "response")
        return ("messages",) if self._format is RowFormat.CHAT else ("text",)

    def _parse(self, row: RawRow) -> Example:
        if not isinstance(row.value, Mapping):
            hint = "; a file that is one JSON list has to be named .json" if isinstance(row.value, list) else ""
            raise _Unusable(f"is {_kind(row.value)}, not an object with named fields{hint}")
        for field in self._required:
            if getattr(self._names, field) not in row.fields:
                raise _Unusable(self._missing(field, row.fields))
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
        reason = f"has no field {name!r} (found: {some((repr(other[:64]) for other in found), _MOST_NAMES)})"
        meant = _nearest(field, self._names, others)
        if meant is None:
            return f"{reason}; name the field in spec.dataset.fields.{field}"
        return f"{reason}; did you mean {meant!r}? then set spec.dataset.fields.{field}: {meant!r}"


class _Unusable(Exception):
    """Reason why a row cannot be used."""


def _nearest(field: str, names: DatasetFields, found: Sequence[str]) -> str | None:
    """The name that was probably meant for a field."""
    alike = difflib.get_close_matches(getattr(names, field).lower(), [name.lower() for name in found], n=1, cutoff=0.75)
    candidates = (*alike, *_KNOWN_AS[field])
    by_lower_case = {name.lower(): name for name in found}
    return next((by_lower_case[name] for name in candidates if name in by_lower_case), None)


def _conversation(name: str, value: object) -> tuple[Message, ...]:
    """Messages that end with the assistant's answer to a user."""
    if not isinstance(value, list):
        raise _Unusable(f"{name!r} is {_kind(value)}, not a list of messages with role and content")
    messages = tuple(_message(f"{name}[{index}]", message) for index, message in enumerate(value))
    roles = [message.role for message in messages]
    if ASSISTANT not in roles:
        raise _Unusable(f"{name!r} has no assistant message, so there is nothing to learn")
    if roles[-1] != ASSISTANT:
        raise _Unusable(f"{name!r} ends with a {roles[-1]} message; the last one has to be the assistant's answer")
    if USER not in roles[: roles.index(ASSISTANT)]:
        raise _Unusable(f"{name!r} has no user message before the assistant's first")
    if SYSTEM in roles[1:]:
        raise _Unusable(f"{name!r} has a system message that is not the first message")
    return messages


def _message(where: str, value: object) -> Message:
    if not isinstance(value, Mapping):
        raise _Unusable(f"{where} is {_kind(value)}, not an object with role and content")
    if "role" not in value or "content" not in value:
        hint = "; its from and value have to be named role and content" if {"from", "value"} <= set(value) else ""
        raise _Unusable(f"{where} has no role and content{hint}")
    role = value["role"]
    if role not in _ROLES:
        shown = f"role {role[:32]!r}" if isinstance(role, str) else f"a role that is {_kind(role)}"
        raise _Unusable(f"{where} has {shown}; roles are {', '.join(_ROLES)}")
    return Message(str(role), _text(f"{where}.content", value["content"]))


def _keywords(name: str, value: object) -> tuple[str, ...]:
    """Expected keywords: none, one, or a list."""
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple(_text(f"{name}[{index}]", keyword) for index, keyword in enumerate(value))
    return (_text(f"{name!r}", value),)


def _text(where: str, value: object) -> str:
    """A text that can be learned: not empty, and nothing in it that is no character."""
    if value is None:
        raise _Unusable(f"{where} is empty")
    if not isinstance(value, str):
        raise _Unusable(f"{where} is {_kind(value)}, not a text")
    if not value.strip():
        raise _Unusable(f"{where} is empty")
    if "\x00" in value:
        raise _Unusable(f"{where} has a NUL character in it")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise _Unusable(f"{where} has half a surrogate pair in it, which is no character")
    return value


def _kind(value: object) -> str:
    """What a value is, in JSON's words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a text"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, Mapping):
        return "an object"
    return f"of type {type(value).__name__}"


def _digest(*values: object) -> bytes:
    return hashlib.sha256(json.dumps(values, ensure_ascii=False).encode()).digest()

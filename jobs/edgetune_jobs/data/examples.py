"""Parses and validates rows: an example has a prompt, the response to learn, and expected keywords."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from edgetune_contract.spec import DatasetFields, DatasetSpec, RowFormat
from edgetune_contract.values.suggestions import nearest
from edgetune_jobs.data.chat.messages import SYSTEM, USER, Message, conversation, tool_definitions
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.data.readers.rows import BadRow, Place, RawRow
from edgetune_jobs.data.readers.values import InvalidRow, kind, text, text_or_number
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.wording import some

# Common names of these fields in other data sets, suggested if a field is missing and no similar name exists.
KNOWN_AS: Mapping[str, tuple[str, ...]] = {
    "instruction": ("prompt", "question", "input", "query"),
    "response": ("completion", "output", "answer", "target"),
    "messages": ("conversation", "dialog"),
    "text": ("content", "body"),
    "expected_keyword": ("expected_keywords", "keywords", "keyword"),
}
_MOST_NAMES = 8
# Names of a hostile row could number millions.
_MOST_COMPARED = 100

# Columns that rows of the format Chat may have besides the messages.
_TOOLS = "tools"
_SYSTEM_COLUMN = "system"
_SHAREGPT_MESSAGES = "conversations"


@dataclass(frozen=True)
class Example:
    """A valid row."""

    place: Place
    prompt: tuple[Message, ...]
    """The messages before the response: one user message for the format Instruction, none for Text."""

    response: str
    """The text to learn: the response, the last learned assistant message, or the whole text."""

    keywords: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Values of the template's other columns (format Instruction)."""

    response_fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Fields of the response's message besides role and content, such as tool_calls (format Chat)."""

    tools: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)
    """Functions that the conversation may call (format Chat)."""

    def up_to(self, index: int) -> "Example":
        """The conversation that ends with the assistant message at `index`, whose other answers are not learned."""
        before = tuple(replace(message, is_learned=False) for message in self.prompt[:index])
        answer = self.prompt[index]
        return replace(self, prompt=before, response=answer.content, response_fields=answer.fields)

    def identity(self) -> bytes:
        """Digest of prompt and response."""
        return _digest(*self._asked(), self.response, *([self.response_fields] if self.response_fields else ()))

    def question(self) -> bytes:
        """Digest of the prompt, or of the text for the format Text."""
        return _digest(*self._asked()) if self.prompt else _digest(self.response)

    def _asked(self) -> list[object]:
        turns = [
            [message.role, message.content, *([message.fields] if message.fields else ())] for message in self.prompt
        ]
        return [turns, *(extra for extra in (self.columns, self.tools) if extra)]


class RowParser:
    """Parses rows with the data set's format and field names."""

    def __init__(self, dataset: DatasetSpec) -> None:
        """
        Raises:
            InvalidInput: the template contains the response.
        """
        self._format = dataset.format
        self._names = dataset.fields
        self._template_columns = PromptFormat.of(dataset).columns
        if dataset.fields.response in self._template_columns:
            raise InvalidInput(
                f"spec.dataset.template has {{{dataset.fields.response}}}, but that column is the response, which is "
                "learned after the prompt; remove it from the template"
            )

    @cached_property
    def wanted_fields(self) -> frozenset[str]:
        """Names of the columns that are read."""
        optional = (*self._template_columns, *self._chat_columns, self._names.expected_keyword)
        return frozenset((*(getattr(self._names, role) for role in self._required), *optional))

    @property
    def list_fields(self) -> frozenset[str]:
        """Names of the columns whose value may be a list."""
        return frozenset((self._names.messages, _SHAREGPT_MESSAGES, _TOOLS, self._names.expected_keyword))

    def parse(self, row: RawRow) -> Example | BadRow:
        """The row as an example, or the reason why it is invalid."""
        try:
            return self._parse(row)
        except InvalidRow as error:
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

    @property
    def _chat_columns(self) -> tuple[str, ...]:
        return (_TOOLS, _SYSTEM_COLUMN, _SHAREGPT_MESSAGES) if self._format is RowFormat.CHAT else ()

    def _parse(self, row: RawRow) -> Example:
        if not isinstance(row.value, Mapping):
            hint = "; if the file is one JSON list, name it .json" if isinstance(row.value, list) else ""
            raise InvalidRow(f"expected an object, found {kind(row.value)}{hint}")
        keywords = _keywords(self._names.expected_keyword, row.value.get(self._names.expected_keyword))
        if self._format is RowFormat.CHAT:
            return self._parse_chat(row, row.value, keywords)
        for role in self._required:
            if getattr(self._names, role) not in row.fields:
                raise InvalidRow(self._missing(role, row.fields))
        names = [getattr(self._names, role) for role in self._required]
        texts = [_learned(name, row.value.get(name)) for name in names]
        prompt = tuple(Message(USER, each) for each in texts[:-1])
        return Example(row.place, prompt, texts[-1], keywords, self._columns(row, row.value))

    def _columns(self, row: RawRow, value: Mapping[str, object]) -> Mapping[str, str]:
        """Texts of the template's columns other than the instruction."""
        for name in self._template_columns:
            if name not in row.fields:
                shown = some((repr(each[:64]) for each in row.fields), _MOST_NAMES)
                raise InvalidRow(
                    f"spec.dataset.template has {{{name}}}, but there is no column {name!r} (found: {shown})"
                )
        return {name: text_or_number(f"{name!r}", value.get(name)) for name in self._template_columns}

    def _parse_chat(self, row: RawRow, value: Mapping[str, object], keywords: tuple[str, ...]) -> Example:
        name = self._names.messages
        if name not in row.fields and _SHAREGPT_MESSAGES in row.fields:
            name = _SHAREGPT_MESSAGES
        if name not in row.fields:
            raise InvalidRow(self._missing("messages", row.fields))
        messages = conversation(name, value.get(name))
        if (system := text_or_number(f"{_SYSTEM_COLUMN!r}", value.get(_SYSTEM_COLUMN))).strip():
            if messages[0].role != SYSTEM:
                messages = (Message(SYSTEM, system), *messages)
            elif messages[0].content.strip() != system.strip():
                raise InvalidRow(
                    f"the row has a system message and another one in the column {_SYSTEM_COLUMN!r}; keep one of them"
                )
        tools = tool_definitions(f"{_TOOLS!r}", value.get(_TOOLS))
        answer = messages[-1]
        return Example(row.place, messages[:-1], answer.content, keywords, response_fields=answer.fields, tools=tools)

    def _missing(self, field: str, found: Sequence[str]) -> str:
        name = getattr(self._names, field)
        others = [other for other in found if other not in self.wanted_fields]
        reason = f"missing field {name!r} (found: {some((repr(other[:64]) for other in found), _MOST_NAMES)})"
        meant = _nearest(field, self._names, others)
        if meant is None:
            return f"{reason}; set spec.dataset.fields.{field} to the name of the field"
        return f"{reason}; did you mean {meant!r}? if so, set spec.dataset.fields.{field}: {meant!r}"


def _nearest(field: str, names: DatasetFields, found: Sequence[str]) -> str | None:
    """The name in `found` that probably stands for a field: spelled alike, or common in other data sets."""
    by_lower_case = {name.lower(): name for name in found[:_MOST_COMPARED]}
    others = (by_lower_case[name] for name in KNOWN_AS[field] if name in by_lower_case)
    return nearest(getattr(names, field), found, similarity=0.75) or next(others, None)


def _learned(name: str, value: object) -> str:
    """The text of a column.

    Raises:
        InvalidRow: the value is none; how nested values are to be written is not decided here, so the user does.
    """
    if isinstance(value, Mapping | list):
        raise InvalidRow(f"{name!r} is {kind(value)}, not a string; write it as a string, such as its JSON text")
    return text(f"{name!r}", value)


def _keywords(name: str, value: object) -> tuple[str, ...]:
    """Expected keywords: none, one, or a list."""
    if value is None:
        return ()
    if isinstance(value, list):
        return tuple(text(f"{name}[{index}]", keyword) for index, keyword in enumerate(value))
    return (text(f"{name!r}", value),)


def _digest(*values: object) -> bytes:
    return hashlib.sha256(json.dumps(values, ensure_ascii=False, sort_keys=True).encode()).digest()

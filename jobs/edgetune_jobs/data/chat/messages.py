"""Messages of a conversation: roles, text, tool calls, weights; in the forms of OpenAI and ShareGPT."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgetune_jobs.data.readers.values import InvalidRow, json_of, kind, text, text_or_empty

USER = "user"
ASSISTANT = "assistant"
SYSTEM = "system"
TOOL = "tool"
_ROLES = (SYSTEM, "developer", USER, ASSISTANT, TOOL)
TOOL_CALLS = "tool_calls"
_NOT_FOR_TEMPLATES = ("role", "content", "weight")

# ShareGPT names the role "from" and the content "value". Its function_call is a tool call as JSON.
_SHAREGPT_ROLES: Mapping[str, str] = {
    "human": USER,
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bard": ASSISTANT,
    "bing": ASSISTANT,
    "model": ASSISTANT,
    "observation": TOOL,
    "function_response": TOOL,
}
_SHAREGPT_CALL = "function_call"


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, developer, user, assistant or tool."""

    content: str
    """May be empty if `fields` has tool calls, and for tools."""

    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """All other fields for the chat template, such as tool_calls and reasoning_content; none is null."""

    is_learned: bool = True
    """False for assistant messages of weight 0."""


def conversation(name: str, value: object) -> tuple[Message, ...]:
    """The messages up to the last one that is learned, which is an assistant message.

    Args:
        name: the column, for messages.
        value: its value: a list of messages with role and content, or of ShareGPT's with from and value.

    Raises:
        InvalidRow: the value is not such a list, or has nothing to learn.
    """
    if not isinstance(value, list):
        raise InvalidRow(f"{name!r} is {kind(value)}, not a list of messages with role and content")
    messages = tuple(_message(f"{name}[{index}]", message) for index, message in enumerate(value))
    roles = [message.role for message in messages]
    if ASSISTANT not in roles:
        raise InvalidRow(f"{name!r} has no assistant message, so there is nothing to learn")
    if roles[-1] != ASSISTANT:
        raise InvalidRow(f"{name!r} ends with a {roles[-1]} message; the last message must be an assistant message")
    if USER not in roles[: roles.index(ASSISTANT)]:
        raise InvalidRow(f"{name!r} has no user message before the first assistant message")
    if SYSTEM in roles[1:]:
        raise InvalidRow(f"{name!r} has a system message that is not the first message")
    learned = [index for index, message in enumerate(messages) if message.role == ASSISTANT and message.is_learned]
    if not learned:
        raise InvalidRow(f"all assistant messages of {name!r} have weight 0, so there is nothing to learn")
    return messages[: learned[-1] + 1]


def tool_definitions(where: str, value: object) -> tuple[Mapping[str, Any], ...]:
    """The functions that a conversation may call: a list of objects, also as JSON in a string; none for null or "".

    Raises:
        InvalidRow: the value is something else.
    """
    tools = (json_of(where, value) if value != "" else None) or []
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise InvalidRow(f"{where} is {kind(tools)}, not a list of objects")
    return tuple(tools)


def _message(where: str, value: object) -> Message:
    if not isinstance(value, Mapping):
        raise InvalidRow(f"{where} is {kind(value)}, not an object with role and content")
    # Tables have every field in every message, and null where a message lacks it; or "", if calls are JSON as text.
    fields = {name: each for name, each in value.items() if each is not None and (name, each) != (TOOL_CALLS, "")}
    if "role" not in fields and {"from", "value"} <= set(fields):
        fields = _from_sharegpt(where, fields)
    role = fields.get("role")
    if role is None:
        raise InvalidRow(f"{where} must have role and content")
    if role not in _ROLES:
        shown = repr(role[:32]) if isinstance(role, str) else kind(role)
        raise InvalidRow(f"{where}.role is {shown}; expected {', '.join(_ROLES[:-1])} or {_ROLES[-1]}")
    if TOOL_CALLS in fields:
        fields[TOOL_CALLS] = _tool_calls(f"{where}.{TOOL_CALLS}", fields[TOOL_CALLS], str(role))
        if not fields[TOOL_CALLS]:
            del fields[TOOL_CALLS]
    others = {name: json_of_field(f"{where}.{name}", fields[name]) for name in fields if name not in _NOT_FOR_TEMPLATES}
    is_learned = _is_learned(f"{where}.weight", fields.get("weight"), str(role))
    if "content" not in fields and role != TOOL and TOOL_CALLS not in fields:
        if "content" not in value:
            raise InvalidRow(f"{where} must have role and content")
        raise InvalidRow(f"{where}.content is empty")
    may_be_empty = role == TOOL or TOOL_CALLS in fields
    return Message(str(role), _content(f"{where}.content", fields.get("content"), may_be_empty), others, is_learned)


def json_of_field(where: str, value: object) -> object:
    """A field that the chat template gets: a string, or checked JSON.

    Raises:
        InvalidRow: it is neither.
    """
    return text_or_empty(where, value) if isinstance(value, str) else json_of(where, value)


def _content(where: str, value: object, may_be_empty: bool) -> str:
    if isinstance(value, list):
        value = "".join(_part(f"{where}[{index}]", part) for index, part in enumerate(value))
    return text_or_empty(where, value) if may_be_empty else text(where, value)


def _part(where: str, part: object) -> str:
    """The text of one part of a content. Other parts, such as images, cannot be learned by a language model."""
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise InvalidRow(f"{where} is {kind(part)}, not an object with type and text")
    part_type = part.get("type", "text" if "text" in part else None)
    if part_type != "text":
        shown = repr(part_type[:32]) if isinstance(part_type, str) else kind(part_type)
        raise InvalidRow(f"{where}.type is {shown}; only parts of type 'text' can be learned")
    others = sorted(str(name)[:32] for name in part if name not in ("type", "text") and part[name] is not None)
    if others:
        raise InvalidRow(f"{where} has {others[0]!r}, which is not used; only type and text are")
    return text_or_empty(f"{where}.text", part.get("text"))


def _is_learned(where: str, weight: object, role: str) -> bool:
    if weight is None:
        return True
    if isinstance(weight, bool) or weight not in (0, 1):
        raise InvalidRow(f"{where} must be 0 (not learned) or 1 (learned)")
    if role != ASSISTANT and weight == 1:
        raise InvalidRow(f"{where} is 1, but only assistant messages are learned")
    return bool(weight)


def _tool_calls(where: str, value: object, role: str) -> Sequence[Mapping[str, Any]]:
    """Tool calls whose arguments are objects, as chat templates expect them; OpenAI writes them as JSON in a string."""
    calls = json_of(where, value)
    if not isinstance(calls, list):
        raise InvalidRow(f"{where} is {kind(calls)}, not a list")
    if calls and role != ASSISTANT:
        raise InvalidRow(f"{where} is in a {role} message; only assistant messages call tools")
    return [_tool_call(f"{where}[{index}]", call) for index, call in enumerate(calls)]


def _tool_call(where: str, call: object) -> Mapping[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise InvalidRow(f"{where} is not an object with a function that has name and arguments")
    arguments = json_of(f"{where}.function.arguments", function.get("arguments") or {})
    if not isinstance(arguments, Mapping):
        raise InvalidRow(f"{where}.function.arguments is {kind(arguments)}, not an object")
    complete = {**function, "arguments": arguments}
    return {**call, "function": complete} if "function" in call else {"type": "function", "function": complete}


def _from_sharegpt(where: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The message with OpenAI's names."""
    others = {name: value for name, value in fields.items() if name not in ("from", "value")}
    speaker, value = fields["from"], fields["value"]
    if speaker == _SHAREGPT_CALL:
        calls = json_of(f"{where}.value", value)
        return {"role": ASSISTANT, TOOL_CALLS: calls if isinstance(calls, list) else [calls], **others}
    role = _SHAREGPT_ROLES.get(speaker, speaker) if isinstance(speaker, str) else speaker
    return {"role": role, "content": value, **others}

"""Values of a row: texts that can be learned, numbers as text, and JSON inside a string."""

import math
from collections.abc import Mapping

from edgetune_jobs.store.strict_json import InvalidJson, parse_json

# Deeper JSON is no tool definition, and would exhaust the stack of whatever walks it.
_MAX_DEPTH = 64


class InvalidRow(Exception):
    """The row is invalid; the message is the reason."""


def text(where: str, value: object) -> str:
    """A string that can be learned: not empty, without NUL characters or unpaired surrogates.

    Raises:
        InvalidRow: the value is no such string.
    """
    if value is None:
        raise InvalidRow(f"{where} is empty")
    checked = text_or_empty(where, value)
    if not checked.strip():
        raise InvalidRow(f"{where} is empty")
    return checked


def text_or_empty(where: str, value: object) -> str:
    """A string without NUL characters or unpaired surrogates; empty for null.

    Raises:
        InvalidRow: the value is no such string.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidRow(f"{where} is {kind(value)}, not a string")
    if "\x00" in value:
        raise InvalidRow(f"{where} contains a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRow(f"{where} contains an unpaired surrogate, which is not a valid character") from None
    return value


def text_or_number(where: str, value: object) -> str:
    """A string, or a number as JSON writes it; empty for null.

    Raises:
        InvalidRow: the value is something else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise InvalidRow(f"{where} is {kind(value)}, not a string or number")
    return text_or_empty(where, value)


def json_of(where: str, value: object) -> object:
    """A value, or the value of the JSON in a string: tables often keep nested values as strings.

    Raises:
        InvalidRow: the string is not JSON, the value is nested too deeply, or a string in it is invalid.
    """
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except InvalidJson as error:
            raise InvalidRow(f"{where} is a string, but {error.reason}") from error
    _check_nested(where, value, _MAX_DEPTH)
    return value


def kind(value: object) -> str:
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


def _check_nested(where: str, value: object, depth: int) -> None:
    if depth == 0:
        raise InvalidRow(f"{where} is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, str):
        text_or_empty(where, value)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            text_or_empty(where, name)
            _check_nested(where, inner, depth - 1)
    elif isinstance(value, list):
        for inner in value:
            _check_nested(where, inner, depth - 1)
    elif value is not None and not isinstance(value, bool | int | float):
        raise InvalidRow(f"{where} contains a value {kind(value)}, which is not JSON")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InvalidRow(f"{where} contains {value}, which is not JSON")

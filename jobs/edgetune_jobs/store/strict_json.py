"""Strict JSON, for data files, configurations and headers: no NaN or Infinity, no duplicate fields."""

import json
from collections.abc import Sequence
from typing import Any, NoReturn


class InvalidJson(ValueError):
    """The text is not strict JSON. `line` and `column` count from 1; None if the parser does not report a position."""

    def __init__(self, reason: str, line: int | None = None, column: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line
        self.column = column


def parse_json(text: str) -> Any:
    """Value of a JSON text.

    Raises:
        InvalidJson: the text is not strict JSON, or is nested too deeply.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        hint = " (NUL bytes: if the file is UTF-16, save it as UTF-8)" if "\x00" in text else ""
        raise InvalidJson(f"invalid JSON: {error.msg}{hint}", error.lineno, error.colno) from error
    except RecursionError as error:
        raise InvalidJson("invalid JSON: nested too deeply") from error
    except ValueError as error:  # NaN, a duplicate field, or a number with thousands of digits
        raise InvalidJson(f"invalid JSON: {error}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _unique_fields(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"duplicate field {name[:64]!r}")
            seen.add(name)
    return fields


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique_fields)

"""Text on terminals: characters that a terminal obeys are refused in the spec and escaped in all output.

A control character can move the cursor, hide lines or change the terminal's settings; a bidirectional one shows letters
in another order than they are in. Letters of all scripts, and the joiners within words and emoji, stay as they are.
"""

import re
from typing import Annotated

from pydantic import AfterValidator

_OBEYED_RANGES = (
    r"\x{00}-\x{08}\x{0B}-\x{1F}\x{7F}-\x{9F}\x{061C}\x{200E}\x{200F}\x{2028}\x{2029}\x{202A}-\x{202E}\x{2066}-\x{2069}"
)

UNSAFE = rf"\n\t{_OBEYED_RANGES}"
"""Characters that no text of one line has, for [] in a pattern of the CRD (RE2) and of pydantic (Rust)."""

NAME_PATTERN = rf"^[^{UNSAFE}]*$"
"""Pattern of a text of one line."""

TEXT_PATTERN = rf"^[^{_OBEYED_RANGES}]*$"
"""Pattern of a text of several lines, such as a template: with line breaks and tabs."""

# The same characters in the syntax of re, and halves of surrogate pairs: bytes of a file name that are not UTF-8.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def escaped(text: str) -> str:
    """The text with an escape such as \\u001b for what a terminal would obey; line breaks and tabs stay."""
    return text if text.isprintable() else _OBEYED.sub(_escape, text)


def escaped_line(text: str) -> str:
    """The escaped text in one line."""
    return escaped(text).replace("\n", "\\n")


def _escape(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"  # which is an escape of JSON too


Shown = Annotated[str, AfterValidator(escaped)]
"""A text for people that may repeat what others wrote, such as a file name in a message."""

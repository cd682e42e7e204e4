"""Parts of messages: shortened lists, first lines of errors, numbers with their nouns."""

from collections.abc import Iterable


def some(names: Iterable[str], most: int = 6) -> str:
    """The first names and the number of the others; "nothing" if there are none."""
    listed = list(names)
    more = f" and {len(listed) - most:,} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more or "nothing"


def first_line(error: Exception) -> str:
    """First line of a library's error message; the name of its class if the message is empty."""
    return str(error).strip().split("\n", maxsplit=1)[0] or type(error).__name__


def count(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 file", "2,000 files"."""
    return f"1 {noun}" if number == 1 else f"{number:,} {plural or f'{noun}s'}"

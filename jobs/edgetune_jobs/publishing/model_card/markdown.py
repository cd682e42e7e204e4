"""Markdown of texts that users wrote: names, URIs and templates stay text, whatever characters they have."""

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+\-.!|~&$])")
_BACKTICKS = re.compile("`+")
_WHITE_SPACE = re.compile(r"\s+")


def escaped(text: str) -> str:
    """A text on one line that no Markdown or HTML in it changes."""
    return _SPECIAL.sub(r"\\\1", _WHITE_SPACE.sub(" ", text).strip())


def code(text: str) -> str:
    """A text on one line as code, also in a table."""
    line = _WHITE_SPACE.sub(" ", text).strip()
    if "|" in line:  # it would end the cell, also in code
        return escaped(line)
    fence = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def code_block(text: str, language: str = "") -> str:
    """Lines as code."""
    fence = "`" * max(3, _longest_run(text) + 1)
    end = "" if text.endswith("\n") else "\n"
    return f"{fence}{language}\n{text}{end}{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _longest_run(text: str) -> int:
    return max((len(run) for run in _BACKTICKS.findall(text)), default=0)

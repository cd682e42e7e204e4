"""The messages of the code, with … in place of what they fill in, for pages that quote them."""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from support.apiserver import REPOSITORY
from support.file_map import PACKAGES

GAP = "…"


def templates_of(module: str) -> Iterator[str]:
    """Each text of a Python module, except docstrings, on one line: f"no {kind}" is "no …"."""
    tree = ast.parse(module)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in docstrings | parts:
            continue
        if isinstance(node, ast.JoinedStr):
            yield _on_one_line("".join(str(p.value) if isinstance(p, ast.Constant) else GAP for p in node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield _on_one_line(node.value)


def templates_of_packages() -> frozenset[str]:
    """The texts of all modules that users see messages of."""
    modules = [path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py")]
    return frozenset(each for path in modules for each in templates_of(path.read_text(encoding="utf-8")))


def unknown(messages: Iterable[str], templates: Iterable[str]) -> list[str]:
    """The quoted messages that no text has: their words in this order, where … may be anything, also nothing."""
    lines = "\n".join(templates)
    return [message for message in messages if not re.search(_pattern(message), lines)]


def quoted(page: Path) -> list[str]:
    """The messages that are headings of a page, in code style."""
    return re.findall(r"^### `(.+)`$", page.read_text(encoding="utf-8"), re.MULTILINE)


def _pattern(message: str) -> str:
    words = [re.escape(part.strip()) for part in message.split(GAP) if part.strip()]
    return "[^\n]*?".join(words)


def _on_one_line(text: str) -> str:
    return " ".join(text.split())

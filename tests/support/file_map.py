"""The map of the packages in docs/architecture.md: every file with the first sentence of its docstring.

`PYTHONPATH=tests python -m support.file_map` writes it, with --check it compares.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from support.apiserver import REPOSITORY
from support.generated_section import GeneratedSection

PAGE = REPOSITORY / "docs" / "architecture.md"
PACKAGES = (
    "operator/edgetune_operator",
    "operator/edgetune_cli",
    "jobs/edgetune_contract",
    "jobs/edgetune_jobs",
)
SECTION = GeneratedSection(PAGE, "<!-- file map: make generate -->\n", "<!-- end of the file map -->\n")
_COLUMN = 31


def file_map() -> str:
    """The map as Markdown: a tree of folders and modules with captions."""
    lines = (line for package in PACKAGES for line in ("", *_tree(REPOSITORY / package, package, 0)))
    return "\n".join(("```", *list(lines)[1:], "```", ""))


def page() -> str:
    """The page with today's map in it."""
    return SECTION.page_with(file_map())


def _tree(folder: Path, name: str, depth: int) -> Iterator[str]:
    yield _line(f"{name}/", folder / "__init__.py", depth)
    modules = sorted(folder.glob("*.py"))
    yield from (_line(path.name, path, depth + 1) for path in modules if path.name != "__init__.py")
    for room in sorted(path for path in folder.iterdir() if (path / "__init__.py").is_file()):
        yield from _tree(room, room.name, depth + 1)


def _line(name: str, path: Path, depth: int) -> str:
    indented = f"{'  ' * depth}{name}"
    return f"{indented:{_COLUMN}} {_caption(path)}".rstrip()


def _caption(path: Path) -> str:
    """First sentence of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph, maxsplit=1)[0].removesuffix(".").replace("`", "")


if __name__ == "__main__":
    SECTION.write_or_check(file_map())

"""Hooks of MkDocs: the same Markdown is read on GitHub and as a site.

Pages link to files outside of docs/, such as README.md and the examples. The site shows each of them as a page below
repository/, so that it needs no address of a repository and works without a network. Lists and tables are written as
Python-Markdown wants them.
"""

from __future__ import annotations

import logging
import posixpath
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[2]
# The order in which a newcomer reads them; others follow by name.
TUTORIALS = (
    "own-data",
    "chat-with-tools",
    "cluster",
    "nightly",
    "formats",
    "devices",
    "llama-3-8b",
    "roll-back",
    "gates",
)
# Longer files are data: their first rows show what they are.
MAX_LINES = 300
FIRST_LINES = 8
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".json": "json", ".jsonl": "json", ".service": "ini"}
_CODE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1`*$|(`+)(?!`).*?(?<!`)\2(?!`)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^()\s#]+)")
_CELL_CODE = re.compile(r"(`+).+?\1")
_CELL_FIELD = re.compile(r"(<td[^>]*><code>)([\w.\[\]*]+)(?=</code>)")
_ITEM = re.compile(r"( *)((?:[-*+]|\d+\.) +)")
_FENCE = re.compile(r" *(`{3,}|~{3,})")
_log = logging.getLogger("mkdocs.hooks.site")


def on_config(config: MkDocsConfig) -> None:
    """Fill the section Tutorials with the pages of its folder."""
    names = [path.stem for path in (Path(config.docs_dir) / "tutorials").glob("*.md")]
    pages = [f"tutorials/{name}.md" for name in in_reading_order(names)]
    nav = [{"Tutorials": pages} if entry == "Tutorials" else entry for entry in config.nav or ()]
    config.nav = [entry for entry in nav if entry != {"Tutorials": []}]


def in_reading_order(names: Iterable[str]) -> list[str]:
    """Sort the names of tutorials; an index comes first."""
    order = {name: place for place, name in enumerate(("index", *TUTORIALS))}
    return sorted(names, key=lambda name: (order.get(name, len(order)), name))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each file and folder outside of docs/ to which a page links."""
    from mkdocs.structure.files import File

    tracked = tracked_files()
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    waiting, seen = [path for page in pages for path in linked(page, tracked)], set[str]()
    while waiting:
        path = waiting.pop()
        if path.startswith("docs/") or page_of(path, tracked) in seen:
            continue
        seen.add(page_of(path, tracked))
        files.append(File.generated(config, page_of(path, tracked), content=content(path, tracked)))
        source = readme(path, tracked)
        waiting += linked(source, tracked) if source else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 (MkDocs names the arguments)
    """Point links at pages of the site, and write lists and tables as Python-Markdown wants them."""
    tracked = tracked_files()
    uri = page.file.src_uri
    source = uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}"
    return for_python_markdown(point_links(markdown, source, uri, tracked))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 (MkDocs names the arguments)
    """Warn, which fails a strict build, of a list or a fence that became a paragraph; let fields wrap in tables."""
    for paragraph in re.findall(r"<p>.*?</p>", html, re.DOTALL):
        if re.search(r"(^|\n) *(?:[-*] |\d+\. |```)", paragraph):
            _log.warning("%s: a list or a fence is rendered as a paragraph: %s", page.file.src_uri, paragraph[:100])
    return let_fields_wrap(html)


def let_fields_wrap(html: str) -> str:
    """Let the name of a field with which a cell begins, such as spec.lora.rank, wrap after its dots."""
    return _CELL_FIELD.sub(lambda field: field[1] + field[2].replace(".", ".<wbr>"), html)


def tracked_files() -> frozenset[str]:
    """Paths of the files in Git, and of new ones that Git does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    output = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    return frozenset(path for path in output.splitlines() if (REPOSITORY / path).is_file())


def files_below(folder: str, tracked: Iterable[str]) -> list[str]:
    """Paths of the files in a folder and all folders in it."""
    return sorted(path for path in tracked if path.startswith(f"{folder}/"))


def page_of(path: str, tracked: frozenset[str]) -> str:
    """Place of the page that shows a file or folder of the repository, in the site's sources."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path not in tracked:
        return f"repository/{path}/README.md"
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def readme(path: str, tracked: frozenset[str]) -> str | None:
    """The Markdown file that a page of the repository shows: the file itself, or README.md of the folder."""
    if path in tracked:
        return path if path.endswith(".md") else None
    return f"{path}/README.md" if f"{path}/README.md" in tracked else None


def content(path: str, tracked: frozenset[str]) -> str:
    """Markdown of the page that shows a file or folder."""
    if source := readme(path, tracked):
        return (REPOSITORY / source).read_text(encoding="utf-8")
    if path in tracked:
        return f"# {path}\n\n{as_code(path)}"
    shown = "".join(f"\n## {file.removeprefix(f'{path}/')}\n\n{as_code(file)}" for file in files_below(path, tracked))
    return f"# {path}\n{shown}"


def as_code(path: str) -> str:
    """The text of a file as a block of code, cut after the first lines if it is long."""
    lines = (REPOSITORY / path).read_text(encoding="utf-8").splitlines()
    rest = f"\n{FIRST_LINES} of {len(lines):,} lines.\n" if len(lines) > MAX_LINES else ""
    text = "\n".join(lines[:FIRST_LINES] if rest else lines)
    return f"`````{_LANGUAGES.get(Path(path).suffix, 'text')}\n{text}\n`````\n{rest}"


def linked(source: str, tracked: frozenset[str]) -> list[str]:
    """Paths in the repository to which a Markdown file links, relative to the repository."""
    text = _CODE.sub("", (REPOSITORY / source).read_text(encoding="utf-8")) if source in tracked else ""
    paths = (resolve(source, match[2], tracked) for match in _LINK.finditer(text))
    return [path for path in paths if path is not None]


def resolve(source: str, target: str, tracked: frozenset[str]) -> str | None:
    """The file or folder of the repository that a link names; None for addresses and for what is not there."""
    if ":" in target or target.startswith("/"):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    return path if path in tracked or any(file.startswith(f"{path}/") for file in tracked) else None


def point_links(markdown: str, source: str, uri: str, tracked: frozenset[str]) -> str:
    """Replace links to files of the repository by links from the page `uri` to the pages that show them."""

    def pointed(match: re.Match[str]) -> str:
        path = resolve(source, match[2], tracked)
        return (
            match[0] if path is None else match[1] + posixpath.relpath(page_of(path, tracked), posixpath.dirname(uri))
        )

    return "".join(text if code else _LINK.sub(pointed, text) for code, text in parts(markdown))


def parts(markdown: str) -> Iterator[tuple[bool, str]]:
    """The page in parts: whether a part is code, and its text."""
    end = 0
    for match in _CODE.finditer(markdown):
        yield False, markdown[end : match.start()]
        yield True, match[0]
        end = match.end()
    yield False, markdown[end:]


def for_python_markdown(markdown: str) -> str:
    """Markdown of GitHub as Python-Markdown reads it.

    What is in a list is indented by four spaces a level, instead of as many as its marker has, and an item that follows
    a paragraph has a blank line before it. In a table, code has no backslashes before |.
    """
    lines, columns, fence, after_paragraph = list[str](), list[int](), "", True
    for line in markdown.splitlines():
        indent = len(line) - len(line.lstrip(" "))
        if fence:
            lines.append(" " * 4 * len(columns) + line[min(indent, columns[-1] if columns else 0) :])
            fence = "" if line.strip().startswith(fence) else fence
            continue
        is_in_list = bool(columns)
        # A line that only wraps a paragraph of the list may have any indent.
        while columns and line.strip() and indent < columns[-1] and not (wraps(lines) and not _ITEM.match(line)):
            columns.pop()
        item = _ITEM.match(line)
        rest = line[min(indent, columns[-1] if columns else 0) :]
        if rest.startswith("|"):
            rest = _CELL_CODE.sub(lambda code: code[0].replace("\\|", "|"), rest)
        if (
            item
            and after_paragraph
            and wraps(lines)
            and (is_in_list or not item[2][0].isdigit() or item[2].startswith("1."))
        ):
            lines.append("")
        lines.append(" " * 4 * len(columns) + rest if line.strip() else "")
        # An item of one paragraph may be followed by the next one at once.
        after_paragraph = not item and (after_paragraph or not line.strip())
        if item:
            columns.append(len(item[0]))
        elif opened := _FENCE.match(line):
            fence = opened[1]
    return "\n".join(lines) + "\n"


def wraps(lines: list[str]) -> bool:
    """Whether the next line continues the paragraph of the last one."""
    return bool(lines) and bool(lines[-1].strip())

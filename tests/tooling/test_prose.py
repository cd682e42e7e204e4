"""Prose avoids words that make it read as translated; each failure names the file, the line and a better word.

Covered are Markdown without code, and comments, strings and test names in Python. A pattern belongs in the table only
if it is wrong in every context.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.apiserver import REPOSITORY

# Patterns in lower case, with a single space for any white space, and what to write instead.
BETTER = {
    r"(go|goes|going|went) on(?! (a|an|the|for)\b)": "continue, resume or retry",
    r"told(?! apart\b)": "reported, described or passed",
    r"tells (of|so)": "reports or describes",
    r"stands(?! (alone|apart|for|in|out|still)\b)": "is, holds or remains valid",
    r"anew": "again",
    r"mend(s|ed|ing)?": "fix",
    r"by now": "now, already or no longer",
    r"(has|have) not the form": "is not a valid …",
    r"(take|takes|took|taking)( \S+){0,5} along": "also removes, or includes",
    r"gets by (on|with|without)": "needs only, or does not need",
    r"passing faults?": "transient error",
    r"number formats?": "dtype",
    r"in silence": "silently, or without a status",
}
PATTERN = re.compile(
    "|".join(rf"(?P<p{index}>\b{pattern}\b)" for index, pattern in enumerate(BETTER)).replace(" ", r"\s+"),
    re.IGNORECASE,
)
COVERED = (
    *("CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"),
    *("docs", "examples", "jobs", "operator", "tests", "tools"),
)
_CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.MULTILINE | re.DOTALL)


def prose_files(place: Path) -> Iterator[Path]:
    """Markdown and Python files at or below a place, without this one."""
    files = place.rglob("*") if place.is_dir() else (place,)
    return (path for path in files if path.suffix in (".md", ".py") and path != Path(__file__))


def findings(path: str, text: str) -> list[str]:
    """Lines such as `docs/models.md:7: 'anew': write again`, in the order of the file."""
    passages = _python_prose(text) if path.endswith(".py") else _markdown_prose(text)
    found = (
        (start + prose.count("\n", 0, match.start()), match) for start, prose in passages for match in _hits(prose)
    )
    lines = sorted({(line, " ".join(match[0].split()), _better(match)) for line, match in found})
    return [f"{path}:{line}: {words!r}: write {better}" for line, words, better in lines]


def _hits(prose: str) -> Iterator[re.Match[str]]:
    # The marks of continued comment lines must not separate the words of a pattern.
    return PATTERN.finditer(prose.replace("\n#", "\n "))


def _better(match: re.Match[str]) -> str:
    index = next(int(name[1:]) for name, words in match.groupdict().items() if words is not None)
    return list(BETTER.values())[index]


def _markdown_prose(text: str) -> Iterator[tuple[int, str]]:
    """The page with its code blanked out, which keeps the line numbers."""
    yield 1, _CODE.sub(lambda code: re.sub(r"[^\n]", " ", code[0]), text)


def _python_prose(text: str) -> Iterator[tuple[int, str]]:
    """Strings, names of tests and blocks of comments, each with its first line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " ")
    yield from _comment_blocks(text)


def _comment_blocks(text: str) -> Iterator[tuple[int, str]]:
    start, lines = 0, list[str]()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        if lines and token.start[0] != start + len(lines):
            yield start, "\n".join(lines)
            lines = []
        start = token.start[0] if not lines else start
        lines.append(token.string)
    if lines:
        yield start, "\n".join(lines)


@pytest.mark.parametrize("place", COVERED)
def test_prose_has_no_word_that_reads_as_translated(place: str) -> None:
    found = [
        finding
        for path in sorted(prose_files(REPOSITORY / place))
        for finding in findings(path.relative_to(REPOSITORY).as_posix(), path.read_text(encoding="utf-8"))
    ]

    assert found == [], "\n".join(found)


def test_every_covered_place_exists() -> None:
    assert [place for place in COVERED if not any(prose_files(REPOSITORY / place))] == []


def test_words_in_strings_comments_and_test_names_are_found_with_their_lines() -> None:
    module = '''"""One line.

It goes
on and says so."""
# The stage was
# told.
value = "mend this"  # made anew
def test_a_stage_goes_on(): ...
'''

    assert findings("a.py", module) == [
        "a.py:3: 'goes on': write continue, resume or retry",
        "a.py:6: 'told': write reported, described or passed",
        "a.py:7: 'anew': write again",
        "a.py:7: 'mend': write fix",
        "a.py:8: 'goes on': write continue, resume or retry",
    ]


def test_identifiers_and_code_in_markdown_are_not_prose() -> None:
    page = "A `told` word.\n\n```\nmend it\n```\n\nIt stands for a list, and goes on the PATH.\nIt stands\ntwice.\n"

    assert findings("a.md", page) == ["a.md:8: 'stands': write is, holds or remains valid"]
    assert findings("a.py", "told = mend(anew)\n") == []

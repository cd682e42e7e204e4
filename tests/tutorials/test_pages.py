"""Every block of every tutorial is run by a test, or says why not; and what the tests take for equal output."""

import re

import pytest

from support.tutorials import FOLDER, blocks_of, matches, tutorial

PAGES = sorted(path.name for path in FOLDER.glob("*.md") if path.name != "index.md")
RUN_BY_TESTS = {
    "own-data.md", "gates.md", "roll-back.md", "formats.md", "devices.md", "chat-with-tools.md", "llama-3-8b.md",
    "cluster.md", "nightly.md",
}  # fmt: skip


def test_every_tutorial_is_followed_by_a_test() -> None:
    assert set(PAGES) == RUN_BY_TESTS


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page: str) -> None:
    blocks = tutorial(page)

    assert [block.place for block in blocks if not block.is_run_or_marked] == []
    for block in blocks:
        if reason := block.marks.get("not run here"):
            print(f"{block.place}: not run here: {reason}")


@pytest.mark.parametrize("page", PAGES)
def test_every_tutorial_has_the_same_parts_and_is_short(page: str) -> None:
    text = (FOLDER / page).read_text(encoding="utf-8")
    words = len(re.sub(r"^ *```.*?^ *```$|<!--.*?-->", "", text, flags=re.MULTILINE | re.DOTALL).split())

    assert "\nAt the end " in text or " At the end " in text
    assert "**You need** " in text
    assert re.search(r"^\*\*If ", text, re.MULTILINE), "what to do if it differs"
    assert "\n## Next\n" in text
    assert 250 <= words <= 700


def test_commands_have_what_they_print_and_continue_after_a_backslash() -> None:
    page = "Text\n\n<!-- exit code: 1 -->\n```console\n$ one \\\n    two\na\nb\n$ three\n```\n"
    (block,) = blocks_of("a.md", page)

    assert [(command.text, command.expected) for command in block.commands] == [
        ("one \\\n    two", "a\nb\n"),
        ("three", ""),
    ]
    assert (block.place, block.marks) == ("a.md:4", {"exit code": "1"})


def test_a_comment_without_a_block_and_an_open_block_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a\.md:3: a comment must be right above its block"):
        blocks_of("a.md", "<!-- exit code: 1 -->\n\nText\n\n```console\n$ one\n```\n")
    with pytest.raises(ValueError, match=r"a\.md:1: the block is not closed"):
        blocks_of("a.md", "```console\n$ one\n")


def test_a_block_without_commands_must_say_what_it_is() -> None:
    plain, file, marked = blocks_of(
        "a.md", "```yaml\na: 1\n```\n<!-- file: a.yaml -->\n```yaml\n```\n<!-- not run here: x -->\n```\n```\n"
    )

    assert [block.is_run_or_marked for block in (plain, file, marked)] == [False, True, True]


@pytest.mark.parametrize(
    ("expected", "printed", "any_figures"),
    [
        ("a  b\n", "a b\n", False),
        ("first\n…\nlast\n", "first\nmore\nmore\nlast\n", False),
        ("…\nlast\n", "last\n", False),
        ("at file://…/latest.json", "at file:///tmp/x/latest.json", False),
        ("edge  148 MB  95.8%  0.010\n", "edge 2.4 MB 100.0% 1.198\n", True),
        ("0123456789ab-123456789abc 500 B", "3fedcba98765-3fedcba98766 23.1 MB", True),
        (
            "version 0123456789ab at 2026-11-24T11:09:43+00:00",
            "version fedcba987654 at 2026-11-28T12:00:00+00:00",
            True,
        ),
    ],
)
def test_output_that_differs_as_allowed_matches(expected: str, printed: str, any_figures: bool) -> None:
    assert matches(expected, printed, any_figures=any_figures) is not None


@pytest.mark.parametrize(
    ("expected", "printed", "any_figures"),
    [
        ("465 rows", "466 rows", False),
        ("first", "first\nmore", False),
        ("first\n…\nlast", "first\nmore", False),
        ("edge 148 MB", "edge none", True),
        ("Published. 1", "Refused. 1", True),
        ("0123456789ab then 0123456789ab", "aaaaaaaaaaaa then bbbbbbbbbbbb", True),
    ],
)
def test_other_words_and_other_figures_do_not_match(expected: str, printed: str, any_figures: bool) -> None:
    assert matches(expected, printed, any_figures=any_figures) is None

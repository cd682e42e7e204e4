"""The hooks of the site: links out of docs/, lists, tutorials, and files of the repository as pages."""

import pytest

from support.site import hooks, loaded_from_elsewhere

HOOKS = hooks()
TRACKED = frozenset({"README.md", "docs/a.md", "docs/b.png", "examples/README.md", "examples/x/run.yaml", "Makefile"})


@pytest.mark.parametrize(
    ("link", "pointed"),
    [
        ("../README.md", "repository/README.md"),
        ("../README.md#part", "repository/README.md#part"),
        ("../examples", "repository/examples/README.md"),
        ("../examples/x", "repository/examples/x/README.md"),
        ("../examples/x/run.yaml", "repository/examples/x/run.yaml.md"),
        ("../Makefile", "repository/Makefile.md"),
        ("b.png", "b.png"),
        ("#part", "#part"),
        ("missing.md", "missing.md"),
        ("https://example.com/README.md", "https://example.com/README.md"),
    ],
)
def test_a_link_of_the_docs_points_at_the_page_that_shows_its_target(link: str, pointed: str) -> None:
    assert HOOKS.point_links(f"See [it]({link}).", "docs/a.md", "a.md", TRACKED) == f"See [it]({pointed})."


def test_a_link_of_a_file_outside_of_the_docs_is_relative_to_its_page() -> None:
    page = HOOKS.point_links(
        "![b](docs/b.png) [a](docs/a.md) [e](examples)", "README.md", "repository/README.md", TRACKED
    )

    assert page == "![b](../b.png) [a](../a.md) [e](examples/README.md)"


def test_links_in_code_are_left_as_they_are() -> None:
    page = "`[a](../README.md)`\n\n```\n[a](../README.md)\n```\n"

    assert HOOKS.point_links(page, "docs/a.md", "a.md", TRACKED) == page


@pytest.mark.parametrize(
    ("page", "indented"),
    [
        ("- a\n  b\n\n  ```\n  x:\n    y\n  ```\n", "- a\n    b\n\n    ```\n    x:\n      y\n    ```\n"),
        ("1. a\n\n   ```\n   x\n   ```\n2. b\n", "1. a\n\n    ```\n    x\n    ```\n\n2. b\n"),
        ("Text\n- a\n- b\n", "Text\n\n- a\n- b\n"),
        ("- a\n\n  b\n- c\n- d\n", "- a\n\n    b\n\n- c\n- d\n"),
        ("In the year\n1986. End\n", "In the year\n1986. End\n"),
        ("- a\n  - b\n    c\n- d\n", "- a\n    - b\n        c\n- d\n"),
        ("- a\n\nText\n\n    code\n", "- a\n\nText\n\n    code\n"),
        ("```\n- a\n  b\n```\n", "```\n- a\n  b\n```\n"),
    ],
)
def test_lists_are_indented_by_four_spaces_a_level(page: str, indented: str) -> None:
    assert HOOKS.for_python_markdown(page) == indented


def test_code_in_tables_has_no_backslash_before_a_pipe() -> None:
    page = "| `a\\|b` | c\\|d |\n\n`e\\|f`\n\n```\n| `a\\|b` |\n```\n"

    assert HOOKS.for_python_markdown(page) == page.replace("`a\\|b` | c", "`a|b` | c")


def test_the_name_of_a_field_wraps_after_its_dots() -> None:
    html = "<td><code>spec.lora.rank</code></td><td>as <code>a.b</code></td>"

    assert HOOKS.let_fields_wrap(html) == html.replace("spec.lora.rank", "spec.<wbr>lora.<wbr>rank")


def test_tutorials_are_in_the_order_in_which_a_newcomer_reads_them() -> None:
    assert HOOKS.in_reading_order(["gates", "zebra", "own-data", "index"]) == ["index", "own-data", "gates", "zebra"]


def test_a_long_file_is_shown_by_its_first_lines() -> None:
    shown = HOOKS.as_code("examples/sensor-faults/train.jsonl")

    assert shown.count("\n") < 20
    assert shown.endswith("\n8 of 704 lines.\n")


def test_scripts_styles_and_pictures_of_the_network_are_found_and_links_are_not() -> None:
    page = (
        '<a href="https://a"></a><script src="https://b"></script><link rel="stylesheet" href="//c"><img src="d.png">'
    )

    assert loaded_from_elsewhere(page) == ["https://b", "//c"]

"""The documentation site: strict builds, nothing from elsewhere, and readable pages at every width."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import site
from support.apiserver import REPOSITORY
from support.report_pages import CHROMIUM, running_chromium

PAGES = ("index.html", "concepts.html", "troubleshooting.html", "reference.html", "repository/examples/index.html")
WIDTHS = (390, 820, 1440)
needs_mkdocs = pytest.mark.skipif(not site.MKDOCS.exists(), reason="no environment of the site: run `make docs`")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH (apt-get install chromium)")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    ended = site.build(target)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return target


@pytest.fixture(scope="module")
def pages(built: Path) -> dict[str, str]:
    return {path.relative_to(built).as_posix(): path.read_text(encoding="utf-8") for path in built.rglob("*.html")}


@needs_mkdocs
def test_every_page_of_the_docs_and_what_it_links_to_is_on_the_site(pages: dict[str, str]) -> None:
    expected = {f"{path.stem}.html" for path in (REPOSITORY / "docs").glob("*.md")}

    assert expected <= pages.keys()
    assert {
        "repository/index.html",
        "repository/CHANGELOG.html",
        "repository/examples/gitops/index.html",
    } <= pages.keys()
    assert "From one YAML object" in pages["repository/index.html"]


@needs_mkdocs
def test_no_page_makes_a_browser_load_anything_from_the_network(built: Path, pages: dict[str, str]) -> None:
    found = {name: site.loaded_from_elsewhere(page) for name, page in pages.items()}
    styles = [path.read_text(encoding="utf-8") for path in built.rglob("*.css")]

    assert {name: addresses for name, addresses in found.items() if addresses} == {}
    assert [address for style in styles for address in re.findall(r"url\(['\"]?(?:https?:)?//[^)]*", style)] == []


@needs_mkdocs
def test_the_build_fails_on_broken_links_and_on_lists_that_python_markdown_does_not_see(tmp_path: Path) -> None:
    page = "# Title\n\n[a](missing.md) [b](#missing) [c](../missing)\n\nText\n2. no list\n"
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "broken.md").write_text(page, encoding="utf-8")
    settings = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[0]
    hook = (REPOSITORY / "docs" / "site" / "hooks.py").as_posix()
    (tmp_path / "mkdocs.yml").write_text(settings.replace("docs/site/hooks.py", hook), encoding="utf-8")

    ended = site.build(tmp_path / "site", tmp_path / "mkdocs.yml")

    expected = (
        "link 'missing.md'",
        "link '#missing'",
        "link '../missing'",
        "a list or a fence is rendered as a paragraph",
    )
    assert ended.returncode == 1
    assert [problem for problem in expected if problem not in ended.stderr] == []


@needs_mkdocs
@needs_chromium
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_pages_fit_every_width_and_the_search_finds_a_message_without_a_server(built: Path) -> None:
    requested, errors = list[str](), list[str]()
    with running_chromium() as browser:
        for width in WIDTHS:
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("request", lambda request: requested.append(request.url))
            page.on("pageerror", lambda error: errors.append(str(error)))
            for name in PAGES:
                page.goto((built / name).as_uri())
                assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
        page.locator("input.md-search__input").click()
        page.keyboard.type("Git LFS")
        page.locator(".md-search-result__item", has_text="Troubleshooting").first.wait_for()

    assert errors == []
    assert [url for url in requested if not url.startswith(("file:", "data:", "blob:"))] == []


@needs_mkdocs
@needs_chromium
@pytest.mark.slow
def test_pages_are_accessible_in_light_and_dark(built: Path) -> None:
    with running_chromium() as browser:
        for page in (browser.new_page(color_scheme="light"), browser.new_page(color_scheme="dark")):
            for name in PAGES[:3]:
                page.goto((built / name).as_uri())
                assert list(serious(page)) == [], name


def serious(page: object) -> Iterator[str]:
    """What axe finds in the text of a page that hinders readers; the theme's own frame is not ours."""
    from axe_playwright_python.sync_playwright import Axe

    results = Axe().run(page, context="article")
    for each in results.response["violations"]:
        if each["impact"] in ("serious", "critical"):
            yield f"{each['id']}: {each['nodes'][0]['html'][:200]}"

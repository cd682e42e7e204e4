"""The page in a real Chromium: no error, accessible in both schemes, readable at every width, as it was approved."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import pytest

from support.report_pages import APPROVED, CHROMIUM, WIDTH, running_chromium, set_one_font, thumbnail, write_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
    # playwright leaves its event loop to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

WIDTHS = (390, 820, WIDTH)
SCHEMES = ("light", "dark")
_TOLERANCE = 24
"""Difference of a colour channel, of 255, below which pixels count as equal."""

_MOST_DIFFERENT = 0.002
HOW_TO_APPROVE = "look at the page; if it is right, approve it with `make pictures`"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with running_chromium() as started:
        yield started


@pytest.fixture(params=[(width, scheme) for width in WIDTHS for scheme in SCHEMES], ids=str)
def page(request: pytest.FixtureRequest, browser: "Browser", page_file: Path) -> "Iterator[Page]":
    """The report at one width in one scheme; what it writes to the console or requests of the network is an error."""
    width, scheme = request.param
    # As a phone without a network, which would show what the page tries to load.
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    opened = context.new_page()
    problems: list[str] = []
    opened.on("console", lambda message: problems.append(message.text))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on(
        "request", lambda sent: problems.append(sent.url) if not sent.url.startswith(("file:", "data:")) else None
    )
    opened.goto(page_file.as_uri())
    opened.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    yield opened
    context.close()
    assert problems == []


def test_the_page_is_accessible_and_fits_into_its_width(page: "Page") -> None:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page)

    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    narrow = page.evaluate(
        """() => [...document.querySelectorAll('.chart text')].map(text => text.getBoundingClientRect().height)
            .filter(height => height > 0 && height < 9)"""
    )
    assert narrow == [], "letters of a chart are too small to read"


def test_the_page_looks_as_it_was_approved(browser: "Browser", page_file: Path) -> None:
    from PIL import Image, ImageChops

    context = browser.new_context(viewport={"width": WIDTH, "height": 900}, bypass_csp=True)
    opened = context.new_page()
    opened.goto(page_file.as_uri())
    set_one_font(opened)

    found, approved = thumbnail(opened), Image.open(APPROVED).convert("RGB")
    context.close()

    assert abs(found.height - approved.height) <= 0.02 * approved.height, HOW_TO_APPROVE
    difference = ImageChops.difference(found.resize(approved.size), approved)
    different = numpy.asarray(difference).max(axis=2) > _TOLERANCE
    assert different.mean() <= _MOST_DIFFERENT, HOW_TO_APPROVE

"""Reports in a real Chromium: pages of fixed runs, pictures of them, and the picture in the documentation.

`make pictures` writes docs/report.png and the approved picture of the tests.
"""

import base64
import io
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_jobs.reporting.page import render_report
from edgetune_jobs.store.folder_store import LocalFolderStore
from support.apiserver import REPOSITORY
from support.reported_runs import fixed_runs

if TYPE_CHECKING:
    from PIL.Image import Image
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
APPROVED = REPOSITORY / "tests" / "jobs" / "reporting" / "data" / "approved.png"
DOCS_PICTURE = REPOSITORY / "docs" / "report.png"
WIDTH = 1280
_APPROVED_WIDTH = 320
_GAP = 20
_BACKGROUND = "#f4f6f9"
# A font that comes with matplotlib: machines have other fonts, which wrap lines elsewhere.
_ONE_FONT = """
@font-face {{ font-family: Fixed; src: url("data:font/ttf;base64,{regular}"); }}
@font-face {{ font-family: Fixed; font-weight: 600 900; src: url("data:font/ttf;base64,{bold}"); }}
*, .chart text {{ font-family: Fixed !important; }}
"""


def write_page(folder: Path) -> Path:
    """Write the report of the fixed newer version, compared with the older one."""
    path = folder / "report.html"
    path.write_bytes(render_report(*fixed_runs(LocalFolderStore((folder / "store").as_uri()), folder / "local")))
    return path


@contextmanager
def running_chromium() -> "Iterator[Browser]":
    """Chromium of this machine, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, as in a container, Chromium refuses to start with its sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False)
        try:
            yield browser
        finally:
            browser.close()


def set_one_font(page: "Page") -> None:
    """Set all text in DejaVu Sans, which comes with matplotlib."""
    from matplotlib import get_data_path

    folder = Path(get_data_path()) / "fonts" / "ttf"
    files = {"regular": folder / "DejaVuSans.ttf", "bold": folder / "DejaVuSans-Bold.ttf"}
    fonts = {name: base64.b64encode(path.read_bytes()).decode() for name, path in files.items()}
    page.add_style_tag(content=_ONE_FONT.format(**fonts))
    page.evaluate("document.fonts.ready.then(() => true)")


def thumbnail(page: "Page") -> "Image":
    """The whole page as a small picture, in which single pixels of letters make no difference."""
    from PIL import Image

    picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    height = round(picture.height * _APPROVED_WIDTH / picture.width)
    return picture.resize((_APPROVED_WIDTH, height), Image.Resampling.BOX)


def _write_pictures() -> None:
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder, running_chromium() as browser:
        context = browser.new_context(viewport={"width": WIDTH, "height": 900}, bypass_csp=True)
        page = context.new_page()
        page.goto(write_page(Path(folder)).as_uri())
        set_one_font(page)
        APPROVED.parent.mkdir(exist_ok=True)
        thumbnail(page).save(APPROVED, optimize=True)
        parts = [page.locator(part).screenshot() for part in ("header", "#scores", "#training")]
        _stacked([Image.open(io.BytesIO(part)).convert("RGB") for part in parts]).save(DOCS_PICTURE, optimize=True)


def _stacked(parts: "Sequence[Image]") -> "Image":
    """Parts of a page below each other, with few colours."""
    from PIL import Image

    whole = Image.new("RGB", (WIDTH, sum(part.height + _GAP for part in parts)), _BACKGROUND)
    top = 0
    for part in parts:
        whole.paste(part, ((WIDTH - part.width) // 2, top))
        top += part.height + _GAP
    return whole.quantize(128)


if __name__ == "__main__":
    _write_pictures()

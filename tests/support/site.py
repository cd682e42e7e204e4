"""The documentation as a site: built with the environment of `make docs`, and its hooks."""

import html.parser
import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from support.apiserver import REPOSITORY

MKDOCS = REPOSITORY / ".venv" / "docs" / "bin" / "mkdocs"
# What a browser loads by itself; a link to another page is not among it.
_LOADED = {"script": "src", "img": "src", "source": "srcset", "iframe": "src", "video": "src", "link": "href"}
_LOADED_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "manifest"}
_NETWORK = ("http:", "https:", "//")


def hooks() -> ModuleType:
    """The module with the hooks of MkDocs, which no package contains."""
    spec = importlib.util.spec_from_file_location("site_hooks", REPOSITORY / "docs" / "site" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(target: Path, config: Path = REPOSITORY / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    """Build the site strictly, as `make docs` does."""
    command: list[str | Path] = [MKDOCS, "build", "--strict", "--config-file", config, "--site-dir", target]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment, check=False)


def loaded_from_elsewhere(page: str) -> list[str]:
    """Addresses on the network that a page makes a browser load: scripts, styles, fonts, icons and pictures."""
    return [address for address in _Loads.of(page) if address.startswith(_NETWORK)]


class _Loads(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    @classmethod
    def of(cls, page: str) -> Iterator[str]:
        parser = cls()
        parser.feed(page)
        yield from parser.found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and not _LOADED_LINKS & set((values.get("rel") or "").split()):
            return
        self.found += [address] if (address := values.get(_LOADED.get(tag, ""))) else []

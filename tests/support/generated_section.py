"""A section of a page in docs/ that `make generate` writes and `make check` compares."""

import sys
from dataclasses import dataclass
from pathlib import Path

from support.apiserver import REPOSITORY


@dataclass(frozen=True)
class GeneratedSection:
    """The lines of a page between two markers."""

    page: Path
    begin: str
    """The line of the first marker, with its end of line."""

    end: str
    """The line of the second marker, with its end of line."""

    def page_with(self, content: str) -> str:
        """The page's text with this content in the section.

        Raises:
            SystemExit: the page lacks a marker.
        """
        before, begin, rest = self.page.read_text(encoding="utf-8").partition(self.begin)
        _, end, after = rest.partition(self.end)
        if not begin or not end:
            raise SystemExit(f"{self.page} lacks {self.begin.strip()} or {self.end.strip()}")
        return f"{before}{begin}{content}{end}{after}"

    def write_or_check(self, content: str) -> None:
        """Write the section, or with --check on the command line compare it.

        Raises:
            SystemExit: the page lacks a marker, or with --check has another content.
        """
        written = self.page_with(content)
        if "--check" not in sys.argv:
            self.page.write_text(written, encoding="utf-8")
        elif self.page.read_text(encoding="utf-8") != written:
            page = self.page.relative_to(REPOSITORY)
            raise SystemExit(f"{page}: the section after {self.begin.strip()} is out of date; run make generate")

"""The places of this repository that have the version of a release, read and written."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

CHANGELOG = Path("CHANGELOG.md")
_RELEASE = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
_UNRELEASED = "## [Unreleased]"


@dataclass(frozen=True)
class Place:
    """A line with the version: in a file, the text before and after it."""

    path: Path
    before: str
    after: str = ""

    def read(self, root: Path) -> str:
        """The version at this place; empty if there is none."""
        found = self._pattern.search((root / self.path).read_text(encoding="utf-8"))
        return found["version"] if found else ""

    def write(self, root: Path, version: str) -> None:
        """Replace the version.

        Raises:
            LookupError: the file has no such line.
        """
        text, count = self._pattern.subn(
            f"{self.before}{version}{self.after}", (root / self.path).read_text(encoding="utf-8"), count=1
        )
        if count != 1:
            raise LookupError(f"{self.path} has no line with {self.before}…{self.after}")
        (root / self.path).write_text(text, encoding="utf-8")

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"(?m)^{re.escape(self.before)}(?P<version>[^\s\"]*){re.escape(self.after)}$")


PLACES: Mapping[str, Place] = {
    "pyproject.toml": Place(Path("pyproject.toml"), 'version = "', '"'),
    "Chart.yaml": Place(Path("charts/edgetune/Chart.yaml"), "version: "),
    "Chart.yaml (appVersion)": Place(Path("charts/edgetune/Chart.yaml"), 'appVersion: "', '"'),
    "profiles.py (default image)": Place(
        Path("operator/edgetune_operator/api/profiles/profile.py"), '    reference: str = "ghcr.io/edgetune/jobs:', '"'
    ),
}
"""Each place by the name that messages give it."""


def is_release(version: str) -> bool:
    """Whether it is a version that both Python and Helm read in the same way: three numbers."""
    return _RELEASE.fullmatch(version) is not None


def notes(changelog: str, version: str) -> str:
    """What the changelog says about a version, without its heading; empty if it has no dated section."""
    heading = re.search(rf"(?m)^## \[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}$", changelog)
    return changelog[heading.end() :].partition("\n## ")[0].strip() if heading else ""


def set_version(root: Path, version: str, day: date) -> None:
    """Write a version everywhere: at all places, and as the heading of what is unreleased in the changelog.

    Args:
        root: the repository.
        version: three numbers.
        day: of the release.

    Raises:
        ValueError: the version is not three numbers, or the changelog has nothing unreleased, or has it already.
    """
    if not is_release(version):
        raise ValueError(f"{version!r} is not a version: use three numbers such as 0.2.0")
    text = (root / CHANGELOG).read_text(encoding="utf-8")
    if f"## [{version}]" in text:
        raise ValueError(f"{CHANGELOG} has a section of {version} already: use a new version")
    before, found, after = text.partition(f"{_UNRELEASED}\n")
    if not found or not after.partition("\n## ")[0].strip():
        raise ValueError(f"{CHANGELOG} has nothing under {_UNRELEASED}: describe what is new there")
    for place in PLACES.values():
        place.write(root, version)
    (root / CHANGELOG).write_text(f"{before}{_UNRELEASED}\n\n## [{version}] - {day}\n{after}", encoding="utf-8")

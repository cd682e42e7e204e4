"""What must hold before a release is built. Each problem is a sentence that says what to do."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.signing.keys import read_private_key
from release import versions
from release.errors import Refused

UNSIGNED = "none"
"""The signing key of a release without signatures."""

_MOST_FILES = 5


@dataclass(frozen=True)
class Source:
    """The commit that a release is built from."""

    root: Path
    version: str
    commit: str
    committed_at: datetime

    @property
    def tag(self) -> str:
        return tag_of(self.version)


def tag_of(version: str) -> str:
    """The Git tag of a version."""
    return f"v{version}"


def check(root: Path, version: str, signing_key: str) -> Source:
    """Check that a release of the version can be built from the repository as it is.

    Args:
        root: the repository.
        version: of the release.
        signing_key: path of a private key in PEM, or UNSIGNED.

    Raises:
        Refused: it cannot; all reasons.
    """
    if not versions.is_release(version):
        reason = f"VERSION is {version!r}" if version else "VERSION is not set"
        raise Refused([f"{reason}: give three numbers, as in `make release VERSION=0.2.0 SIGNING_KEY=release.pem`."])
    problems = [*_tree(root), *_tag(root, version), *_versions(root, version), *_key(signing_key)]
    if problems:
        raise Refused(problems)
    seconds = int(_git(root, "show", "--no-patch", "--format=%ct", "HEAD"))
    return Source(root, version, _git(root, "rev-parse", "HEAD"), datetime.fromtimestamp(seconds, UTC))


def _tree(root: Path) -> Iterator[str]:
    changed = _git(root, "status", "--porcelain").splitlines()
    if changed:
        names = ", ".join(line.split(maxsplit=1)[1] for line in changed[:_MOST_FILES])
        more = f" and {len(changed) - _MOST_FILES} more" if len(changed) > _MOST_FILES else ""
        yield f"The working tree is not clean: commit or stash {names}{more}, or release from a fresh clone of the tag."


def _tag(root: Path, version: str) -> Iterator[str]:
    tag = tag_of(version)
    tagged = _git(root, "rev-parse", "--verify", "--quiet", f"refs/tags/{tag}^{{commit}}", check=False)
    head = _git(root, "rev-parse", "HEAD")
    if not tagged:
        yield f"There is no tag {tag}: create it with `git tag -a {tag} -m 'Edgetune {version}'` once `.ci/run` passes."
    elif tagged != head:
        yield f"The tag {tag} is at {tagged[:12]}, and HEAD is at {head[:12]}: check it out with `git checkout {tag}`."


def _versions(root: Path, version: str) -> Iterator[str]:
    how = f"run `make version VERSION={version}`, commit, and tag that commit"
    for name, place in versions.PLACES.items():
        found = place.read(root)
        if found != version:
            yield f"The version in {name} is {found or 'missing'} instead of {version}: {how}."
    if not versions.notes((root / versions.CHANGELOG).read_text(encoding="utf-8"), version):
        yield f"{versions.CHANGELOG} has no section `## [{version}] - YYYY-MM-DD` with text: {how}."


def _key(signing_key: str) -> Iterator[str]:
    if not signing_key:
        yield (
            "SIGNING_KEY is not set: give the path of the private key (docs/releases.md says how to make one), or "
            f"SIGNING_KEY={UNSIGNED} for a release without signatures."
        )
    elif signing_key != UNSIGNED:
        try:
            read_private_key(Path(signing_key))
        except InvalidInput as error:
            yield f"SIGNING_KEY cannot sign: {error}."


def _git(root: Path, *arguments: str, check: bool = True) -> str:
    """Output of a git command; with check=False, empty if it fails."""
    done = subprocess.run(["git", "-C", str(root), *arguments], check=False, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise Refused([f"git cannot read {root}: {done.stderr.strip()}. Release from a clone of the repository."])
    return done.stdout.strip()

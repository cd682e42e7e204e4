"""Stand-ins for what a release is made of: images of a few files, and a repository with one tagged commit."""

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

from cluster.folders import REPOSITORY
from release import oci, versions
from release.checks import Source

VERSION = "7.8.9"
_FOLDERS = ("charts/", "crds/", "schemas/", "operator/", "jobs/")
_FILES = ("constraints.txt", "LICENSE", ".gitignore")
COMMITTED_AT = datetime(2026, 11, 5, 12, 30, tzinfo=UTC)
SOURCE = Source(REPOSITORY, VERSION, "c" * 40, COMMITTED_AT)
DPKG_STATUS = b"""Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc (2.36-9)
Version: 2.36-9+deb12u9

Package: removed
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0
"""


def dist_info(name: str, version: str, *lines: str) -> bytes:
    """METADATA of an installed Python package."""
    return "\n".join(("Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines, "", "text")).encode()


SITE_PACKAGES = "opt/venv/lib/python3.11/site-packages"
FILES: Mapping[str, bytes] = {
    "etc/os-release": b'PRETTY_NAME="Debian GNU/Linux 12"\nID=debian\nVERSION_ID="12"\n',
    "var/lib/dpkg/status": DPKG_STATUS,
    f"{SITE_PACKAGES}/edgetune-{VERSION}.dist-info/METADATA": dist_info("edgetune", VERSION),
    f"{SITE_PACKAGES}/kopf-1.45.2.dist-info/METADATA": dist_info("kopf", "1.45.2", "License-Expression: MIT"),
    f"{SITE_PACKAGES}/torch-2.13.0.dist-info/METADATA": dist_info("torch", "2.13.0", "License: BSD-3-Clause"),
}


def make_image(layout: Path, *layers: Mapping[str, bytes]) -> oci.Image:
    """An image in an OCI layout, as skopeo writes one from buildah's store: layers are plain tar archives."""
    (layout / "blobs" / "sha256").mkdir(parents=True)
    described = [_put(layout, _tar(files), "application/vnd.oci.image.layer.v1.tar") for files in layers]
    configuration = {
        "created": "2026-11-28T09:00:00.123456789Z",
        "architecture": "amd64",
        "os": "linux",
        "config": {"User": "65532:65532", "Labels": {"io.buildah.version": "1.28.2"}},
        "rootfs": {"type": "layers", "diff_ids": [each["digest"] for each in described]},
        "history": [{"created": "2026-11-28T09:00:00Z", "created_by": "COPY"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "config": _put(layout, json.dumps(configuration).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": described,
    }
    descriptor = _put(layout, json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [descriptor]}), encoding="utf-8")
    return oci.open_layout(layout)


def make_repository(folder: Path, names: Iterable[str] = ()) -> Path:
    """A repository with VERSION everywhere, and the tag of VERSION at its only commit.

    Args:
        folder: is made.
        names: of files of this repository that it also has, besides those with the version.
    """
    for name in {"README.md", *(place.path.as_posix() for place in versions.PLACES.values()), *names}:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((REPOSITORY / name).read_bytes())
    changelog = folder / versions.CHANGELOG
    changelog.write_text("# Changelog\n\n## [Unreleased]\n\n### Added\n\n- Something.\n", encoding="utf-8")
    versions.set_version(folder, VERSION, date(2026, 11, 5))
    git(folder, "init", "--quiet", "--initial-branch", "main")
    commit(folder, "Release")
    git(folder, "tag", f"v{VERSION}")
    return folder


def commit(folder: Path, message: str) -> None:
    """Commit everything, at COMMITTED_AT."""
    day = COMMITTED_AT.isoformat()
    author = ("-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false")
    git(folder, "add", "--all")
    git(folder, *author, "commit", "--quiet", "--message", message, environment={"GIT_COMMITTER_DATE": day})


def git(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """Output of a git command."""
    command = ["env", *(f"{key}={value}" for key, value in (environment or {}).items()), "git", "-C", str(folder)]
    return subprocess.run([*command, *arguments], check=True, capture_output=True, text=True).stdout


def released_files() -> Iterator[str]:
    """Names of the files of this repository that a release is made of."""
    for name in git(REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
        if name.startswith(_FOLDERS) or name in _FILES:
            yield name


def _put(layout: Path, data: bytes, media_type: str) -> dict[str, Any]:
    sha256 = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / sha256).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{sha256}", "size": len(data)}


def _tar(files: Mapping[str, bytes]) -> bytes:
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(f"./{path}")
            entry.size = len(content)
            archive.addfile(entry, BytesIO(content))
    return stream.getvalue()

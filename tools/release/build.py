"""One release, from a tagged commit to a folder of files that can be published."""

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from edgetune_jobs.publishing.signing.keys import PrivateKey
from release import oci
from release.chart import CHART, package_chart, repositories
from release.checks import Source
from release.images import archive_image
from release.installed import Package, packages_of_image, packages_of_wheel, requirements_of_wheel
from release.provenance import seal, sha256_of
from release.python_packages import build_python_packages, metadata_of
from release.sbom import Described, write_sbom
from support.constraints import pins

_COPIED = (
    Path("crds/lorafinetunes.edgetune.dev.yaml"),
    Path("schemas/edgetune.dev/lorafinetune_v1alpha1.json"),
    # With which `pip install --constraint constraints.txt` gets the libraries that were tested.
    Path("constraints.txt"),
)


@dataclass(frozen=True)
class Programs:
    """The programs that a release needs."""

    helm: Path
    uv: Path


@dataclass(frozen=True)
class Images:
    """The images as they were built."""

    by_name: Mapping[str, oci.Image]
    """operator and jobs."""

    base: str
    """Name of the image that they are built on."""


def archive_name(image: str, version: str) -> str:
    """File name of an image's archive."""
    return f"edgetune-{image}-{version}.oci.tar"


def build_release(source: Source, images: Images, programs: Programs, key: PrivateKey | None, target: Path) -> None:
    """Make all files of a release. The target is replaced at the end, and kept as it is if anything fails.

    Args:
        source: the commit.
        images: both images, built from the same commit.
        programs: helm and uv.
        key: signs; None for a release without signatures.
        target: folder of the release.

    Raises:
        RuntimeError: a program fails, or an image has another version.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        tree, draft = Path(folder) / "tree", Path(folder) / "files"
        draft.mkdir()
        _extract(source, tree)
        _add_python_packages(source, tree, programs, draft)
        digests = _add_images(source, tree, images, draft)
        package_chart(tree / CHART, digests, draft, programs.helm)
        for path in _COPIED:
            shutil.copy(tree / path, draft / path.name)
        for path in draft.iterdir():
            path.chmod(0o644)
        seal(draft, source, images.base, key)
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)


def _extract(source: Source, tree: Path) -> None:
    """The files of the commit, without what Git ignores."""
    command = ["git", "-C", str(source.root), "archive", "--format=tar", source.commit]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(tree, filter="data")


def _add_python_packages(source: Source, tree: Path, programs: Programs, draft: Path) -> None:
    wheel, _ = build_python_packages(tree, source.committed_at, draft, programs.uv)
    packages = packages_of_wheel(requirements_of_wheel(metadata_of(wheel)), pins())
    described = Described("edgetune", source.version, sha256_of(wheel), is_image=False, made=source.committed_at)
    write_sbom(described, packages, draft / f"edgetune-{source.version}.cdx.json")


def _add_images(source: Source, tree: Path, images: Images, draft: Path) -> dict[str, str]:
    """Write archives and bills of both images; return their digests by name."""
    digests = {}
    for name, repository in repositories(tree / CHART).items():
        image, archive = images.by_name[name], draft / archive_name(name, source.version)
        digests[name] = archive_image(name, image, source, f"{repository}:{source.version}", archive)
        sha256 = digests[name].partition(":")[2]
        described = Described(repository, source.version, sha256, is_image=True, made=source.committed_at)
        packages = packages_of_image(image)
        _check_version(name, packages, source.version)
        write_sbom(described, packages, draft / f"edgetune-{name}-{source.version}.cdx.json")
    return digests


def _check_version(image: str, packages: Iterable[Package], version: str) -> None:
    """Check that an image has the release, and not what an earlier build left."""
    found = [package.version for package in packages if package.name == "edgetune"]
    if found != [version]:
        raise RuntimeError(
            f"the image {image} has edgetune {' and '.join(found) or 'nowhere'} instead of {version}: build it from "
            "the tagged commit"
        )

"""The two images of a release: those that `make e2e` builds and tests, with labels."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cluster import images as built
from cluster.lock import exclusive
from cluster.requirements import PROGRAMS, NotPossibleHere, ensure_node_possible
from release import oci
from release.checks import Source
from release.errors import Refused
from release.sbom import LICENCE

_BUILDERS = ("buildah", "skopeo", "debootstrap")
_TITLES: Mapping[str, str] = {"operator": "Edgetune operator", "jobs": "Edgetune jobs"}


@contextmanager
def built_images() -> Iterator[Mapping[str, oci.Image]]:
    """Build both images. No cluster and no other release uses the layers until the block ends.

    Raises:
        Refused: this machine cannot build images.
    """
    try:
        ensure_node_possible({program: PROGRAMS[program] for program in _BUILDERS})
    except NotPossibleHere as reason:
        raise Refused([f"The images cannot be built here: {reason}."]) from reason
    with exclusive(wait=True, report=print):
        built.build_all()
        layout = built.Layout()
        yield {name: oci.Image(layout.folder, layout.descriptor(tag)) for name, tag in built.TAGS.items()}


def base_image() -> str:
    """Name of the image that both are built on."""
    return os.environ.get(built.BASE_VARIABLE) or built.BASE


def archive_image(name: str, image: oci.Image, source: Source, reference: str, target: Path) -> str:
    """Write one image as a labelled archive; return the digest of its manifest.

    Args:
        name: operator or jobs.
        image: as it was built.
        source: what it was built from.
        reference: its name with tag.
        target: path of the archive.
    """
    created = source.committed_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    labels = {
        "title": _TITLES[name],
        "version": source.version,
        "revision": source.commit,
        "source": "https://edgetune.dev",
        "licenses": LICENCE,
        "created": created,
    }
    prefixed = {f"org.opencontainers.image.{key}": value for key, value in labels.items()}
    return oci.write_archive(image, oci.Marks(reference, prefixed, source.committed_at), target)

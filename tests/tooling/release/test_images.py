"""Released images: what was built, with labels and a digest that follows from the content."""

import gzip
import tarfile
from pathlib import Path

from release import oci
from release.images import archive_image
from support.release import COMMITTED_AT, FILES, SOURCE, make_image

REFERENCE = "registry.example/edgetune/operator:7.8.9"


def archive(image: oci.Image, target: Path) -> str:
    return archive_image("operator", image, SOURCE, REFERENCE, target)


def test_an_archive_has_the_layers_of_the_built_image_and_labels(tmp_path: Path) -> None:
    built = make_image(tmp_path / "built", FILES, {"app": b"code" * 1000})

    digest = archive(built, tmp_path / "image.tar")
    released = oci.unpack(tmp_path / "image.tar", tmp_path / "released")

    assert released.digest == digest
    assert released.labels == {
        "io.buildah.version": "1.28.2",
        "org.opencontainers.image.created": "2026-11-05T12:30:00Z",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.revision": "c" * 40,
        "org.opencontainers.image.source": "https://edgetune.dev",
        "org.opencontainers.image.title": "Edgetune operator",
        "org.opencontainers.image.version": "7.8.9",
    }
    assert released.configuration["created"] == "2026-11-05T12:30:00Z"
    assert released.configuration["config"]["User"] == "65532:65532"
    assert released.configuration["rootfs"] == built.configuration["rootfs"]
    for before, after in zip(built.manifest["layers"], released.manifest["layers"], strict=True):
        data = released.blob(after["digest"]).read_bytes()
        assert len(data) == after["size"]
        assert after["mediaType"].endswith("tar+gzip")
        assert gzip.decompress(data) == built.blob(before["digest"]).read_bytes()
    assert list(tmp_path.glob(".oci-*")) == []


def test_the_same_image_gives_the_same_archive(tmp_path: Path) -> None:
    built = make_image(tmp_path / "built", FILES)

    assert archive(built, tmp_path / "first.tar") == archive(built, tmp_path / "second.tar")
    assert (tmp_path / "first.tar").read_bytes() == (tmp_path / "second.tar").read_bytes()
    with tarfile.open(tmp_path / "first.tar") as first:
        assert {entry.mtime for entry in first} == {COMMITTED_AT.timestamp()}


def test_a_compressed_layer_stays_as_it_is(tmp_path: Path) -> None:
    archive(make_image(tmp_path / "built", FILES), tmp_path / "first.tar")
    once = oci.unpack(tmp_path / "first.tar", tmp_path / "once")

    archive(once, tmp_path / "second.tar")

    assert oci.unpack(tmp_path / "second.tar", tmp_path / "twice").manifest["layers"] == once.manifest["layers"]


def test_upper_layers_replace_and_remove_files_of_lower_ones(tmp_path: Path) -> None:
    lower = {"a/changed": b"1", "a/removed": b"1", "b/gone/deep": b"1", "c/hidden": b"1", "d": b"1"}
    upper = {"a/changed": b"2", "a/.wh.removed": b"", "b/.wh.gone": b"", "c/.wh..wh..opq": b"", "c/new": b"2"}

    found = oci.read_files(make_image(tmp_path / "built", lower, upper), lambda _: True)

    assert found == {"a/changed": b"2", "c/new": b"2", "d": b"1"}

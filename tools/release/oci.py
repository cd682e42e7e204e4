"""Images as files: an OCI layout is read, labelled, compressed, and written as an archive.

index.json ── descriptor ── manifest ──┬── configuration (labels, date)
                                       └── layers: tar archives
"""

import hashlib
import json
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
_GZIP_TYPE = f"{_LAYER_TYPE}+gzip"
# A layer of gigabytes takes a third of the time of level 6, and a few percent more space.
_GZIP_LEVEL = 3
_GZIP_FORMAT = 31
_CHUNK = 1 << 20
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Image:
    """One image of an OCI layout."""

    layout: Path
    descriptor: Document

    @property
    def digest(self) -> str:
        return str(self.descriptor["digest"])

    @property
    def manifest(self) -> Document:
        return self._document(self.digest)

    @property
    def configuration(self) -> Document:
        return self._document(self.manifest["config"]["digest"])

    @property
    def labels(self) -> Mapping[str, str]:
        labels: Mapping[str, str] = self.configuration["config"].get("Labels") or {}
        return labels

    def blob(self, digest: str) -> Path:
        return _blob(self.layout, digest)

    def _document(self, digest: str) -> Document:
        document: Document = json.loads(self.blob(digest).read_bytes())
        return document


@dataclass(frozen=True)
class Marks:
    """What a released image says about itself."""

    reference: str
    """Name with tag, under which `podman load` and `ctr images import` keep the image."""

    labels: Mapping[str, str]
    created: datetime


def open_layout(layout: Path) -> Image:
    """The only image of a layout.

    Raises:
        LookupError: it has none or several.
    """
    images = json.loads((layout / "index.json").read_bytes())["manifests"]
    if len(images) != 1:
        raise LookupError(f"{layout} has {len(images)} images instead of one")
    return Image(layout, images[0])


def write_archive(image: Image, marks: Marks, target: Path) -> str:
    """Write an image as an OCI archive with labels and gzipped layers. The same image and marks give the same bytes.

    Args:
        image: layers that are plain tar archives are gzipped.
        marks: labels that it gets besides its own, and its date, which hides the time of the build.
        target: path of the archive.

    Returns:
        Digest of the manifest, which the image has in every registry that it is copied to unchanged.
    """
    # Next to the archive, because the layers take gigabytes.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".oci-") as folder:
        layout = Path(folder)
        (layout / "blobs" / "sha256").mkdir(parents=True)
        with ThreadPoolExecutor(2) as threads:
            layers = list(threads.map(lambda layer: _compressed(image, layer, layout), image.manifest["layers"]))
        configuration = _put(layout, _marked(image.configuration, marks), image.manifest["config"]["mediaType"])
        manifest = {**image.manifest, "mediaType": _MANIFEST_TYPE, "config": configuration, "layers": layers}
        names = {
            "org.opencontainers.image.ref.name": marks.reference.rpartition(":")[2],
            "io.containerd.image.name": marks.reference,
        }
        descriptor = {**_put(layout, manifest, _MANIFEST_TYPE), "annotations": names}
        _write(layout / "oci-layout", {"imageLayoutVersion": "1.0.0"})
        _write(layout / "index.json", {"schemaVersion": 2, "manifests": [descriptor]})
        _pack(layout, target, int(marks.created.timestamp()))
    return str(descriptor["digest"])


def unpack(archive: Path, layout: Path) -> Image:
    """Extract an OCI archive into a new folder; return its image."""
    with tarfile.open(archive) as packed:
        packed.extractall(layout, filter="data")
    return open_layout(layout)


def read_files(image: Image, is_wanted: Callable[[str], bool]) -> Mapping[str, bytes]:
    """Content of the files of an image whose path (etc/os-release) is wanted; upper layers hide lower ones."""
    found: dict[str, bytes] = {}
    for layer in image.manifest["layers"]:
        added: dict[str, bytes] = {}
        hidden: set[str] = set()
        with tarfile.open(image.blob(layer["digest"])) as archive:
            for entry in archive:
                path = entry.name.removeprefix("./").lstrip("/")
                folder, _, name = path.rpartition("/")
                if name == _OPAQUE:
                    hidden.add(f"{folder}/")
                elif name.startswith(_WHITEOUT):
                    hidden.add(f"{folder}/{name.removeprefix(_WHITEOUT)}".lstrip("/"))
                elif is_wanted(path) and (entry.isfile() or entry.islnk()):
                    content = archive.extractfile(entry)
                    added[path] = content.read() if content else b""
        found = {path: data for path, data in found.items() if not _is_hidden(path, hidden)} | added
    return found


def _is_hidden(path: str, hidden: set[str]) -> bool:
    return any(path == each or path.startswith(f"{each.rstrip('/')}/") for each in hidden)


def _marked(configuration: Document, marks: Marks) -> Document:
    created = marks.created.strftime("%Y-%m-%dT%H:%M:%SZ")
    labels = {**(configuration["config"].get("Labels") or {}), **marks.labels}
    return {
        **configuration,
        "created": created,
        "config": {**configuration["config"], "Labels": dict(sorted(labels.items()))},
        "history": [{**each, "created": created} for each in configuration.get("history", ())],
    }


def _compressed(image: Image, layer: Document, layout: Path) -> Document:
    """Descriptor of a layer, which is put into the layout: gzipped, unless it is compressed already."""
    source, draft = image.blob(layer["digest"]), layout / f"draft-{layer['digest'].partition(':')[2]}"
    is_plain = layer["mediaType"] == _LAYER_TYPE
    # Its header has no time and no name.
    compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_FORMAT) if is_plain else None
    digest = hashlib.sha256()
    with source.open("rb") as plain, draft.open("wb") as target:
        while chunk := plain.read(_CHUNK):
            _append(compressor.compress(chunk) if compressor else chunk, target, digest)
        if compressor:
            _append(compressor.flush(), target, digest)
    name = f"sha256:{digest.hexdigest()}"
    size = draft.stat().st_size
    draft.replace(_blob(layout, name))
    return {"mediaType": _GZIP_TYPE if is_plain else layer["mediaType"], "digest": name, "size": size}


def _append(data: bytes, target: IO[bytes], digest: Any) -> None:
    digest.update(data)
    target.write(data)


def _put(layout: Path, document: Document, media_type: str) -> dict[str, Any]:
    data = _encoded(document)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    _blob(layout, digest).write_bytes(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}


def _write(path: Path, document: Document) -> None:
    path.write_bytes(_encoded(document))


def _encoded(document: Document) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def _pack(folder: Path, target: Path, seconds: int) -> None:
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.size, entry.mtime, entry.mode = path.stat().st_size, seconds, 0o644
            with path.open("rb") as content:
                archive.addfile(entry, content)

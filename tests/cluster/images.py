"""Images: built by buildah into the cache, layer by layer, and loaded into a node's containerd without a registry."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from cluster import binaries
from cluster.folders import REPOSITORY, RunFolder, cache_folder
from cluster.mounts import unmount_below
from release.chart import CHART, repositories
from release.provenance import problems

PAUSE = "localhost/edgetune-pause:test"
OPERATOR = "localhost/edgetune-operator:test"
JOBS = "localhost/edgetune-jobs:test"
TAGS: Mapping[str, str] = {"operator": OPERATOR, "jobs": JOBS}
"""The two images of a release, as this machine names them."""

BASE_VARIABLE = "EDGETUNE_BASE_IMAGE"
# A folder that `make release` wrote.
RELEASE_VARIABLE = "EDGETUNE_RELEASE"
# Change the tag of BASE when its content changes.
_DEBIAN_RELEASE = "bookworm"
_DEBIAN_PACKAGES = ("ca-certificates", "python3", "python3-dev", "python3-venv")
BASE = f"localhost/edgetune-python:{_DEBIAN_RELEASE}-2"
DOCKERFILES: Mapping[str, str] = {OPERATOR: "operator/Dockerfile", JOBS: "jobs/Dockerfile"}
_STAGE = re.compile(r"^FROM .* AS (\S+)$", re.MULTILINE)
_REF_NAME = "org.opencontainers.image.ref.name"
_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


def build_all() -> tuple[str, ...]:
    """Build the images that a cluster runs; layers with unchanged inputs come from the cache.

    With a given release, its two images are taken as they are.

    Returns:
        Names of the images.

    Raises:
        RuntimeError: an image cannot be built, or the given release is damaged.
    """
    release = given_release()
    if release and (wrong := problems(release, ())):
        raise RuntimeError("\n".join(wrong))
    own = () if release else tuple(DOCKERFILES)
    with _store() as store:
        _build_pause(store)
        if own:
            _build(store, own)
        store.remove_dangling()
        with _timed("exporting the images"):
            for name in (PAUSE, *own):
                store.export(name)
    if release:
        for image, name in TAGS.items():
            with _timed(f"reading {name} of {release}"):
                Layout().add(release_file(release, f"edgetune-{image}-*.oci.tar"), name)
    Layout().prune()
    return (PAUSE, *DOCKERFILES)


def given_release() -> Path | None:
    """The folder of the release to install in place of this clone's images and chart."""
    given = os.environ.get(RELEASE_VARIABLE)
    return Path(given) if given else None


def release_file(release: Path, pattern: str) -> Path:
    """The only file of a release whose name has a pattern.

    Raises:
        RuntimeError: there is none, or several.
    """
    found = list(release.glob(pattern))
    if len(found) != 1:
        raise RuntimeError(f"{release} has {len(found)} files {pattern} instead of one: run `make release`")
    return found[0]


def _build(store: "_Store", names: tuple[str, ...]) -> None:
    arguments = _build_arguments(os.environ.get(BASE_VARIABLE) or _ensure_base(store))
    for name in names:
        file = REPOSITORY / DOCKERFILES[name]
        with _timed(f"building {name}"):
            # With names of their own, the layers of earlier stages are kept too.
            for stage in _STAGE.findall(file.read_text(encoding="utf-8")):
                named = name.replace(":", f"-{stage}:")
                store.build(named, "--target", stage, "--file", file, *arguments, REPOSITORY)
            store.build(name, "--file", file, *arguments, REPOSITORY)


@dataclass(frozen=True)
class Layout:
    """The OCI layout in the cache: images as manifests and blobs, uncompressed, except those of a release."""

    @property
    def folder(self) -> Path:
        return cache_folder() / "images"

    def blob(self, digest: str) -> Path:
        return self.folder / "blobs" / digest.replace(":", "/")

    def descriptor(self, name: str) -> dict[str, Any]:
        """Descriptor of an image's manifest."""
        found = [entry for entry in self._entries() if _name(entry) == name]
        if len(found) != 1:
            raise LookupError(f"{self.folder} has no image {name}")
        return found[0]

    def blobs(self, descriptor: Mapping[str, Any]) -> list[str]:
        """Digests of an image's manifest, configuration and layers."""
        manifest = json.loads(self.blob(descriptor["digest"]).read_bytes())
        return [descriptor["digest"], manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]

    def add(self, archive: Path, name: str) -> None:
        """Give a name to the image in an OCI archive, in place of the image that has it."""
        with tarfile.open(archive) as packed:
            found = packed.extractfile("index.json")
            if found is None:
                raise LookupError(f"{archive} is not an OCI archive")
            (descriptor,) = json.load(found)["manifests"]
            packed.extractall(
                self.folder, (entry for entry in packed if entry.name.startswith("blobs/")), filter="data"
            )
        others = [entry for entry in self._entries() if _name(entry) != name]
        added = {**descriptor, "annotations": {_REF_NAME: name}}
        index = {"schemaVersion": 2, "manifests": [*others, added]}
        (self.folder / "index.json").write_text(json.dumps(index), encoding="utf-8")

    def prune(self) -> None:
        """Remove images whose name a newer image has, and blobs that no image uses any longer."""
        index = self.folder / "index.json"
        content = json.loads(index.read_bytes())
        content["manifests"] = [entry for entry in content["manifests"] if _name(entry)]
        index.write_text(json.dumps(content), encoding="utf-8")
        kept = {self.blob(digest) for entry in self._entries() for digest in self.blobs(entry)}
        for path in (self.folder / "blobs" / "sha256").iterdir():
            if path not in kept:
                path.unlink()

    def _entries(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = json.loads((self.folder / "index.json").read_bytes())["manifests"]
        return entries


@dataclass(frozen=True)
class ContainerImages:
    """The images in one running containerd."""

    run: RunFolder

    def load(self, names: tuple[str, ...]) -> None:
        """Load images of the layout. Blobs that containerd already has are neither read nor written again."""
        layout = Layout()
        present = self._present()
        wanted = {name: layout.descriptor(name) for name in names}
        missing = {name: found for name, found in wanted.items() if present.get(name) != found["digest"]}
        for name, descriptor in missing.items():
            with _timed(f"loading {name}"):
                self._load(layout, name, descriptor)
        self._pin(names, wanted, present)
        if missing:
            self._collect_garbage()

    def _pin(self, names: tuple[str, ...], wanted: Mapping[str, Mapping[str, Any]], present: Mapping[str, str]) -> None:
        """Give the images the names by digest that the packaged chart has, and take those of earlier images away."""
        named = repositories(REPOSITORY / CHART)
        pinned = {f"{named[image]}@{wanted[name]['digest']}": name for image, name in TAGS.items() if name in names}
        for reference in pinned.keys() - present.keys():
            self._ctr("images", "tag", pinned[reference], reference)
        by_digest = tuple(f"{repository}@" for repository in named.values())
        stale = [reference for reference in present if reference.startswith(by_digest) and reference not in pinned]
        if stale:
            self._ctr("images", "remove", *stale)

    def _collect_garbage(self) -> None:
        """Make containerd delete the content of replaced images now, as it does when an image is removed."""
        self._ctr("images", "tag", PAUSE, f"{PAUSE}-again")
        self._ctr("images", "remove", "--sync", f"{PAUSE}-again")

    def _present(self) -> dict[str, str]:
        """Digests of manifests by image name."""
        rows = self._ctr("images", "list").splitlines()[1:]
        return {row.split()[0]: row.split()[2] for row in rows}

    def _load(self, layout: Layout, name: str, descriptor: Mapping[str, Any]) -> None:
        known = set(self._ctr("content", "list", "--quiet").split())
        missing = [digest for digest in dict.fromkeys(layout.blobs(descriptor)) if digest not in known]
        with subprocess.Popen([*self._command(), "images", "import", "-"], stdin=subprocess.PIPE) as process:
            if process.stdin is None:
                raise AssertionError("the process was started with a pipe")
            with process.stdin:
                _write_archive(process.stdin, layout, name, descriptor, missing)
        if process.returncode != 0:
            raise RuntimeError(f"ctr cannot import {name}")
        self._share_blobs(layout, missing)

    def _share_blobs(self, layout: Layout, digests: list[str]) -> None:
        """Hard-link the layout's blobs to containerd's, because the layers take gigabytes."""
        content = self.run.containerd_root / "io.containerd.content.v1.content" / "blobs"
        for digest in digests:
            copy, original = content / digest.replace(":", "/"), layout.blob(digest)
            if copy.stat().st_dev == original.stat().st_dev:
                link = original.with_name(f".{original.name}-{os.getpid()}")
                link.hardlink_to(copy)
                link.replace(original)

    def _ctr(self, *arguments: str) -> str:
        return subprocess.run([*self._command(), *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout

    def _command(self) -> list[str]:
        return ["ctr", "--address", str(self.run.containerd_socket), "--namespace", "k8s.io"]


def _write_archive(
    stream: IO[bytes], layout: Layout, name: str, descriptor: Mapping[str, Any], digests: list[str]
) -> None:
    """Write an OCI archive of one image with the given blobs."""
    named = {**descriptor, "annotations": {"io.containerd.image.name": name}}
    index = {"schemaVersion": 2, "manifests": [named]}
    with tarfile.open(fileobj=stream, mode="w|", bufsize=1 << 20) as archive:
        for path, content in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, BytesIO(data))
        for digest in digests:
            archive.add(layout.blob(digest), f"blobs/{digest.replace(':', '/')}")


@dataclass(frozen=True)
class _Store:
    """buildah's store in the cache."""

    folder: Path

    def build(self, name: str, *arguments: str | Path) -> None:
        # Other isolations need mounts and networks that are not available in a container.
        self._buildah(
            "build", "--quiet", "--layers", "--isolation", "chroot", "--network", "host", "--tag", name, *arguments
        )

    def export(self, name: str) -> None:
        """Write an image to the layout; existing blobs are not written again."""
        # skopeo, because buildah would compress all layers, which takes minutes, and write all of them each time.
        source = f"containers-storage:[overlay@{self._storage}+{self._run}]{name}"
        _run("nice", "skopeo", "copy", "--dest-oci-accept-uncompressed-layers", source, f"oci:{Layout().folder}:{name}")

    def has(self, name: str) -> bool:
        return subprocess.run([*self._command(), "inspect", name], check=False, capture_output=True).returncode == 0

    def remove_dangling(self) -> None:
        # An interrupted build, for example after a full disk, leaves a container, whose image cannot be removed.
        self._buildah("rm", "--all")
        self._buildah("rmi", "--prune")

    def _buildah(self, *arguments: str | Path) -> None:
        _run("nice", *self._command(), *map(str, arguments))

    def _command(self) -> list[str]:
        return ["buildah", "--root", str(self._storage), "--runroot", str(self._run)]

    @property
    def _storage(self) -> Path:
        return self.folder / "storage"

    @property
    def _run(self) -> Path:
        return self.folder / "run"


@contextmanager
def _store() -> Iterator[_Store]:
    store = _Store(cache_folder() / "buildah")
    store.folder.mkdir(parents=True, exist_ok=True)
    try:
        yield store
    finally:
        unmount_below(store.folder)


def _build_arguments(base: str) -> list[str]:
    arguments = ["--build-arg", f"BASE_IMAGE={base}"]
    # Only this machine, not the base image, trusts the authorities that sign the certificates that it sees.
    if Path(_AUTHORITIES).exists():
        arguments += ["--build-arg", f"SSL_CERT_FILE={_AUTHORITIES}", "--volume", f"{_AUTHORITIES}:{_AUTHORITIES}:ro"]
    return arguments


def _ensure_base(store: _Store) -> str:
    """A base image with Python, built from Debian packages, because there is no registry to pull one from."""
    if store.has(BASE):
        return BASE
    with _timed(f"building {BASE}"), _scratch_folder() as folder:
        root = folder / "root"
        packages = f"--include={','.join(_DEBIAN_PACKAGES)}"
        _run("nice", "debootstrap", "--variant=minbase", packages, _DEBIAN_RELEASE, str(root))
        for leftover in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc"):
            shutil.rmtree(root / leftover)
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY . /\n", encoding="utf-8")
        store.build(BASE, "--file", folder / "Dockerfile", root)
    return BASE


def _build_pause(store: _Store) -> None:
    with _scratch_folder() as folder:
        shutil.copy(binaries.binary("pause"), folder / "pause")
        lines = 'FROM scratch\nCOPY pause /pause\nUSER 65532:65532\nENTRYPOINT ["/pause"]\n'
        (folder / "Dockerfile").write_text(lines, encoding="utf-8")
        store.build(PAUSE, "--file", folder / "Dockerfile", folder)


@contextmanager
def _scratch_folder() -> Iterator[Path]:
    """A temporary folder in the cache, which has enough space and allows device files."""
    with tempfile.TemporaryDirectory(dir=cache_folder(), ignore_cleanup_errors=True) as folder:
        try:
            yield Path(folder)
        finally:
            unmount_below(Path(folder))


@contextmanager
def _timed(what: str) -> Iterator[None]:
    print(what, file=sys.stderr, flush=True)
    started = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _name(descriptor: Mapping[str, Any]) -> str:
    return str(descriptor.get("annotations", {}).get(_REF_NAME, ""))


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}:\n{done.stdout.decode(errors='replace')[-4000:]}")

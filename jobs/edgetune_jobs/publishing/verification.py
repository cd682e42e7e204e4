"""Verification: is everything in the store still what its manifest says? Nothing is downloaded to a disk."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import PurePosixPath

from edgetune_contract.digest import manifest_key, pointer_key, version_key
from edgetune_contract.model import Model
from edgetune_contract.request import Artifact, FileEntry, Manifest
from edgetune_contract.stages import Stage
from edgetune_contract.times import timestamp
from edgetune_contract.version import EdgeModel, VersionDocument
from edgetune_jobs.publishing.addresses import Address, ModelAddress, StageAddress
from edgetune_jobs.publishing.format_readers import reader_of
from edgetune_jobs.store.files import Fingerprint, file_list_digest
from edgetune_jobs.store.manifests import find_artifact, read_manifest
from edgetune_jobs.store.parallel import for_each
from edgetune_jobs.store.store import DamagedModel, DamagedObject, Store, require_model, uri_of

# What differs is read once more before it is called damaged: the way here can have changed it too.
_READS = 2


class FileCheck(Model):
    """One file of an artifact, as its manifest has it."""

    path: str
    """Path below the artifact's URI."""

    bytes: int
    sha256: str
    problem: str = ""
    """What is wrong with it; empty if it is what was written."""


class ArtifactCheck(Model):
    """One artifact with its files."""

    artifact: Artifact
    uri: str
    """Where it was looked for: beside the manifest, wherever the store was copied to."""

    files: tuple[FileCheck, ...]
    extra: tuple[str, ...] = ()
    """Paths of files that lie in its folder and are not in the list."""

    problem: str = ""
    """What is wrong with the list as a whole."""

    @property
    def problems(self) -> Iterator[str]:
        """One sentence for each thing that is wrong, with the name of the file."""
        if self.problem:
            yield f"{self.artifact.name}: {self.problem}"
        for file in self.files:
            if file.problem:
                yield f"{self.artifact.name}/{file.path}: {file.problem}"
        for path in self.extra:
            yield f"{self.artifact.name}/{path}: belongs to no artifact: it was put there later"


class Verification(Model):
    """All that was looked at, and what is wrong with it."""

    document: str
    """URI of the manifest or the version's document."""

    checked_at: str
    """When the check began (RFC 3339, UTC)."""

    problems: tuple[str, ...]
    """One sentence for each thing that is wrong; empty if all is what was written."""

    notes: tuple[str, ...] = ()
    """What is worth knowing and nothing is wrong with."""

    artifacts: tuple[ArtifactCheck, ...] = ()
    version: VersionDocument | None = None
    """The version, if a model was asked for."""

    manifest: Manifest | None = None
    """The stage's manifest, if a stage was asked for."""


def verify(store: Store, address: Address) -> Verification:
    """Check the document that an address names, and every file that it lists.

    Args:
        store: the store at `address.root`.
        address: what to check.

    Raises:
        InvalidInput: there is no such document.
        AccessDenied, TransientError: it cannot be read.
    """
    began = timestamp(datetime.now(UTC))
    try:
        if isinstance(address, ModelAddress):
            return _verify_model(store, address, began)
        return _verify_stage(store, address, began)
    except DamagedModel as error:
        return Verification(document=uri_of(store, address.key), checked_at=began, problems=(str(error),))


def _verify_model(store: Store, address: ModelAddress, began: str) -> Verification:
    document = require_model(store, address.key, VersionDocument)
    checks = [_check_artifact(store, edge.key, edge.artifact, edge.files) for edge in document.edges]
    problems = [*_document_problems(store, address, document), *_problems(checks)]
    moved = [check.artifact.uri for check in checks if check.uri != check.artifact.uri]
    return Verification(
        document=uri_of(store, address.key),
        checked_at=began,
        problems=tuple(problems),
        notes=tuple(f"the document places it at {uri}: the store was copied from there" for uri in moved),
        artifacts=tuple(checks),
        version=document,
    )


def _problems(checks: Sequence[ArtifactCheck]) -> Iterator[str]:
    return (problem for check in checks for problem in check.problems)


def _document_problems(store: Store, address: ModelAddress, document: VersionDocument) -> Iterator[str]:
    """What is wrong with a version's document, before its files are looked at."""
    file = PurePosixPath(address.key).name
    if document.model != address.name:
        yield f"{file}: it is of the model {document.model}, not of {address.name}"
    if address.version not in (None, document.version):
        yield f"{file}: it is of version {document.version}"
    if address.version is None:
        yield from _pointer_problems(store, document, file)
    try:
        for edge in document.edges:
            yield from _edge_problems(store, edge, file)
    except DamagedModel as error:
        yield str(error)


def _edge_problems(store: Store, edge: EdgeModel, file: str) -> Iterator[str]:
    """Where a version's document and the manifest of the stage that made the edge model do not agree."""
    key = manifest_key(Stage.QUANTIZE, edge.quantize_digest)
    quantize = read_manifest(store, Stage.QUANTIZE, edge.quantize_digest)
    name, sha256 = edge.artifact.name, edge.artifact.sha256
    if quantize is None:
        yield f"{file}: the manifest of {name}, {uri_of(store, key)}, is missing"
        return
    written = [made.sha256 for made in quantize.result.artifacts if made.name == name]
    if written != [sha256]:
        others = " and ".join(written) or "none"
        yield f"{file}: it names {name} with SHA-256 {sha256}, but {uri_of(store, key)} names {others}"


def _pointer_problems(store: Store, document: VersionDocument, file: str) -> Iterator[str]:
    if not document.published:
        yield f"{file}: it names a version that the gates refused: {'; '.join(document.refusals)}"
    key = version_key(document.model, document.version)
    original, pointer = store.read(key), store.read(pointer_key(document.model))
    if original is None:
        yield f"{file}: {uri_of(store, key)}, of which it is a copy, is missing"
    elif pointer is None or pointer.data != original.data:
        yield f"{file}: it is not a copy of {uri_of(store, key)}"


def _verify_stage(store: Store, address: StageAddress, began: str) -> Verification:
    manifest = require_model(store, address.key, Manifest)
    result = manifest.result
    problems = []
    if (result.stage, result.digest) != (address.stage, address.digest):
        problems.append(f"manifest.json: it is of {result.stage} {result.digest}: it was put here later")
    found = {artifact.name: find_artifact(manifest, artifact.name) for artifact in result.artifacts}
    if address.artifact not in (None, *(each.folder for each in found.values() if each)):
        problems.append(f"manifest.json: it names no artifact at {address.artifact}")
    checks = []
    for artifact in result.artifacts:
        artifact_files = found[artifact.name]
        if artifact_files is None:
            problems.append(f"manifest.json: its list of files has none of {artifact.name}")
        elif address.artifact in (None, artifact_files.folder):
            folder = f"{address.folder}/{artifact_files.folder}"
            checks.append(_check_artifact(store, folder, artifact, artifact_files.files))
    return Verification(
        document=uri_of(store, address.key),
        checked_at=began,
        problems=(*problems, *_problems(checks)),
        artifacts=tuple(checks),
        manifest=manifest,
    )


def _check_artifact(store: Store, folder: str, artifact: Artifact, files: Sequence[FileEntry]) -> ArtifactCheck:
    stored = {found.key.removeprefix(f"{folder}/"): found.bytes for found in store.list(folder)}
    problems: dict[str, str] = {}

    def check(entry: FileEntry, _: object) -> None:
        problems[entry.path] = _file_problem(store, f"{folder}/{entry.path}", entry, stored.get(entry.path))

    for_each(files, check)
    listed = {entry.path for entry in files}
    return ArtifactCheck(
        artifact=artifact,
        uri=uri_of(store, folder),
        files=tuple(FileCheck(**entry.model_dump(), problem=problems[entry.path]) for entry in files),
        extra=tuple(path for path in sorted(stored) if path not in listed and not path.endswith("/")),
        problem=_list_problem(artifact, files),
    )


def _list_problem(artifact: Artifact, files: Sequence[FileEntry]) -> str:
    """What is wrong with a list of files by itself: an artifact's SHA-256 covers its list."""
    digest, size = file_list_digest(files), sum(entry.bytes for entry in files)
    if (digest, size) == (artifact.sha256, artifact.bytes):
        return ""
    return (
        f"its list of files was changed: {len(files)} files, {size:,} bytes, SHA-256 {digest}, "
        f"where {artifact.bytes:,} bytes with SHA-256 {artifact.sha256} were written"
    )


def _file_problem(store: Store, key: str, entry: FileEntry, stored_bytes: int | None) -> str:
    if stored_bytes is None:
        return "is missing"
    if stored_bytes != entry.bytes:
        return f"has {stored_bytes:,} bytes, {entry.bytes:,} were written"
    expected = Fingerprint.of(entry)
    found, header = expected, ""
    for _ in range(_READS):
        try:
            found, header = _read_file(store, key, entry.path)
        except DamagedObject as error:
            return str(error)
        if found == expected:
            return header
    changed = f"its content was changed: SHA-256 {found.sha256}, {entry.sha256} was written"
    return f"{changed}; {header}" if header else changed


def _read_file(store: Store, key: str, path: str) -> tuple[Fingerprint, str]:
    """Fingerprint of a file, and what is wrong with its format."""
    reader = reader_of(path)
    found = store.stream(key, reader)
    return found, reader.problem(found.bytes)

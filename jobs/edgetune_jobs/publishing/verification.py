"""Verification: compares versions and stages in a store with their manifests, without a local copy."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import PurePosixPath

from edgetune_contract.digest import manifest_key, pointer_key, stage_key, version_key
from edgetune_contract.request import FileEntry, Manifest
from edgetune_contract.schema import Model
from edgetune_contract.stages import Stage
from edgetune_contract.values.times import timestamp
from edgetune_contract.version import EdgeModel, StoredArtifact, VersionDocument
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.addresses import Address, ModelAddress, StageAddress
from edgetune_jobs.publishing.format_readers import reader_of
from edgetune_jobs.publishing.signing.keys import PublicKey
from edgetune_jobs.publishing.signing.stored import SignatureCheck, check_signatures
from edgetune_jobs.store.files import Fingerprint, file_list_digest
from edgetune_jobs.store.manifests import find_artifact, read_manifest, require_manifest
from edgetune_jobs.store.parallel import for_each
from edgetune_jobs.store.store import DamagedModel, DamagedObject, Store, require_model, stored_sizes, uri_of
from edgetune_jobs.wording import count, some

# A file that differs is read again before it is reported: it may have been damaged in transfer.
_READS = 2


class FileCheck(Model):
    """One file of an artifact, with its entry in the manifest."""

    path: str
    """Path below the artifact's URI."""

    bytes: int
    sha256: str
    problem: str = ""
    """What is wrong with it; empty if it is unchanged."""


class ArtifactCheck(Model):
    """One artifact with its files."""

    artifact: StoredArtifact
    uri: str
    """URI of the checked folder."""

    files: tuple[FileCheck, ...]
    extra: tuple[str, ...] = ()
    """Paths of files in its folder that are not in the list."""

    problem: str = ""
    """What is wrong with the list as a whole."""

    @property
    def problems(self) -> Iterator[str]:
        """One line for each problem, with the name of the file."""
        if self.problem:
            yield f"{self.artifact.name}: {self.problem}"
        for file in self.files:
            if file.problem:
                yield f"{self.artifact.name}/{file.path}: {file.problem}"
        for path in self.extra:
            yield f"{self.artifact.name}/{path}: is not in the artifact's list of files: it was added later"


class Completeness(StrEnum):
    """What a store has of a stage of the run that made a version."""

    WHOLE = "whole"
    INCOMPLETE = "incomplete"
    MISSING = "missing"


class StageCheck(Model):
    """A stage of the run that made a version: its manifest, and its files by their sizes."""

    stage: Stage
    digest: str
    state: Completeness
    problem: str = ""
    """Why it is incomplete."""


class Verification(Model):
    """What was checked, and the problems that were found."""

    document: str
    """URI of the manifest or the version's document."""

    checked_at: str
    """When the check started (RFC 3339, UTC)."""

    problems: tuple[str, ...]
    """One line for each problem; empty if everything is unchanged."""

    stages: tuple[StageCheck, ...] = ()
    """For a version: the stages of its run. A missing one is no problem of the model: a run of the same recipe with
    this store runs it again."""

    artifacts: tuple[ArtifactCheck, ...] = ()
    version: VersionDocument | None = None
    """The version, for the address of a model."""

    signature: SignatureCheck | None = None
    """The version's signatures, for the address of a model."""

    manifest: Manifest | None = None
    """The stage's manifest, for the address of a stage."""


def verify(store: Store, address: Address, keys: Sequence[PublicKey] = ()) -> Verification:
    """Check the document at an address, and every file that it lists.

    Args:
        store: the store at `address.root`.
        address: address of the document.
        keys: the keys that are trusted, one of which must have signed a version; without them, no signature is checked.

    Raises:
        InvalidInput: there is no such document, or it is that of a stage and there are keys.
        AccessDenied, TransientError: the store cannot be read.
    """
    began = timestamp(datetime.now(UTC))
    try:
        if isinstance(address, ModelAddress):
            return _verify_model(store, address, began, keys)
        if keys:
            raise InvalidInput(f"{uri_of(store, address.key)} is that of a stage: only versions of models are signed")
        return _verify_stage(store, address, began)
    except DamagedModel as error:
        return Verification(document=uri_of(store, address.key), checked_at=began, problems=(str(error),))


def _verify_model(store: Store, address: ModelAddress, began: str, keys: Sequence[PublicKey]) -> Verification:
    document = require_model(store, address.key, VersionDocument)
    content = store.read(address.key)
    signature = check_signatures(store, document, b"" if content is None else content.data, keys)
    checks = [check for edge in document.edges for check in _check_edge(store, document, edge)]
    reports = list(_check_report(store, document))
    stages = tuple(_check_stage(store, stage, digest) for stage, digest in stages_of_version(document).items())
    # The files of quantize were read, which says more than their sizes.
    incomplete = [
        f"{each.stage}: {each.problem}" for each in stages if each.problem and each.stage is not Stage.QUANTIZE
    ]
    return Verification(
        document=uri_of(store, address.key),
        checked_at=began,
        problems=(
            *_document_problems(store, address, document),
            *signature.problems,
            *_problems((*checks, *reports)),
            *incomplete,
        ),
        artifacts=(*checks, *reports),
        version=document,
        signature=signature,
        stages=stages,
    )


def _check_report(store: Store, document: VersionDocument) -> Iterator[ArtifactCheck]:
    """The check of the report, if the version has one: its SHA-256 is in the document only."""
    if document.report is None:
        return
    folder, entries = document.reports_key, (document.report,)
    report = StoredArtifact(name="report", key=folder, bytes=document.report.bytes, sha256=file_list_digest(entries))
    check = _check_artifact(store, folder, report, entries)
    # Model cards and signatures are below the same folder.
    yield check.model_copy(update={"extra": ()})


def _check_edge(store: Store, document: VersionDocument, edge: EdgeModel) -> Iterator[ArtifactCheck]:
    """The check of an edge model, and that of its card, whose SHA-256 only the document has."""
    yield _check_artifact(store, edge.key, edge.artifact, edge.files)
    if edge.cards:
        folder, size = document.cards_key(edge.artifact.name), sum(entry.bytes for entry in edge.cards)
        card = StoredArtifact(
            name=f"card of {edge.artifact.name}", key=folder, bytes=size, sha256=file_list_digest(edge.cards)
        )
        yield _check_artifact(store, folder, card, edge.cards)


def stages_of_version(document: VersionDocument) -> dict[Stage, str]:
    """Digests of the stages of the run that made a version, in their order, with publish."""
    origins = document.provenance.stages
    return {stage: origins[stage].digest for stage in Stage if stage in origins} | {Stage.PUBLISH: document.version}


def _check_stage(store: Store, stage: Stage, digest: str) -> StageCheck:
    try:
        manifest = read_manifest(store, stage, digest)
    except DamagedModel as error:
        return StageCheck(stage=stage, digest=digest, state=Completeness.INCOMPLETE, problem=str(error))
    if manifest is None:
        return StageCheck(stage=stage, digest=digest, state=Completeness.MISSING)
    folder = stage_key(stage, digest)
    stored = stored_sizes(store, folder, manifest.files)
    wrong = [entry.path for entry in manifest.files if stored.get(entry.key_below(folder)) != entry.bytes]
    if not wrong:
        return StageCheck(stage=stage, digest=digest, state=Completeness.WHOLE)
    total = count(len(manifest.files), "file")
    problem = f"{len(wrong)} of {total} missing or of another size in {uri_of(store, folder)}: {some(wrong)}"
    return StageCheck(stage=stage, digest=digest, state=Completeness.INCOMPLETE, problem=problem)


def _problems(checks: Sequence[ArtifactCheck]) -> Iterator[str]:
    return (problem for check in checks for problem in check.problems)


def _document_problems(store: Store, address: ModelAddress, document: VersionDocument) -> Iterator[str]:
    """Problems of a version's document itself."""
    file = PurePosixPath(address.key).name
    if document.model != address.name:
        yield f"{file}: belongs to the model {document.model}, not to {address.name}"
    if address.version not in (None, document.version):
        yield f"{file}: belongs to version {document.version}"
    if address.version is None:
        yield from _pointer_problems(store, document, file)
    try:
        for edge in document.edges:
            yield from edge_problems(store, edge, file)
    except DamagedModel as error:
        yield str(error)


def edge_problems(store: Store, edge: EdgeModel, file: str) -> Iterator[str]:
    """Differences between a version's document and the manifest of the stage that made the edge model."""
    key = manifest_key(Stage.QUANTIZE, edge.quantize_digest)
    quantize = read_manifest(store, Stage.QUANTIZE, edge.quantize_digest)
    name, sha256 = edge.artifact.name, edge.artifact.sha256
    if quantize is None:
        yield f"{file}: the manifest of {name} is missing: {uri_of(store, key)}"
        return
    written = [made.sha256 for made in quantize.result.artifacts if made.name == name]
    if written != [sha256]:
        others = " and ".join(written) or "none"
        yield f"{file}: lists {name} with SHA-256 {sha256}, but {uri_of(store, key)} lists {others}"


def _pointer_problems(store: Store, document: VersionDocument, file: str) -> Iterator[str]:
    if not document.published:
        yield f"{file}: points to a version that its gates refused: {'; '.join(document.refusals)}"
    key = version_key(document.model, document.version)
    original, pointer = store.read(key), store.read(pointer_key(document.model))
    if original is None:
        yield f"{file}: the document of its version is missing: {uri_of(store, key)}"
    elif pointer is None or pointer.data != original.data:
        yield f"{file}: differs from the document of its version: {uri_of(store, key)}"


def _verify_stage(store: Store, address: StageAddress, began: str) -> Verification:
    manifest = require_manifest(store, address.stage, address.digest)
    result = manifest.result
    problems = []
    if (result.stage, result.digest) != (address.stage, address.digest):
        problems.append(f"manifest.json: belongs to the stage {result.stage} with digest {result.digest}")
    found = {artifact.name: find_artifact(manifest, artifact.name) for artifact in result.artifacts}
    if address.artifact not in (None, *(each.folder for each in found.values() if each)):
        problems.append(f"manifest.json: has no artifact at {address.artifact}")
    checks = []
    for artifact in result.artifacts:
        artifact_files = found[artifact.name]
        if artifact_files is None:
            problems.append(f"manifest.json: lists no files of {artifact.name}")
        elif address.artifact in (None, artifact_files.folder):
            folder = f"{address.folder}/{artifact_files.folder}"
            checks.append(_check_artifact(store, folder, StoredArtifact.of(artifact), artifact_files.files))
    return Verification(
        document=uri_of(store, address.key),
        checked_at=began,
        problems=(*problems, *_problems(checks)),
        artifacts=tuple(checks),
        manifest=manifest,
    )


def _check_artifact(store: Store, folder: str, artifact: StoredArtifact, files: Sequence[FileEntry]) -> ArtifactCheck:
    stored = stored_sizes(store, folder, files)
    problems: dict[str, str] = {}

    def check(entry: FileEntry, _: object) -> None:
        key = entry.key_below(folder)
        problems[entry.path] = _file_problem(store, key, entry, stored.get(key), files)

    for_each(files, check)
    listed = {entry.path for entry in files}
    below = sorted(key.removeprefix(f"{folder}/") for key in stored if key.startswith(f"{folder}/"))
    return ArtifactCheck(
        artifact=artifact,
        uri=uri_of(store, folder),
        files=tuple(
            FileCheck(path=entry.path, bytes=entry.bytes, sha256=entry.sha256, problem=problems[entry.path])
            for entry in files
        ),
        extra=tuple(path for path in below if path not in listed and not path.endswith("/")),
        problem=_list_problem(artifact, files),
    )


def _list_problem(artifact: StoredArtifact, files: Sequence[FileEntry]) -> str:
    """The problem of a list of files itself, which an artifact's SHA-256 covers."""
    digest, size = file_list_digest(files), sum(entry.bytes for entry in files)
    if (digest, size) == (artifact.sha256, artifact.bytes):
        return ""
    return (
        f"its list of files was changed: {count(len(files), 'file')}, {size:,} bytes with SHA-256 {digest} "
        f"instead of {artifact.bytes:,} bytes with SHA-256 {artifact.sha256}"
    )


def _file_problem(
    store: Store, key: str, entry: FileEntry, stored_bytes: int | None, files: Sequence[FileEntry]
) -> str:
    """The problem of a file among the files of its artifact; empty if there is none."""
    if stored_bytes is None:
        return "is missing"
    if stored_bytes != entry.bytes:
        return f"has {stored_bytes:,} bytes instead of {entry.bytes:,}"
    expected = Fingerprint.of(entry)
    found, header = expected, ""
    for _ in range(_READS):
        try:
            found, header = _read_file(store, key, entry.path, files)
        except DamagedObject as error:
            return str(error)
        if found == expected:
            return header
    changed = f"its content was changed: SHA-256 {found.sha256} instead of {entry.sha256}"
    return f"{changed}; {header}" if header else changed


def _read_file(store: Store, key: str, path: str, files: Sequence[FileEntry]) -> tuple[Fingerprint, str]:
    """Fingerprint of a file, and the problem of its format."""
    reader = reader_of(path, files)
    found = store.stream(key, reader)
    return found, reader.problem(found.bytes)

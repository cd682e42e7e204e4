"""Promotion: copy a published version with the stages of its run from store to store, and move the pointer last.

    marks of use ► files of each stage ► its manifest ► model cards, report ► signatures ► version ► manifest of publish
    ► pointer

Files are compared with their SHA-256 on the way. Whatever the copy is stopped at, the target's pointer names a whole
model, and its manifests only name files that are there; the next promotion continues with what is missing. A stage that
the target has already is not copied.
"""

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from edgetune_contract.digest import MANIFEST, pointer_key, signatures_key, stage_key, version_key
from edgetune_contract.request import FileEntry, Manifest
from edgetune_contract.stages import Stage
from edgetune_contract.version import VersionDocument
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.publisher import Pointer, encode
from edgetune_jobs.publishing.verification import edge_problems, stages_of_version
from edgetune_jobs.publishing.versions import Versions
from edgetune_jobs.store.artifact_uses import Use, Uses
from edgetune_jobs.store.files import Fingerprint, NullSink
from edgetune_jobs.store.manifests import read_manifest, write_manifest_once
from edgetune_jobs.store.parallel import for_each
from edgetune_jobs.store.store import (
    DamagedObject,
    FileList,
    PreconditionFailed,
    Store,
    check_content,
    read_model,
    require_model,
    stored_sizes,
    uri_of,
    write_model_once,
)
from edgetune_jobs.wording import count

Say = Callable[[str], None]

_CHUNK_BYTES = 2**20


class _SharedByAnother(Exception):
    """A run has written the shared file in the meantime; ends a stream before it writes anything."""


@dataclass
class Promotion:
    """What a promotion has done."""

    version: str
    pointer: str
    """URI of the target's latest.json."""

    copied_files: int = 0
    copied_bytes: int = 0
    found_files: int = 0
    """Files that the target already had, with the same content."""

    notes: list[str] = field(default_factory=list)
    """Stages that are not copied, and why."""


@dataclass(frozen=True)
class Stores:
    """Both ends of a promotion."""

    source: Store
    target: Store
    name: str
    """Name of the model."""

    scratch: Path
    """Folder for one file of each thread at a time."""


def promote(stores: Stores, version: str | None, edge_only: bool, say: Say) -> Promotion:
    """Copy a published version, with the stages of its run, and move the target's pointer to it.

    Args:
        stores: from where to where.
        version: the first digits of the version; None for the one at the source's pointer.
        edge_only: copy the edge model without the other stages. A run of the same recipe with the target then trains.
        say: gets one line for each stage.

    Raises:
        InvalidInput: there is no such published version, it is not whole, or the target has another output of its
            stage quantize, the same version with another model, or another file that adapters share.
        DamagedObject: a file of the source differs from its manifest.
        AccessDenied, TransientError: a store cannot be used.
    """
    source, target, name = stores.source, stores.target, stores.name
    if source.uri == target.uri:
        raise InvalidInput(f"{source.uri} is both the source and the target; name another store")
    document, data = _find(source, name, version)
    promotion = Promotion(document.version, Pointer(target, name).uri)
    manifests = _manifests(source, document, edge_only, promotion)
    _check_target(target, document, manifests[Stage.QUANTIZE])
    uses = Uses(target, name)
    for stage in manifests:
        uses.mark(Use(stage, manifests[stage].result.digest))
    for stage, manifest in manifests.items():
        if stage is not Stage.PUBLISH:
            _copy_stage(stores, stage, manifest, promotion, say)
    data = _write_version(stores, document, data, promotion)
    if Stage.PUBLISH in manifests:
        _copy_stage(stores, Stage.PUBLISH, manifests[Stage.PUBLISH], promotion, say)
    Versions(target, name).require_files(VersionDocument.model_validate_json(data))
    pointer = Pointer(target, name)
    if pointer.version != document.version:
        pointer.move(data)
    return promotion


def _find(source: Store, name: str, version: str | None) -> tuple[VersionDocument, bytes]:
    """The version to copy, and the bytes of its document, of which its signature has the SHA-256."""
    key = pointer_key(name)
    if version is not None:
        key = version_key(name, Versions(source, name).find(version, field="--version").version)
    document, content = require_model(source, key, VersionDocument), source.read(key)
    if not document.published:
        refusals = "; ".join(document.refusals)
        raise InvalidInput(f"{uri_of(source, key)} names a version that its gates refused: {refusals}")
    return document, encode(document) if content is None else content.data


def _manifests(
    source: Store, document: VersionDocument, edge_only: bool, promotion: Promotion
) -> dict[Stage, Manifest]:
    """Manifests of the stages to copy, in their order."""
    problems = [problem for edge in document.edges for problem in edge_problems(source, edge, document.version)]
    if problems:
        raise InvalidInput(f"{'; '.join(problems)}; `edgetune verify` says what is whole")
    manifests = {}
    for stage, digest in stages_of_version(document).items():
        if edge_only and stage is not Stage.QUANTIZE:
            continue
        manifest = read_manifest(source, stage, digest)
        if manifest is None:
            promotion.notes.append(f"{stage} is not in {source.uri}: a run with {promotion.pointer} runs it again")
        else:
            manifests[stage] = manifest
    return manifests


def _check_target(target: Store, document: VersionDocument, quantize: Manifest) -> None:
    """Refuse before anything is copied what could not be published in the end."""
    digest = quantize.result.digest
    existing = read_manifest(target, Stage.QUANTIZE, digest)
    if existing is not None and existing.files != quantize.files:
        raise InvalidInput(
            f"{uri_of(target, stage_key(Stage.QUANTIZE, digest))} has another edge model from the same inputs, made by "
            "a run there, whose weights differ within rounding; promote to another namespace, or publish that one"
        )
    for entry in quantize.files:
        if entry.key is not None:
            _has_shared(target, entry.key, Fingerprint.of(entry))
    published = read_model(target, version_key(document.model, document.version), VersionDocument)
    if published is not None:
        _check_same(target, document, published)


def _check_same(target: Store, document: VersionDocument, existing: VersionDocument) -> None:
    models, others = ([(edge.artifact, edge.files) for edge in each.edges] for each in (existing, document))
    if models != others or not existing.published:
        what = "another model" if existing.published else "a refusal by its gates"
        key = version_key(document.model, document.version)
        raise InvalidInput(f"{uri_of(target, key)} is there with {what}; delete it, or promote to another namespace")


def _copy_stage(stores: Stores, stage: Stage, manifest: Manifest, promotion: Promotion, say: Say) -> None:
    target, digest = stores.target, manifest.result.digest
    existing = read_manifest(target, stage, digest)
    if existing is not None and existing.files != manifest.files:
        promotion.notes.append(f"{stage} {digest[:12]} is already in {target.uri}, made by a run there, and stays")
        return
    before = promotion.copied_bytes
    _copy_files(stores, stage_key(stage, digest), manifest.files, promotion)
    committed = write_manifest_once(target, stage, digest, manifest)
    if committed.files != manifest.files:
        _remove(target, stage_key(stage, digest), set(_attempts(manifest.files)) - set(_attempts(committed.files)))
        if stage is Stage.QUANTIZE:
            raise InvalidInput(
                f"a run with {target.uri} has finished {stage} {digest[:12]} at the same time; publish it"
            )
        promotion.notes.append(f"{stage} {digest[:12]} was finished by a run with {target.uri} at the same time")
    say(f"{stage}: {count(len(manifest.files), 'file')}, {promotion.copied_bytes - before:,} bytes copied")


def _copy_files(stores: Stores, folder: str, files: Sequence[FileEntry], promotion: Promotion) -> None:
    stored = stored_sizes(stores.target, folder, files)
    lock = threading.Lock()

    def copy(entry: FileEntry, _: object) -> None:
        key, expected = entry.key_below(folder), Fingerprint.of(entry)
        if stored.get(key) == entry.bytes and _is_intact(stores.target, key, expected):
            with lock:
                promotion.found_files += 1
            return
        draft = stores.scratch / secrets.token_hex(8)
        try:
            stores.source.download_file(key, draft, expected)
            if entry.key is None or _has_shared(stores.target, key, expected):
                check_content(uri_of(stores.target, key), stores.target.upload_file(draft, key), expected)
            else:
                _create_shared(stores.target, draft, key, expected)
        finally:
            draft.unlink(missing_ok=True)
        with lock:
            promotion.copied_files += 1
            promotion.copied_bytes += entry.bytes

    for_each(files, copy)
    for entry in files:
        if entry.key is not None:
            shared, _, name = entry.key.rpartition("/")
            write_model_once(
                stores.target, f"{shared}/{MANIFEST}", FileList(files=(Fingerprint.of(entry).entry(name),))
            )
            _has_shared(stores.target, entry.key, Fingerprint.of(entry))
            stores.target.link(entry.key, f"{folder}/{entry.path}")


def _has_shared(target: Store, key: str, expected: Fingerprint) -> bool:
    """Whether the manifest of a shared file names this content; False if there is no manifest.

    Raises:
        InvalidInput: it names another content, which the adapters in the target are for.
    """
    folder, _, name = key.rpartition("/")
    manifest = read_model(target, f"{folder}/{MANIFEST}", FileList)
    if manifest is None:
        return False
    if manifest.files != (expected.entry(name),):
        found = " and ".join(entry.sha256 for entry in manifest.files)
        raise InvalidInput(
            f"the target has another {name}, which its adapters are for: {uri_of(target, key)} has SHA-256 {found} "
            f"instead of {expected.sha256}; promote to another namespace"
        )
    return True


def _create_shared(target: Store, file: Path, key: str, expected: Fingerprint) -> None:
    """Upload a shared file that has no manifest, unless a run writes one meanwhile: see StageUpload.create_shared.

    Raises:
        InvalidInput: the run wrote another file.
    """
    with suppress(_SharedByAnother), target.create_file(key, expected.bytes) as upload, file.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            upload.write(chunk)
        check_content(uri_of(target, key), upload.fingerprint, expected)
        if _has_shared(target, key, expected):
            raise _SharedByAnother


def _is_intact(store: Store, key: str, expected: Fingerprint) -> bool:
    try:
        return store.stream(key, NullSink()) == expected
    except DamagedObject:
        return False


def _write_version(stores: Stores, document: VersionDocument, data: bytes, promotion: Promotion) -> bytes:
    """Write the version, after its cards, report and signatures, unless it is there; its bytes in the target.

    A version of the target's own, with the same model, keeps everything that its document or its signatures name.
    """
    target, key = stores.target, version_key(stores.name, document.version)
    existing = target.read(key)
    if existing is None or existing.data == data:
        _copy_papers(stores, document, promotion)
    else:
        promotion.notes.append(
            f"version {document.version[:12]} is already in {target.uri} with a document of its own, whose model "
            "cards, report and signatures it keeps: those of the source are not copied"
        )
    try:
        target.put(key, data, if_none_match=True)
    except PreconditionFailed:
        _check_same(target, document, require_model(target, key, VersionDocument))
        content = target.read(key)
        return data if content is None else content.data
    return data


def _copy_papers(stores: Stores, document: VersionDocument, promotion: Promotion) -> None:
    """Copy a version's cards, report and signatures."""
    for edge in document.edges:
        _copy_files(stores, document.cards_key(edge.artifact.name), edge.cards, promotion)
    if document.report is not None:
        _copy_files(stores, document.reports_key, (document.report,), promotion)
    for signature in stores.source.list(signatures_key(stores.name, document.version)):
        content = stores.source.read(signature.key)
        if content is not None:
            stores.target.put(signature.key, content.data)


def _attempts(files: Sequence[FileEntry]) -> Iterator[str]:
    return (entry.path.partition("/")[0] for entry in files)


def _remove(store: Store, folder: str, attempts: set[str]) -> None:
    for attempt in attempts:
        store.delete_tree(f"{folder}/{attempt}")

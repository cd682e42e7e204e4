"""The files of one edge model of a version, from a store or from a device's folder, verified when they are copied."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from edgetune_contract.digest import signature_key
from edgetune_contract.request import FileEntry
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.version import EdgeModel, VersionDocument
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.addresses import ModelAddress
from edgetune_jobs.store.files import (
    CHUNK_BYTES,
    Fingerprint,
    HashingReader,
    checked_relative,
    disk_errors,
    file_list_digest,
    fingerprint,
    fingerprint_of_bytes,
)
from edgetune_jobs.store.store import Store, check_content, require_model, uri_of

CURRENT = "current"
"""Link in a device's folder to the version that is in use."""

SIGNATURE = "model.sig"
"""The signature of the other files, where model-signing writes it by default; its verifier leaves it out."""


@dataclass(frozen=True)
class Bundle:
    """What is exported."""

    document: VersionDocument
    edge: EdgeModel
    place: Callable[[FileEntry, Path], None]
    """Copies a file of `entries` to a path, and compares it with its entry; raises DamagedObject if they differ."""

    signature: bytes | None = None
    """Signature of the model's files and its card; None if the version has none."""

    @property
    def entries(self) -> Sequence[FileEntry]:
        """The model's files, its card and its signature, sorted by path."""
        signature = () if self.signature is None else (fingerprint_of_bytes(self.signature).entry(SIGNATURE),)
        return sorted((*self.edge.all_files, *signature), key=lambda entry: entry.path)

    @property
    def bytes(self) -> int:
        """Size of all files in bytes."""
        return sum(entry.bytes for entry in self.entries)


def bundle_of_store(store: Store, address: ModelAddress, edge_format: EdgeFormat | None) -> Bundle:
    """The edge model of a version in a store.

    Args:
        store: the store at `address.root`.
        address: address of the version.
        edge_format: which of its edge models; None for the first one.

    Raises:
        InvalidInput: there is no such version or format, its gates refused it, or its list of files was changed.
    """
    place = uri_of(store, address.key)
    document = require_model(store, address.key, VersionDocument)
    edge = _checked(document, edge_format, place)
    keys = {entry.path: key for key, entry in document.keys_of(edge)}

    def copy(entry: FileEntry, target: Path) -> None:
        store.download_file(keys[entry.path], target, Fingerprint.of(entry))

    signature = store.read(signature_key(document.model, document.version, edge.artifact.name))
    return _signed(Bundle(document, edge, copy), None if signature is None else signature.data)


def is_device_folder(folder: Path) -> bool:
    """Whether `edgetune pull` made this folder, or the version in it that is current."""
    return (folder / CURRENT).is_symlink() or _document_of(folder.resolve()).is_file()


def bundle_of_device(folder: Path, edge_format: EdgeFormat | None) -> Bundle:
    """The edge model that `edgetune pull` keeps in a folder.

    Args:
        folder: folder of the device, or of one version in it.
        edge_format: the format that it must have; None for any.

    Raises:
        InvalidInput: the folder has no version, or none in this format, or its document is damaged.
    """
    files = (folder / CURRENT if (folder / CURRENT).is_symlink() else folder).resolve()
    path = _document_of(files)
    try:
        document = VersionDocument.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InvalidInput(f"{path} is damaged: {str(error).splitlines()[0]}; pull the model again") from error
    wanted = [each for each in document.edges if edge_format is None or each.artifact.name == edge_format.artifact]
    edge = next((each for each in wanted if all(_has_size(files, entry) for entry in each.all_files)), None)
    if edge is None:
        kind = f"model in {edge_format}" if edge_format else "whole model"
        raise InvalidInput(f"{files} has no {kind}; pull it with edgetune pull")

    def copy(entry: FileEntry, target: Path) -> None:
        _copy_file(files / entry.path, target, Fingerprint.of(entry))

    signature = files.with_name(f"{files.name}.sig")
    return _signed(Bundle(document, edge, copy), signature.read_bytes() if signature.is_file() else None)


def _signed(bundle: Bundle, signature: bytes | None) -> Bundle:
    """The bundle with the signature of its files, if there is one."""
    if signature is None:
        return bundle
    content = signature

    def place(entry: FileEntry, target: Path) -> None:
        if entry.path == SIGNATURE:
            target.write_bytes(content)
        else:
            bundle.place(entry, target)

    return replace(bundle, place=place, signature=content)


def _checked(document: VersionDocument, edge_format: EdgeFormat | None, place: str) -> EdgeModel:
    if not document.published:
        raise InvalidInput(f"{place} names a version that its gates refused: {'; '.join(document.refusals)}")
    try:
        edge = document.edge_in(edge_format)
    except LookupError as error:
        raise InvalidInput(f"{place} {error}") from None
    if file_list_digest(edge.files) != edge.artifact.sha256:
        raise InvalidInput(
            f"{place} is damaged: the list of files of {edge.artifact.name} was changed; run `edgetune verify` on it"
        )
    for entry in edge.all_files:
        checked_relative(entry.path)
    return edge


def _copy_file(source: Path, target: Path, expected: Fingerprint) -> None:
    with disk_errors(target.parent, expected.bytes), source.open("rb") as file, target.open("wb") as copy:
        reader = HashingReader(file)
        shutil.copyfileobj(reader, copy, CHUNK_BYTES)
    check_content(str(source), reader.fingerprint, expected)
    check_content(str(target), fingerprint(target), expected)


def _document_of(files: Path) -> Path:
    return files.with_name(f"{files.name}.json")


def _has_size(folder: Path, entry: FileEntry) -> bool:
    path = folder / checked_relative(entry.path)
    return path.is_file() and path.stat().st_size == entry.bytes

"""Models of a store as verified local folders: local stores are read in place, downloads are cached."""

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from edgetune_contract.pipeline import MERGED, is_edge
from edgetune_contract.request import FileEntry
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.version import StoredArtifact, VersionDocument
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.quantization.gguf_adapter import check_base
from edgetune_jobs.publishing.addresses import Address, ModelAddress, StageAddress
from edgetune_jobs.store.files import Fingerprint, file_list_digest, fingerprint, list_files
from edgetune_jobs.store.manifests import find_artifact, require_manifest
from edgetune_jobs.store.store import Store, require_model, uri_of


def fetch_model(store: Store, address: Address, cache: Path, edge_format: EdgeFormat | None = None) -> Path:
    """A local folder with the model at an address: a version's edge model, or a stage's merged or edge model.

    Args:
        store: the store at `address.root`.
        address: address of the model.
        cache: folder for downloaded models, by their digest.
        edge_format: which of a version's edge models; None for the first one.

    Raises:
        InvalidInput: there is nothing at the address, or no model, or its list of files was changed.
        DamagedObject: a file is missing or was changed.
        AccessDenied, TransientError: the store cannot be read.
    """
    artifact, files, folder = (
        _of_version(store, address, edge_format)
        if isinstance(address, ModelAddress)
        else _of_stage(store, address, edge_format)
    )
    if file_list_digest(files) != artifact.sha256:
        raise InvalidInput(
            f"{uri_of(store, address.key)} is damaged: its list of files was changed; run `edgetune verify` on it "
            "for details"
        )
    kept = cache / artifact.sha256
    if _is_whole(kept, files):
        return kept
    shutil.rmtree(kept, ignore_errors=True)
    partial = cache / f"{artifact.sha256}.{secrets.token_hex(4)}.partial"
    try:
        found = store.fetch_folder(folder, files, partial)
        check_base(found, files)
        if found != partial:
            return found
        try:
            partial.replace(kept)
        except OSError:
            if not _is_whole(kept, files):  # else another process has put it there
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return kept


def _of_version(
    store: Store, address: ModelAddress, edge_format: EdgeFormat | None
) -> tuple[StoredArtifact, Sequence[FileEntry], str]:
    document = require_model(store, address.key, VersionDocument)
    try:
        edge = document.edge_in(edge_format)
    except LookupError as error:
        raise InvalidInput(f"{uri_of(store, address.key)} {error}") from None
    return edge.artifact, edge.files, edge.key


def _of_stage(
    store: Store, address: StageAddress, edge_format: EdgeFormat | None
) -> tuple[StoredArtifact, Sequence[FileEntry], str]:
    manifest = require_manifest(store, address.stage, address.digest)
    for artifact in manifest.result.artifacts:
        found = find_artifact(manifest, artifact.name)
        if found and address.artifact in (None, found.folder) and _is_wanted(artifact.name, edge_format):
            return StoredArtifact.of(artifact), found.files, f"{address.folder}/{found.folder}"
    kind, place = edge_format or "merged or edge", f" at {address.artifact}" if address.artifact else ""
    raise InvalidInput(
        f"{uri_of(store, address.key)} has no {kind} model{place}: use the address of one, or of a model's latest.json"
    )


def _is_wanted(artifact: str, edge_format: EdgeFormat | None) -> bool:
    """Whether an artifact is a merged or edge model, and has this format if one is given."""
    if edge_format is not None:
        return artifact == edge_format.artifact
    return artifact == MERGED or is_edge(artifact)


def _is_whole(folder: Path, files: Sequence[FileEntry]) -> bool:
    """Whether a folder has exactly these files."""
    if not folder.is_dir() or list_files(folder) != sorted(entry.path for entry in files):
        return False
    return all(fingerprint(folder / entry.path) == Fingerprint.of(entry) for entry in files)

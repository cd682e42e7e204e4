"""Manifests of stages in the store, and the files of their artifacts.

stages/<stage>/<digest>/manifest.json
stages/<stage>/<digest>/<attempt>/<artifact>/…files…
"""

from dataclasses import dataclass

from edgetune_contract.digest import manifest_key, pointer_key
from edgetune_contract.request import FileEntry, Manifest
from edgetune_contract.stages import Stage
from edgetune_contract.version import artifact_key
from edgetune_jobs.store.store import Store, files_below, read_model, require_model, write_model_once


@dataclass(frozen=True)
class ArtifactFiles:
    """The files of one artifact."""

    folder: str
    """<attempt>/<artifact>, relative to the manifest's folder."""

    files: tuple[FileEntry, ...]
    """Paths are relative to `folder`."""


def read_manifest(store: Store, stage: Stage, digest: str) -> Manifest | None:
    """Manifest of a stage, with addresses in this store; None if the stage is not done."""
    manifest = read_model(store, manifest_key(stage, digest), Manifest)
    return None if manifest is None else _with_prefix(manifest, f"{store.uri}/")


def require_manifest(store: Store, stage: Stage, digest: str) -> Manifest:
    """Manifest of a stage that a user has named.

    Raises:
        InvalidInput: there is none.
        DamagedModel: it is not a valid manifest.
    """
    return _with_prefix(require_model(store, manifest_key(stage, digest), Manifest), f"{store.uri}/")


def write_manifest_once(store: Store, stage: Stage, digest: str, manifest: Manifest) -> Manifest:
    """Write a manifest unless there is one: see write_model_once. In the store, it has no addresses but keys."""
    committed = write_model_once(store, manifest_key(stage, digest), _with_prefix(manifest, ""))
    return _with_prefix(committed, f"{store.uri}/")


def _with_prefix(manifest: Manifest, prefix: str) -> Manifest:
    """The manifest with the keys of artifacts and pointer behind a prefix, whatever is before them now."""
    result = manifest.result
    artifacts = tuple(each.model_copy(update={"uri": prefix + artifact_key(each.uri)}) for each in result.artifacts)
    publication = result.publication
    if publication is not None and publication.pointer is not None:
        pointer = prefix + pointer_key(publication.pointer.split("/")[-2])
        publication = publication.model_copy(update={"pointer": pointer})
    changed = {"artifacts": artifacts, "publication": publication}
    return manifest.model_copy(update={"result": result.model_copy(update=changed)})


def find_artifact(manifest: Manifest, name: str) -> ArtifactFiles | None:
    """An artifact's files in a manifest; None if the manifest lists no file of it."""
    parts = (entry.path.split("/") for entry in manifest.files)
    folder = next((f"{attempt}/{name}" for attempt, *below in parts if below[:1] == [name]), None)
    return None if folder is None else ArtifactFiles(folder, files_below(manifest.files, folder))

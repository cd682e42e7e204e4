"""Manifests of stages in the store, and the files of their artifacts.

stages/<stage>/<digest>/manifest.json
stages/<stage>/<digest>/<attempt>/<artifact>/…files…
"""

from dataclasses import dataclass

from edgetune_contract.digest import manifest_key
from edgetune_contract.request import FileEntry, Manifest
from edgetune_contract.stages import Stage
from edgetune_jobs.store.store import Store, files_below, read_model


@dataclass(frozen=True)
class ArtifactFiles:
    """The files of one artifact."""

    folder: str
    """<attempt>/<artifact>, relative to the manifest's folder."""

    files: tuple[FileEntry, ...]
    """Paths are relative to `folder`."""


def read_manifest(store: Store, stage: Stage, digest: str) -> Manifest | None:
    """Manifest of a stage; None if the stage is not done."""
    return read_model(store, manifest_key(stage, digest), Manifest)


def find_artifact(manifest: Manifest, name: str) -> ArtifactFiles | None:
    """An artifact's files in a manifest; None if the manifest lists no file of it."""
    parts = (entry.path.split("/") for entry in manifest.files)
    folder = next((f"{attempt}/{name}" for attempt, *below in parts if below[:1] == [name]), None)
    return None if folder is None else ArtifactFiles(folder, files_below(manifest.files, folder))

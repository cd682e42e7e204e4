"""Output of a stage in the store: files in a folder of this attempt first, then the manifest.

    stages/<stage>/<digest>/<attempt>/<artifact>/…files…
    stages/<stage>/<digest>/manifest.json                    by conditional put: of several attempts, one wins
    shared/<digest>/<file>, then shared/<digest>/manifest.json     what the artifacts of several objects share

An attempt that loses returns the winner's manifest as its result. The winner removes the files of all other attempts.
"""

import logging
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path, PurePosixPath

from edgetune_contract.digest import MANIFEST, shared_key, stage_key
from edgetune_contract.pipeline import outputs_of
from edgetune_contract.request import Artifact, FileEntry, Manifest, Request
from edgetune_contract.stages import Stage
from edgetune_jobs.stage import OutputFile, StageOutput
from edgetune_jobs.store.files import checked_relative, file_list_digest
from edgetune_jobs.store.manifests import write_manifest_once
from edgetune_jobs.store.store import (
    FileList,
    Store,
    clean_up_attempts,
    files_below,
    read_model,
    upload_folder,
    uri_of,
    write_model_once,
)

logger = logging.getLogger(__name__)

_LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "compressed-tensors",
    "datasets",
    "edgetune",
    "gguf",
    "numpy",
    "peft",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
)


class _SharedByAnother(Exception):
    """Another stage has created a shared file since this one began to write it."""


class StageUpload:
    """One attempt's output in the store, in a folder of its own."""

    def __init__(self, store: Store, stage: Stage, stage_digest: str) -> None:
        self._store = store
        self._stage = stage
        self._digest = stage_digest
        self._folder = stage_key(stage, stage_digest)
        self._name = secrets.token_hex(8)
        self._streamed: list[FileEntry] = []
        self._is_begun = False

    @contextmanager
    def create(self, path: str, size: int) -> Iterator[OutputFile]:
        """A file of an artifact, streamed to the store: see OutputFiles."""
        self._is_begun = True
        below = f"{self._name}/{checked_relative(path)}"
        with self._store.create_file(f"{self._folder}/{below}", size) as file:
            yield file
        self._streamed.append(file.fingerprint.entry(below))

    def find_shared(self, path: str, digest: str) -> FileEntry | None:
        """A shared file, which becomes a file of an artifact: see OutputFiles."""
        folder = shared_key(digest)
        found = read_model(self._store, f"{folder}/{MANIFEST}", FileList)
        if found is None:
            return None
        (entry,) = found.files
        place = {"path": f"{self._name}/{checked_relative(path)}", "key": f"{folder}/{entry.path}"}
        self._is_begun = True
        self._store.link(place["key"], f"{self._folder}/{place['path']}")
        self._streamed.append(entry.model_copy(update=place))
        return self._streamed[-1]

    @contextmanager
    def create_shared(self, path: str, digest: str, size: int) -> Iterator[OutputFile]:
        """A shared file, streamed to the store: see OutputFiles."""
        folder, name = shared_key(digest), PurePosixPath(path).name
        try:
            with self._store.create_file(f"{folder}/{name}", size) as file:
                yield file
                if self._store.read(f"{folder}/{MANIFEST}") is not None:
                    raise _SharedByAnother
        except _SharedByAnother:
            return
        write_model_once(self._store, f"{folder}/{MANIFEST}", FileList(files=(file.fingerprint.entry(name),)))

    def add_artifacts(self, output: StageOutput, folder: Path) -> tuple[tuple[Artifact, ...], tuple[FileEntry, ...]]:
        """Upload the artifacts below `folder`; all artifacts and their files, including those that were streamed.

        Paths of files are relative to the manifest's folder.
        """
        self._is_begun = True
        artifacts: list[Artifact] = []
        files: list[FileEntry] = []
        for name in output.artifacts:
            key = f"{self._folder}/{self._name}/{name}"
            streamed = [entry for entry in self._streamed if entry.path.startswith(f"{self._name}/{name}/")]
            uploaded = (*streamed, *upload_folder(self._store, folder / name, key, relative_to=self._folder))
            files += uploaded
            entries = files_below(uploaded, f"{self._name}/{name}")
            if not entries:
                raise FileNotFoundError(f"artifact {name!r} of the stage has no files in {folder / name}")
            artifacts.append(
                Artifact(
                    name=name,
                    uri=uri_of(self._store, key),
                    bytes=sum(entry.bytes for entry in entries),
                    sha256=file_list_digest(entries),
                )
            )
        return tuple(artifacts), tuple(files)

    def commit(self, manifest: Manifest) -> Manifest:
        """Write the manifest unless another attempt was first; the manifest that is now in the store.

        Raises:
            TransientError: it is unknown whether the manifest was written. The attempt's files are kept.
        """
        committed = write_manifest_once(self._store, self._stage, self._digest, manifest)
        if committed != manifest:
            logger.info("another attempt finished %s first; using its result", self._stage)
        return committed

    def clean_up(self, won: bool) -> None:
        """Remove this attempt's files, or all others' if it won. A failure is only logged: no reader sees leftovers."""
        if self._is_begun:
            clean_up_attempts(self._store, self._folder, self._name, won)


def check_artifacts(request: Request, output: StageOutput) -> None:
    """Refuse other artifacts than those in the pipeline's table, where later stages look them up."""
    made, expected = tuple(output.artifacts), outputs_of(request.stage, request.parameters, request.formats)
    if made != expected:
        raise RuntimeError(
            f"the stage {request.stage} returned the artifacts {', '.join(made) or 'none'}, "
            f"but the pipeline expects {', '.join(expected) or 'none'}"
        )


def probe(store: Store) -> None:
    """Write, list and delete a small object, so that missing permissions are noticed before the work, not after it.

    Raises:
        AccessDenied: a permission is missing.
    """
    store.put("probe/probe.txt", b"written by a stage before it begins; safe to delete")
    store.delete_tree("probe")


def library_versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that can change a stage's output."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions

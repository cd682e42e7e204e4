"""Training checkpoints in the store: saved during training, restored to resume it.

    checkpoints/<train digest>/step-<n>/<attempt>/…files…      each writer has its own folder
    checkpoints/<train digest>/step-<n>/manifest.json          written last, by the first writer that completes
    checkpoints/<train digest>/step-size.json

A manifest never refers to files of another writer, so concurrent writers of one step cannot corrupt it.
"""

import logging
import re
import secrets
import shutil
from pathlib import Path

from edgetune_contract.digest import MANIFEST, checkpoints_key
from edgetune_contract.request import FileEntry
from edgetune_jobs.errors import AccessDenied, InvalidInput, TransientError
from edgetune_jobs.stage import CheckpointCheck, StepSize
from edgetune_jobs.store.files import Fingerprint, checked_relative, require_free_space
from edgetune_jobs.store.store import (
    DamagedObject,
    FileList,
    Store,
    read_model,
    upload_folder,
    uri_of,
    write_model,
    write_model_once,
)

logger = logging.getLogger(__name__)

_STEP_MANIFEST = re.compile(rf"step-(\d+)/{re.escape(MANIFEST)}")


class StoreCheckpoints:
    """Checkpoints of one training, identified by its digest."""

    def __init__(self, store: Store, train_digest: str, keep: int) -> None:
        """
        Args:
            store: the store with the checkpoints.
            train_digest: digest of the training.
            keep: number of complete checkpoints to keep, at least 1.
        """
        self._store = store
        self._folder = checkpoints_key(train_digest)
        self._keep = keep

    def save(self, step: int, folder: Path) -> None:
        """Upload a checkpoint folder, its manifest last; then delete all but the newest `keep` checkpoints."""
        key = self._step_key(step)
        attempt = f"{key}/{secrets.token_hex(8)}"
        files = upload_folder(self._store, folder, attempt, relative_to=key)
        manifest = FileList(files=files)
        if write_model_once(self._store, f"{key}/{MANIFEST}", manifest) != manifest:
            logger.info("checkpoint %d is already in the store", step)
            self._store.delete_tree(attempt)
        for old in self._complete_steps()[self._keep :]:
            self._delete(old)

    def restore_latest(self, folder: Path, check: CheckpointCheck | None = None) -> int | None:
        """Download the newest complete checkpoint into `folder`; its step, or None if there is none.

        A damaged checkpoint is logged and deleted, and the one before it is restored. `check` finds damage within the
        files.
        """
        for step in self._complete_steps():
            try:
                self._download(step, folder)
                if check is not None:
                    check(folder, step)
            except (DamagedObject, InvalidInput) as error:
                logger.warning("cannot restore checkpoint %d, trying the one before it: %s", step, error)
                self._delete(step)
            else:
                return step
        return None

    def restore(self, step: int, folder: Path) -> None:
        """Download the checkpoint of a step into `folder`.

        Raises:
            DamagedObject: it is damaged, or is not there any more.
        """
        self._download(step, folder)

    def read_step_size(self) -> StepSize | None:
        """The smaller step size that an earlier attempt wrote after it ran out of GPU memory."""
        return read_model(self._store, self._step_size_key, StepSize)

    def write_step_size(self, size: StepSize) -> None:
        """Write a smaller step size for the next attempt."""
        write_model(self._store, self._step_size_key, size)

    def delete_all(self) -> None:
        """Delete all checkpoints of the finished training; a failure is only logged."""
        try:
            self._store.delete_tree(self._folder)
        except (AccessDenied, TransientError) as error:
            logger.warning("cannot delete the checkpoints at %s: %s", uri_of(self._store, self._folder), error)

    @property
    def _step_size_key(self) -> str:
        return f"{self._folder}/step-size.json"

    def _step_key(self, step: int) -> str:
        return f"{self._folder}/step-{step}"

    def _complete_steps(self) -> list[int]:
        """Steps that have a manifest, newest first."""
        keys = (found.key.removeprefix(f"{self._folder}/") for found in self._store.list(self._folder))
        return sorted((int(match[1]) for key in keys if (match := _STEP_MANIFEST.fullmatch(key))), reverse=True)

    def _delete(self, step: int) -> None:
        """Delete a checkpoint: its manifest first, then only the files in it; others may belong to an active writer."""
        key = self._step_key(step)
        try:
            manifest = read_model(self._store, f"{key}/{MANIFEST}", FileList)
        except InvalidInput:
            manifest = None
        self._store.delete(f"{key}/{MANIFEST}")
        for attempt in {entry.path.partition("/")[0] for entry in manifest.files} if manifest else ():
            self._store.delete_tree(f"{key}/{attempt}")

    def _download(self, step: int, folder: Path) -> None:
        key = self._step_key(step)
        manifest = read_model(self._store, f"{key}/{MANIFEST}", FileList)
        if manifest is None:
            raise DamagedObject(f"{uri_of(self._store, key)} was deleted by another process")
        if folder.exists():
            shutil.rmtree(folder)  # files of a damaged checkpoint
        folder.mkdir(parents=True)
        require_free_space(folder, sum(entry.bytes for entry in manifest.files))
        for entry in manifest.files:
            self._download_file(key, entry, folder)

    def _download_file(self, key: str, entry: FileEntry, folder: Path) -> None:
        _, _, path = checked_relative(entry.path).partition("/")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        self._store.download_file(f"{key}/{entry.path}", target, Fingerprint.of(entry))

"""Training checkpoints in the store: saved while training runs, restored when it resumes.

    checkpoints/<train digest>/step-<n>/<attempt>/…files…      each writer has a folder of its own
    checkpoints/<train digest>/step-<n>/manifest.json          written last, by the first writer that is complete
    checkpoints/<train digest>/micro-batch-size.json

A manifest never names files of another writer, so two writers of one step cannot make it lie.
"""

import logging
import re
import secrets
import shutil
from pathlib import Path

from edgetune_contract.digest import MANIFEST, checkpoints_key
from edgetune_contract.model import Model
from edgetune_contract.request import FileEntry
from edgetune_jobs.errors import AccessDenied, InvalidInput, TransientError
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


class _MicroBatchSize(Model):
    micro_batch_size: int


class StoreCheckpoints:
    """Checkpoints of one training, known by its digest."""

    def __init__(self, store: Store, train_digest: str, keep: int) -> None:
        """Nothing is read yet.

        Args:
            store: where they lie.
            train_digest: the training that they belong to.
            keep: how many complete checkpoints are kept, 1 or more.
        """
        self._store = store
        self._folder = checkpoints_key(train_digest)
        self._keep = keep

    def save(self, step: int, folder: Path) -> None:
        """Upload a checkpoint folder; its manifest comes last, then all but the newest few are removed."""
        key = self._step_key(step)
        attempt = f"{key}/{secrets.token_hex(8)}"
        files = upload_folder(self._store, folder, attempt, relative_to=key)
        manifest = FileList(files=files)
        if write_model_once(self._store, f"{key}/{MANIFEST}", manifest) != manifest:
            logger.info("checkpoint %d is in the store already", step)
            self._store.delete_tree(attempt)
        for old in self._complete_steps()[self._keep :]:
            self._delete(old)

    def restore_latest(self, folder: Path) -> int | None:
        """Download the newest complete checkpoint into `folder`; its step, or None when there is none.

        A damaged checkpoint is logged and deleted, and the one before it is taken.
        """
        for step in self._complete_steps():
            try:
                self._download(step, folder)
            except (DamagedObject, InvalidInput) as error:
                logger.warning("checkpoint %d is not usable, the one before it is tried: %s", step, error)
                self._delete(step)
            else:
                return step
        return None

    def read_micro_batch_size(self) -> int | None:
        """The micro-batch size that an attempt which ran out of GPU memory left for the next one."""
        stored = read_model(self._store, self._micro_batch_size_key, _MicroBatchSize)
        return None if stored is None else stored.micro_batch_size

    def write_micro_batch_size(self, size: int) -> None:
        """Leave a smaller micro-batch size for the next attempt."""
        write_model(self._store, self._micro_batch_size_key, _MicroBatchSize(micro_batch_size=size))

    def delete_all(self) -> None:
        """Delete all that belongs to this training: it is finished. What cannot be deleted is logged."""
        try:
            self._store.delete_tree(self._folder)
        except (AccessDenied, TransientError) as error:
            logger.warning("checkpoints are left at %s: %s", uri_of(self._store, self._folder), error)

    @property
    def _micro_batch_size_key(self) -> str:
        return f"{self._folder}/micro-batch-size.json"

    def _step_key(self, step: int) -> str:
        return f"{self._folder}/step-{step}"

    def _complete_steps(self) -> list[int]:
        """Steps that have a manifest, the newest first."""
        keys = (found.key.removeprefix(f"{self._folder}/") for found in self._store.list(self._folder))
        return sorted((int(match[1]) for key in keys if (match := _STEP_MANIFEST.fullmatch(key))), reverse=True)

    def _delete(self, step: int) -> None:
        """Delete a checkpoint, its manifest first, and only the files that it names: others may be a writer's."""
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
            raise DamagedObject(f"{uri_of(self._store, key)} was removed meanwhile")
        if folder.exists():
            shutil.rmtree(folder)  # what an attempt at a damaged checkpoint left
        folder.mkdir(parents=True)
        require_free_space(folder, sum(entry.bytes for entry in manifest.files))
        for entry in manifest.files:
            self._download_file(key, entry, folder)

    def _download_file(self, key: str, entry: FileEntry, folder: Path) -> None:
        _, _, path = checked_relative(entry.path).partition("/")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        self._store.download_file(f"{key}/{entry.path}", target, Fingerprint.of(entry))

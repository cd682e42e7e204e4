"""Clean-up: remove from the store what belongs to one object and no other object uses.

    marks of the object: leaving ► pointer ► versions ► each stage that it used, the last first ► its mark

    one stage:  used by others? ──yes──────────────────────────► kept
                    │ no
                list files ► delete manifest ► used by others now? ──yes──► manifest restored, kept
                                                     │ no
                                              delete the listed files

The pointer is deleted first, so that no edge device follows it to files that are partly deleted. A manifest is deleted
before its files, so that a partly deleted stage never looks done. A mark is deleted last: after a kill at any point,
the next clean-up finds the remaining work by the marks. Objects that are cleaned up at the same time do not keep each
other's stages: each sets all its marks to leaving before it checks those of others.

Only files that were listed before the second check are deleted: an attempt that starts later writes files of its own.

Scores of the base model alone (`scores/`) and copies of base models (`sources/`) belong to no object and are
kept.
"""

import logging
from collections.abc import Iterable
from contextlib import suppress

from edgetune_contract.clean_up import CleanUpResult
from edgetune_contract.digest import checkpoints_key, manifest_key, model_key, pointer_key, stage_key
from edgetune_contract.stages import Stage
from edgetune_jobs.runtime.artifact_uses import Use, Uses
from edgetune_jobs.store.store import PreconditionFailed, Store, StoredObject

logger = logging.getLogger(__name__)


def clean_up(store: Store, name: str) -> CleanUpResult:
    """Remove what belongs to the object of this name. It can be repeated after a failure or a kill.

    Raises:
        StageError: the store refuses or fails; what is already removed stays removed.
    """
    return _CleanUp(store, name).run()


class _CleanUp:
    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._uses = Uses(store, name)
        self._objects = 0
        self._bytes = 0

    def run(self) -> CleanUpResult:
        own = self._uses.own()
        for use in own:
            self._uses.leave(use)
        self._remove_model()
        shared = 0
        for use in reversed(own):
            removed = self._remove_stage(use)
            self._uses.forget(use)
            shared += not removed
            logger.info("%s %s %s", use.stage, use.digest[:12], "removed" if removed else "kept: other objects use it")
        return CleanUpResult(removed_objects=self._objects, removed_bytes=self._bytes, shared_stages=shared)

    def _remove_model(self) -> None:
        """The pointer first, then the versions."""
        pointer = pointer_key(self._name)
        documents = list(self._store.list(model_key(self._name)))
        self._remove(sorted(documents, key=lambda found: found.key != pointer))
        self._store.discard_unfinished(model_key(self._name))

    def _remove_stage(self, use: Use) -> bool:
        """Remove a stage's output unless other objects use it; whether it was removed."""
        if self._uses.has_others(use):
            return False
        folders = [stage_key(use.stage, use.digest)]
        if use.stage is Stage.TRAIN:
            folders.append(checkpoints_key(use.digest))
        found = [each for folder in folders for each in self._store.list(folder)]
        key = manifest_key(use.stage, use.digest)
        manifest = self._store.read(key)
        self._store.delete(key)
        if self._uses.has_others(use):
            if manifest is not None:
                with suppress(PreconditionFailed):  # another attempt has written a new one
                    self._store.put(key, manifest.data, if_none_match=True)
            return False
        # The manifest is already deleted: a manifest under this key is now that of a new attempt.
        self._remove(each for each in found if each.key != key)
        self._count(each for each in found if each.key == key)
        for folder in folders:
            self._store.discard_unfinished(folder)
        return True

    def _remove(self, found: Iterable[StoredObject]) -> None:
        for each in found:
            self._store.delete(each.key)
            self._count([each])

    def _count(self, removed: Iterable[StoredObject]) -> None:
        for each in removed:
            self._objects += 1
            self._bytes += each.bytes

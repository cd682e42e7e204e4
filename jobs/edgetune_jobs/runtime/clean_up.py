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

Scores of the base model alone (`scores/`), copies of base models (`sources/`) and base models in GGUF that adapters
share (`shared/`) belong to no object and are kept.
"""

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

from edgetune_contract.clean_up import CleanUpResult
from edgetune_contract.digest import checkpoints_key, manifest_key, model_key, pointer_key, stage_key
from edgetune_contract.stages import Stage
from edgetune_jobs.store.artifact_uses import Use, Uses
from edgetune_jobs.store.store import PreconditionFailed, Store, StoredObject

logger = logging.getLogger(__name__)


def clean_up(store: Store, name: str) -> CleanUpResult:
    """Remove what belongs to the object of this name. It can be repeated after a failure or a kill.

    Raises:
        StageError: the store refuses or fails; what is already removed stays removed.
    """
    return _CleanUp(store, name).run()


class Remover:
    """Removes objects and stages' outputs from a store, and counts what it removes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.objects = 0
        self.bytes = 0

    def remove_stage(self, use: Use, is_used: Callable[[Use], bool]) -> bool:
        """Remove a stage's output unless it is used; whether it was removed.

        Args:
            use: the output.
            is_used: whether an object uses it that is to keep it, read from the store at each call.
        """
        if is_used(use):
            return False
        folders = folders_of(use)
        found = [each for folder in folders for each in self._store.list(folder)]
        key = manifest_key(use.stage, use.digest)
        manifest = self._store.read(key)
        self._store.delete(key)
        if is_used(use):
            if manifest is not None:
                with suppress(PreconditionFailed):  # another attempt has written a new one
                    self._store.put(key, manifest.data, if_none_match=True)
            return False
        # The manifest is already deleted: a manifest under this key is now that of a new attempt.
        self.remove(each for each in found if each.key != key)
        self._count(each for each in found if each.key == key)
        for folder in folders:
            self._store.discard_unfinished(folder)
        return True

    def remove(self, found: Iterable[StoredObject]) -> None:
        """Remove objects."""
        for each in found:
            self._store.delete(each.key)
            self._count([each])

    def _count(self, removed: Iterable[StoredObject]) -> None:
        for each in removed:
            self.objects += 1
            self.bytes += each.bytes


def folders_of(use: Use) -> tuple[str, ...]:
    """Folders with a stage's output: its own, and that of a training's checkpoints."""
    own = stage_key(use.stage, use.digest)
    return (own, checkpoints_key(use.digest)) if use.stage is Stage.TRAIN else (own,)


class _CleanUp:
    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._uses = Uses(store, name)
        self._remover = Remover(store)

    def run(self) -> CleanUpResult:
        own = self._uses.own()
        for use in own:
            self._uses.leave(use)
        self._remove_model()
        shared = 0
        for use in reversed(own):
            removed = self._remover.remove_stage(use, self._uses.has_others)
            self._uses.forget(use)
            shared += not removed
            logger.info("%s %s %s", use.stage, use.digest[:12], "removed" if removed else "kept: other objects use it")
        done = self._remover
        return CleanUpResult(removed_objects=done.objects, removed_bytes=done.bytes, shared_stages=shared)

    def _remove_model(self) -> None:
        """The pointer first, then the versions."""
        pointer = pointer_key(self._name)
        documents = list(self._store.list(model_key(self._name)))
        self._remover.remove(sorted(documents, key=lambda found: found.key != pointer))
        self._store.discard_unfinished(model_key(self._name))

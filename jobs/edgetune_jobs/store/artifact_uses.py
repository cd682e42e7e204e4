"""Marks in the store of which object uses which stage's output.

    uses/<stage>/<digest>/<name>      the object of this name uses, or has used, stages/<stage>/<digest>/

A stage writes its mark before it looks for existing output of itself or another object. A clean-up deletes the manifest
before it looks for marks. So it never removes output that another object has found.

Marks outlive their object: an object that is deleted with deletionPolicy: Retain keeps the output that it used.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from edgetune_contract.digest import USES, use_key, uses_key
from edgetune_contract.schema import Model
from edgetune_contract.stages import Stage
from edgetune_jobs.store.store import Store, read_model, write_model

_MARK = re.compile(rf"{USES}/(?P<stage>{'|'.join(Stage)})/(?P<digest>[0-9a-f]{{64}})/(?P<name>[^/]+)")


class _Mark(Model):
    leaving: bool = False
    """The object is being cleaned up and no longer uses the output; the mark lists what is still to be removed."""


@dataclass(frozen=True)
class Use:
    """The output of a stage that an object uses."""

    stage: Stage
    digest: str


class Uses:
    """The marks of one object, among those of all objects of its namespace."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name

    def mark(self, use: Use) -> None:
        """Mark a stage's output as used by the object."""
        write_model(self._store, self._key(use), _Mark())

    def leave(self, use: Use) -> None:
        """Set the object's mark to leaving: it no longer prevents the removal of the output."""
        write_model(self._store, self._key(use), _Mark(leaving=True))

    def forget(self, use: Use) -> None:
        """Remove the object's mark."""
        self._store.delete(self._key(use))

    def own(self) -> list[Use]:
        """Outputs that the object has marked, in the order of the stages."""
        found = [use for use, name in marks(self._store) if name == self._name]
        return sorted(found, key=lambda use: list(Stage).index(use.stage))

    def has_others(self, use: Use) -> bool:
        """Whether another object uses a stage's output; objects that are being cleaned up do not count."""
        others = (name for _, name in marks(self._store, uses_key(use.stage, use.digest)) if name != self._name)
        return any(is_in_use(self._store, use, other) for other in others)

    def _key(self, use: Use) -> str:
        return use_key(use.stage, use.digest, self._name)


def marks(store: Store, folder: str = USES) -> Iterator[tuple[Use, str]]:
    """All marks below a folder: the outputs, and the names of the objects."""
    for found in store.list(folder):
        if match := _MARK.fullmatch(found.key):
            yield Use(Stage(match["stage"]), match["digest"]), match["name"]


def is_in_use(store: Store, use: Use, name: str) -> bool:
    """Whether an object has marked an output, and is not being cleaned up."""
    mark = read_model(store, use_key(use.stage, use.digest, name), _Mark)
    return mark is not None and not mark.leaving

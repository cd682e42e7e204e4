"""Pruning: remove from a store what its models need no longer, while their objects remain.

Needed, with all stages of their runs, are of each model
- the version that latest.json names, which is the pinned one while there is a pin, and versions that `Kept.pins` names;
- the newest published versions, as many as `Kept.versions`;
- outputs that are in the status of a known object (`Kept.digests`);
- outputs that a run has marked since `Kept.since`: the state of objects in a cluster is not in the store;
- outputs that the object of a training has ever marked, if the training has written a checkpoint since: its marks may
  be as old as its attempt.

What was planned may be needed by the time it is removed: a person was asked in between. So only what a second plan
lists too is removed. An output is removed as by a clean-up: marks checked ► manifest ► marks checked again ► files ►
marks. A run that marks the output meanwhile keeps it, also if its object had marked it before. Copies of base models
are judged once more, by the outputs that are left.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from edgetune_contract.digest import (
    MANIFEST,
    base_gguf_digest,
    manifest_key,
    signatures_key,
    use_key,
    uses_key,
    version_key,
)
from edgetune_contract.request import FileEntry
from edgetune_contract.stages import Stage
from edgetune_contract.version import VersionDocument
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.publisher import Pointer
from edgetune_jobs.publishing.versions import KnownVersion, Versions
from edgetune_jobs.runtime.clean_up import Remover
from edgetune_jobs.store.artifact_uses import Use, Uses, is_in_use, marks
from edgetune_jobs.store.manifests import read_manifest
from edgetune_jobs.store.store import Store

_MODEL = re.compile(r"models/(?P<name>[^/]+)/.*")
_OUTPUT = re.compile(rf"(stages/(?P<stage>{'|'.join(Stage)})|checkpoints)/(?P<digest>[0-9a-f]{{64}})/.*")
_CHECKPOINT = re.compile(rf"checkpoints/(?P<digest>[0-9a-f]{{64}})/step-\d+/{re.escape(MANIFEST)}")
_COPY = re.compile(r"(?P<folder>(sources|shared)/(?P<digest>[0-9a-f]{64}))/.*")


@dataclass(frozen=True)
class Kept:
    """What is needed besides what the store itself shows."""

    since: datetime
    """With a time zone: whatever was used later is kept."""

    versions: int = 1
    """Number of published versions of each model, the newest."""

    pins: Mapping[str, str] = field(default_factory=dict)
    """First digits of pinned versions by the name of the model."""

    digests: Collection[str] = ()
    """Digests of stages, versions and base models in the status of known objects."""


@dataclass(frozen=True)
class PrunedVersion:
    """A version whose document would be removed."""

    model: str
    version: str
    why: str


@dataclass(frozen=True)
class PrunedOutput:
    """The output of a stage that would be removed."""

    use: Use
    bytes: int
    marks: Mapping[str, datetime]
    """When the objects that have used it have marked it last, by their names."""

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the objects that have used it."""
        return tuple(sorted(self.marks))


@dataclass(frozen=True)
class PrunedCopy:
    """The copy of a base model, or its GGUF file for adapters, that would be removed."""

    folder: str
    """Its key: sources/<digest> or shared/<digest>."""

    digest: str
    bytes: int


@dataclass(frozen=True)
class PrunePlan:
    """What would be removed."""

    versions: tuple[PrunedVersion, ...]
    outputs: tuple[PrunedOutput, ...]
    """The last stage first."""

    copies: tuple[PrunedCopy, ...]
    notes: tuple[str, ...]
    """What is kept because it cannot be judged."""

    kept: Kept
    """What the plan was made for."""

    @property
    def bytes(self) -> int:
        """Size of all outputs and copies, in bytes."""
        return sum(each.bytes for each in self.outputs) + sum(each.bytes for each in self.copies)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to remove."""
        return not (self.versions or self.outputs or self.copies)


@dataclass
class Pruned:
    """What was removed."""

    items: list[PrunedVersion | PrunedOutput | PrunedCopy] = field(default_factory=list)
    objects: int = 0
    bytes: int = 0


def plan_pruning(store: Store, kept: Kept) -> PrunePlan:
    """What can be removed from a store; nothing is written.

    Raises:
        StageError: the store cannot be read.
    """
    return _Planner(store, kept).plan()


def prune(store: Store, plan: PrunePlan) -> Pruned:
    """Remove what a plan lists, except what is needed or has been used since; what was removed.

    Raises:
        StageError: the store refuses or fails; what is already removed stays removed.
    """
    remover, removed = Remover(store), Pruned()
    again = plan_pruning(store, plan.kept)
    for version in plan.versions:
        if version in again.versions and Pointer(store, version.model).version != version.version:
            key = version_key(version.model, version.version)
            cards = f"{key.removesuffix('.json')}/"
            below = store.list(key.rpartition("/")[0])
            remover.remove(each for each in below if each.key == key or each.key.startswith(cards))
            remover.remove(store.list(signatures_key(version.model, version.version)))
            removed.items.append(version)
    unneeded = {each.use for each in again.outputs}
    for output in plan.outputs:
        if output.use in unneeded and _prune_output(store, output, remover):
            removed.items.append(output)
    unused = _Planner(store, plan.kept).copies_without_output()
    for copy in (each for each in plan.copies if each in unused):
        # The manifest first, so that no run finds a copy that is partly deleted.
        remover.remove(sorted(store.list(copy.folder), key=lambda each: not each.key.endswith(f"/{MANIFEST}")))
        removed.items.append(copy)
    removed.objects, removed.bytes = remover.objects, remover.bytes
    return removed


def _prune_output(store: Store, output: PrunedOutput, remover: Remover) -> bool:
    """Remove an output with its marks, unless one was written since the plan was made; whether it was removed."""
    use = output.use

    def is_planned(name: str) -> bool:
        return name in output.marks and _marked_at(store, use, name) == output.marks[name]

    def is_used(use: Use) -> bool:
        names = [name for _, name in marks(store, uses_key(use.stage, use.digest))]
        return any(not is_planned(name) and is_in_use(store, use, name) for name in names)

    if not remover.remove_stage(use, is_used):
        return False
    for name in filter(is_planned, output.models):
        Uses(store, name).forget(use)
    return True


def _marked_at(store: Store, use: Use, name: str) -> datetime | None:
    content = store.read(use_key(use.stage, use.digest, name))
    return None if content is None else content.written_at


class _Planner:
    def __init__(self, store: Store, kept: Kept) -> None:
        self._store = store
        self._kept = kept
        self._needed = set(kept.digests)
        self._notes: list[str] = []
        self._users: dict[Use, list[str]] = defaultdict(list)
        self._whole: set[str] = set()
        """Names of objects all of whose outputs are kept: a version cannot be read, or a training is running."""

    def plan(self) -> PrunePlan:
        versions = self._judge_all()
        self._keep_trainings()
        sizes = self._sizes()
        outputs = self._outputs(sizes)
        pruned = {each.use for each in outputs}
        copies = self._copies(use for use in sizes if use not in pruned)
        return PrunePlan(versions, outputs, copies, tuple(self._notes), self._kept)

    def copies_without_output(self) -> tuple[PrunedCopy, ...]:
        """Copies that no output of the store was made from or names, be the output needed or not."""
        self._judge_all()
        return self._copies(self._sizes())

    def _judge_all(self) -> tuple[PrunedVersion, ...]:
        """The versions of all models that are not needed."""
        for use, name in marks(self._store):
            self._users[use].append(name)
        names = {match["name"] for found in self._store.list("models") if (match := _MODEL.fullmatch(found.key))}
        return tuple(version for name in sorted(names) for version in self._judge(name))

    def _judge(self, name: str) -> list[PrunedVersion]:
        """The versions of a model that are not needed; the stages of the others are."""
        known = Versions(self._store, name).all()
        current, pin = Pointer(self._store, name).version, self._kept.pins.get(name, "")
        published = [each.version for each in known if each.document is not None and each.document.published]
        newest = published[: self._kept.versions]
        pruned = []
        for each in known:
            if each.document is None:
                self._whole.add(name)
                self._notes.append(f"all that {name} has used is kept: {each.problem}")
                continue
            is_pinned = bool(pin) and each.version.startswith(pin)
            is_chosen = each.version == current or is_pinned or each.version in newest
            if is_chosen or each.version in self._kept.digests or self._is_recent(each):
                self._needed |= _digests_of(each.document)
            else:
                why = f"not among the newest {len(newest)}" if each.document.published else "refused by its gates"
                pruned.append(PrunedVersion(name, each.version, why))
        return pruned

    def _is_recent(self, version: KnownVersion) -> bool:
        content = self._store.read(version_key(version.document.model, version.version)) if version.document else None
        return content is not None and content.written_at >= self._kept.since

    def _keep_trainings(self) -> None:
        """Keep the outputs of objects that are training: which of them the training reads, only its spec says."""
        for found in self._store.list("checkpoints"):
            if match := _CHECKPOINT.fullmatch(found.key):
                content = self._store.read(found.key)
                if content is not None and content.written_at >= self._kept.since:
                    self._needed.add(match["digest"])
                    self._whole.update(self._users[Use(Stage.TRAIN, match["digest"])])

    def _sizes(self) -> dict[Use, int]:
        """Sizes of all outputs in bytes, those of a training with its checkpoints."""
        sizes: dict[Use, int] = defaultdict(int)
        for found in (*self._store.list("stages"), *self._store.list("checkpoints")):
            if match := _OUTPUT.fullmatch(found.key):
                sizes[Use(Stage(match["stage"] or Stage.TRAIN), match["digest"])] += found.bytes
        return dict(sizes)

    def _outputs(self, sizes: Mapping[Use, int]) -> tuple[PrunedOutput, ...]:
        """Outputs that nothing needs, the last stage first."""
        order = list(Stage)
        pruned = []
        for use in sorted(sizes, key=lambda use: (-order.index(use.stage), use.digest)):
            if use.digest in self._needed or self._whole.intersection(self._users[use]):
                continue
            marked = {name: _marked_at(self._store, use, name) for name in self._users[use]}
            planned = {name: at for name, at in marked.items() if at is not None}
            if not self._is_recent_output(use, planned.values()):
                pruned.append(PrunedOutput(use, sizes[use], planned))
        return tuple(pruned)

    def _is_recent_output(self, use: Use, marked: Collection[datetime]) -> bool:
        """Whether an output was used since, or, if no object has marked it, made since."""
        if marked:
            return max(marked) >= self._kept.since
        made = self._store.read(manifest_key(use.stage, use.digest))
        return made is not None and made.written_at >= self._kept.since

    def _copies(self, others: Iterable[Use]) -> tuple[PrunedCopy, ...]:
        """Copies of base models, and bases in GGUF, that no output which stays was made from or names."""
        sizes: dict[tuple[str, str], int] = defaultdict(int)
        for found in (*self._store.list("sources"), *self._store.list("shared")):
            if match := _COPY.fullmatch(found.key):
                sizes[match["folder"], match["digest"]] += found.bytes
        if not sizes:
            return ()
        bases, shared = set(self._needed), set[str]()
        for use in others:
            try:
                manifest = read_manifest(self._store, use.stage, use.digest)
            except InvalidInput as error:
                self._notes.append(f"all copies of base models are kept: {error}")
                return ()
            if manifest is not None:
                bases |= {manifest.resolved.base} if manifest.resolved is not None else set()
                shared |= _shared_by(manifest.files)
        # A run that is between training and quantize has no list of files yet, but may have found the base.
        needed = bases | shared | {base_gguf_digest(base) for base in bases}
        return tuple(
            PrunedCopy(folder, digest, size)
            for (folder, digest), size in sorted(sizes.items())
            if digest not in needed and not self._is_new_copy(folder)
        )

    def _is_new_copy(self, folder: str) -> bool:
        content = self._store.read(f"{folder}/{MANIFEST}")
        return content is None or content.written_at >= self._kept.since


def _digests_of(document: VersionDocument) -> set[str]:
    """Digests of all stages of the run that made a version, of its base, and of files that it shares with others."""
    made = {origin.digest for origin in document.provenance.stages.values()}
    artifacts = {artifact.key.split("/")[2] for artifact in document.artifacts}
    shared = {digest for edge in document.edges for digest in _shared_by(edge.files)}
    return {document.version, document.provenance.resolved.base, *made, *artifacts, *shared}


def _shared_by(files: Iterable[FileEntry]) -> set[str]:
    """Digests of the shared files in a list."""
    return {entry.key.split("/")[1] for entry in files if entry.key is not None}

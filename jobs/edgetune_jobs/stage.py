"""The interface of a stage body: a function from folders to a folder, without S3 or Kubernetes."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from edgetune_contract.measurement import EdgeMeasurement
from edgetune_contract.request import Manifest, Publication, Request, Scores
from edgetune_contract.stages import Stage
from edgetune_contract.version import VersionDocument
from edgetune_jobs.models.folder import ModelFolder
from edgetune_jobs.store.files import Buffer
from edgetune_jobs.store.sources import Source

BASE_SCORES_FILE = "scores.json"
"""File in the input or output folder base-scores."""


class Progress(Protocol):
    """Reports how far a stage is."""

    def update(self, done: int, total: int, unit: str, **figures: float) -> None:
        """Report `done` of `total` units (steps, rows, bytes, tensors) and current figures such as loss."""
        ...

    def say(self, message: str) -> None:
        """Report what the stage starts now, in a few words."""
        ...


CheckpointCheck: TypeAlias = Callable[[Path, int], None]
"""(folder, step) -> None; raises DamagedObject if the folder is not a checkpoint of this step."""


class Checkpoints(Protocol):
    """Training checkpoints in the store."""

    def save(self, step: int, folder: Path) -> None:
        """Upload a checkpoint folder, its manifest last; then remove all but the newest few checkpoints."""
        ...

    def restore_latest(self, folder: Path, check: CheckpointCheck | None = None) -> int | None:
        """Download the newest complete checkpoint that passes the check into `folder`; its step, or None if there is
        none."""
        ...

    def read_micro_batch_size(self) -> int | None:
        """The micro-batch size that an attempt left for the next one when it ran out of GPU memory."""
        ...

    def write_micro_batch_size(self, size: int) -> None:
        """Leave a smaller micro-batch size for the next attempt."""
        ...


class OutputFile(Protocol):
    """A file that is being written, from its first byte to its last."""

    def write(self, data: Buffer, /) -> object:
        """Write all of these bytes; they may be changed afterwards."""
        ...


class OutputFiles(Protocol):
    """Streams the large files of a stage's artifacts to the store, without a copy on this machine."""

    def create(self, path: str, size: int) -> AbstractContextManager[OutputFile]:
        """A new file of `size` bytes: it exists once the block ends, and does not if the block raises.

        `path` begins with the artifact's name. The artifact consists of these files and those below
        `StageContext.output`.
        """
        ...


class Publisher(Protocol):
    """Versions and the pointer of one model in the store."""

    def read_stage(self, stage: Stage) -> Manifest:
        """Manifest of a finished stage of this run."""
        ...

    def publish(self, document: VersionDocument) -> Publication:
        """Write a version; move the pointer to it by conditional put if it passed its gates."""
        ...

    def pin(self, pin: str) -> Publication:
        """Move the pointer to the published version whose digest begins with `pin`.

        Raises:
            InvalidInput: there is no such version, or its files are not in the store.
        """
        ...


@dataclass(frozen=True)
class StageContext:
    """What the body of one stage gets."""

    request: Request
    inputs: Mapping[str, Path]
    """Folders by the names of `edgetune_contract.pipeline`, and base-scores if the store has them."""

    output: Path
    """Empty folder; each artifact is the subfolder of its name."""

    streams: OutputFiles
    """Writes further, large files of the artifacts."""

    scratch: Path
    """Empty folder for temporary files."""

    progress: Progress
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when SIGTERM has arrived."""

    deadline: float | None = None
    """When the stage is ended at the latest, by time.monotonic(); None if it is not known."""

    checkpoints: Checkpoints | None = None
    """train only."""

    gpu_bytes: int | None = None
    """prepare only: memory of the GPU that train will have; None if it is not known."""

    sources: Mapping[str, Source] = field(default_factory=dict)
    """prepare only: base, train, and eval if the spec names one."""

    models: Mapping[str, ModelFolder] = field(default_factory=dict)
    """merge and quantize only: base or merged, if the stage reads it in place; then it is not among the inputs."""

    base_copy_uri: str | None = None
    """train only: URI of the base, if it is a copy in the store."""

    publisher: Publisher | None = None
    """publish only."""


@dataclass(frozen=True)
class StageOutput:
    """What a stage body returns."""

    artifacts: Sequence[str] = ()
    """Names of the artifacts, in the order of `pipeline.outputs_of`: each is the subfolder of `output` of that name."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    scores: Scores | None = None
    edge: EdgeMeasurement | None = None
    publication: Publication | None = None

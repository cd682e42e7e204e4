"""The interface of a stage body: a function from folders to a folder, without S3 or Kubernetes."""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TypeAlias

from pydantic import Field

from edgetune_contract.request import FileEntry, Manifest, Publication, Request, Scores
from edgetune_contract.results.candidates import Candidate, PossibleFormat
from edgetune_contract.results.measurement import EdgeMeasurement
from edgetune_contract.schema import Model
from edgetune_contract.stages import Stage
from edgetune_contract.version import VersionDocument
from edgetune_jobs.models.folder import ModelFolder
from edgetune_jobs.store.files import Buffer
from edgetune_jobs.store.sources.source import Source

if TYPE_CHECKING:
    import torch

    from edgetune_jobs.reporting.run_record import RunRecord

BASE_SCORES_FILE = "scores.json"
"""File in the input or output folder base-scores."""

LARGEST_BASE = "largestBase"
"""Fact of prepare that depends on the profile: it is absent where the profile does not know the memory of its GPU."""


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


class StepSize(Model):
    """How a training step is computed: what takes less memory takes more time."""

    micro_batch_size: Annotated[int, Field(ge=1)]
    """Examples of a forward pass."""

    recompute: Annotated[int, Field(ge=0)]
    """Every how many layers one is recomputed in the backward pass (gradient checkpointing); 0 for none."""

    def __str__(self) -> str:
        which = {0: "", 1: " with all layers recomputed"}.get(
            self.recompute, f" with 1 of {self.recompute} layers recomputed"
        )
        return f"a micro-batch of {self.micro_batch_size}{which}"


class Checkpoints(Protocol):
    """Training checkpoints in the store."""

    def save(self, step: int, folder: Path) -> None:
        """Upload a checkpoint folder, its manifest last; then remove all but the newest few checkpoints."""
        ...

    def restore_latest(self, folder: Path, check: CheckpointCheck | None = None) -> int | None:
        """Download the newest complete checkpoint that passes the check into `folder`; its step, or None if there is
        none."""
        ...

    def restore(self, step: int, folder: Path) -> None:
        """Download the checkpoint of a step into `folder`."""
        ...

    def read_step_size(self) -> StepSize | None:
        """The step size that an attempt left for the next one when it ran out of GPU memory."""
        ...

    def write_step_size(self, size: StepSize) -> None:
        """Leave a smaller step size for the next attempt."""
        ...


class Ranks(Protocol):
    """The processes of one training, its ranks 0 to `size` - 1, of which each computes a share of every step.

    All ranks call the methods in the same order; each call waits for all of them.
    """

    rank: int
    """This process."""

    size: int
    """Number of processes."""

    per_device: int
    """Number of processes that share this one's GPU, or its CPU."""

    described: str
    """How many there are and how they exchange gradients, in words; empty for one process."""

    def gather(self, *values: float) -> Sequence[tuple[float, ...]]:
        """The values of every rank, by rank; each rank gives the same number of values.

        Raises:
            PeerLost: a rank has ended, or does not answer in time; the message names it.
        """
        ...

    def add_gradients(self, parameters: "Sequence[torch.nn.Parameter]") -> None:
        """Replace each gradient by its sum over all ranks; a missing one counts as 0.

        Raises:
            PeerLost: as for `gather`.
        """
        ...

    def copy_from_first(self, parameters: "Sequence[torch.nn.Parameter]") -> None:
        """Give the parameters the values that they have on rank 0.

        Raises:
            PeerLost: as for `gather`.
        """
        ...


class OneRank:
    """A training in one process."""

    rank = 0
    size = 1
    per_device = 1
    described = ""

    def gather(self, *values: float) -> Sequence[tuple[float, ...]]:
        """The values."""
        return (values,)

    def add_gradients(self, parameters: "Sequence[torch.nn.Parameter]") -> None:
        """Nothing to add."""

    def copy_from_first(self, parameters: "Sequence[torch.nn.Parameter]") -> None:
        """Nothing to copy."""


class OutputFile(Protocol):
    """A file that is being written, from its first byte to its last."""

    def write(self, data: Buffer, /) -> object:
        """Write all of these bytes; they may be changed afterwards."""
        ...


class NewFiles(Protocol):
    """Creates files that are written as streams."""

    def create(self, path: str, size: int) -> AbstractContextManager[OutputFile]:
        """A new file of `size` bytes: it exists once the block ends, and does not if the block raises."""
        ...


class OutputFiles(NewFiles, Protocol):
    """Streams the large files of a stage's artifacts to the store, without a copy on this machine.

    Paths begin with the artifact's name. The artifact consists of these files and those below `StageContext.output`.
    """

    def find_shared(self, path: str, digest: str) -> FileEntry | None:
        """Make a file that several artifacts share a file of this artifact, under `path`.

        Returns:
            The file; None if nobody has created one for this digest.
        """
        ...

    def create_shared(self, path: str, digest: str, size: int) -> AbstractContextManager[OutputFile]:
        """A new file that several artifacts share, under the digest of what it is made from; see `find_shared`.

        It has the last part of `path` as its name. If another stage creates it at the same time, the file of the first
        one stays.
        """
        ...


class Publisher(Protocol):
    """Versions and the pointer of one model in the store."""

    def read_stage(self, stage: Stage) -> Manifest:
        """Manifest of a finished stage of this run."""
        ...

    def read_file(self, key: str) -> bytes | None:
        """A small file of a finished stage by its key in the store; None if there is none."""
        ...

    def publish(self, document: VersionDocument, files: Mapping[str, bytes]) -> Publication:
        """Write a version and the files that describe it, by their keys: model cards and report. Move the pointer to it
        by conditional put if it passed its gates."""
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

    ranks: Ranks = field(default_factory=OneRank)
    """train only: of which this process is one."""

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

    track: "Callable[[RunRecord], None]" = lambda _: None
    """publish only: sends the run of a version to the tracker, if there is one. Never raises."""

    sizes: Mapping[str, int] = field(default_factory=dict)
    """evaluate only: bytes of the candidates of formats Auto, by artifact. Each is only downloaded when it is looked up
    in `inputs`."""

    discard: Callable[[str], None] = lambda _: None
    """evaluate only: removes the downloaded copy of a candidate, which is not looked up again."""


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
    possible: Sequence[PossibleFormat] = ()
    """prepare only, with quantization.formats Auto: the formats that the base can be written in, largest first."""

    candidates: Sequence[Candidate] = ()
    """evaluate only, with quantization.formats Auto."""

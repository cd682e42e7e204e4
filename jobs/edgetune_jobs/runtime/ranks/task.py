"""What a rank's process gets and reports, as lines of JSON on its standard input and output."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict

from edgetune_contract.request import Failure, Request
from edgetune_contract.schema import Model
from edgetune_jobs.stage import StageOutput


class RankTask(Model):
    """The task of one rank: the only line of its standard input, which ends when the stage's process does."""

    request: Request
    rank: int
    size: int
    """Number of ranks on all nodes."""

    nodes: int = 1
    per_device: int
    """Number of ranks that share a GPU, or the CPU."""

    rendezvous: str
    """Where the ranks find each other: the path of a file on one node, tcp://host:port of rank 0 on several."""

    timeout_seconds: float
    """How long a rank waits for another one."""

    inputs: dict[str, Path]
    output: Path
    """Folder of the artifacts of rank 0; the other ranks write none."""

    scratch: Path
    """Empty folder for temporary files of this rank."""

    shared: Path
    """Folder for temporary files that all ranks of this machine read."""

    deadline: float | None
    """When the stage is ended at the latest, by time.monotonic(), which the processes of a machine share."""

    train_digest: str
    base_copy_uri: str | None
    credentials_folder: Path | None

    @property
    def first_of_node(self) -> int:
        """The lowest rank of its node."""
        return self.rank - self.rank % (self.size // self.nodes)

    def name_of(self, rank: int) -> str:
        """A rank's name in messages; on several nodes, with its node."""
        if self.nodes == 1:
            return f"rank {rank} of {self.size}"
        return f"node {rank // (self.size // self.nodes)} of {self.nodes} (rank {rank})"


class RankProgress(Model):
    """Steps done by rank 0."""

    done: int
    total: int
    unit: str
    figures: dict[str, float]

    # A loss that is not finite is passed on, too.
    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="constants")


class RankOutput(Model):
    """What a rank's stage body returned."""

    artifacts: tuple[str, ...] = ()
    metrics: dict[str, float] = {}
    facts: dict[str, str] = {}
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, output: StageOutput) -> Self:
        """The parts of an output that the stage train has."""
        return cls(
            artifacts=tuple(output.artifacts),
            metrics=dict(output.metrics),
            facts=dict(output.facts),
            warnings=tuple(output.warnings),
        )

    def restored(self) -> StageOutput:
        """The output of the stage body."""
        values: Mapping[str, Any] = dict(self)
        return StageOutput(**values)


class RankMessage(Model):
    """One line from a rank: exactly one of these. Its last line is the output or the failure."""

    progress: RankProgress | None = None
    say: str | None = None
    output: RankOutput | None = None
    failure: Failure | None = None
    peer_lost: bool = False
    """Whether the failure is that another rank has ended or does not answer."""

    memory_bytes: int = 0
    """Peak resident set of the rank, with its output."""

    sent_bytes: int = 0
    """What it has sent to S3, with its output."""

    received_bytes: int = 0
    """What it has received from S3, with its output."""

    def line(self) -> bytes:
        """The message as a line of JSON."""
        return self.model_dump_json(exclude_none=True).encode() + b"\n"

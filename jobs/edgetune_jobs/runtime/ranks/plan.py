"""How many ranks a training has in this container and on all nodes, and on which GPU each of them runs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from edgetune_contract.training import AUTO, TrainingSpec, gpus_that_divide, nearest_batch_sizes
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.gpus import count_visible_gpus
from edgetune_jobs.models.libraries import usable_cpus
from edgetune_jobs.runtime.nodes.place import NodePlace
from edgetune_jobs.wording import count

# Variables with which launchers say that a process is one of several: the libraries must see a training of one process.
_OF_LAUNCHERS = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "PMI_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "MV2_COMM_WORLD_SIZE",
)
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class RankPlan:
    """The ranks of a training in this container, one of `nodes` that have as many each."""

    size: int
    """Number of ranks in this container."""

    gpus: Sequence[str] = ()
    """Names of the GPUs for CUDA_VISIBLE_DEVICES; empty on a CPU."""

    node: int = 0
    nodes: int = 1

    @property
    def world(self) -> int:
        """Number of ranks on all nodes."""
        return self.size * self.nodes

    @property
    def ranks(self) -> range:
        """The ranks in this container."""
        return range(self.node * self.size, (self.node + 1) * self.size)

    @property
    def per_device(self) -> int:
        """Number of ranks that share a GPU, or the CPU."""
        return ceil(self.size / len(self.gpus)) if self.gpus else self.size

    def environment(self, rank: int, own: Mapping[str, str]) -> dict[str, str]:
        """The environment variables of a rank's process: it sees its GPU only, and has its share of the threads.

        Args:
            rank: the process.
            own: environment variables of this process.
        """
        environment = {name: value for name, value in own.items() if name not in _OF_LAUNCHERS}
        if self.gpus:
            environment[_VISIBLE] = self.gpus[rank % self.size % len(self.gpus)]
        # prepare_torch has set it in this process, to all of its CPUs.
        threads = int(own.get(_THREADS, "").split(",")[0] or usable_cpus())
        environment[_THREADS] = str(max(1, threads // self.size))
        return environment


def plan_ranks(training: TrainingSpec, given: int, processes: int, place: NodePlace) -> RankPlan | None:
    """The ranks of a training; None if it runs in the stage's own process.

    Args:
        training: spec.training.
        given: number of GPUs that the container was given; 0 outside of a cluster, where it is up to the spec.
        processes: number of ranks in this container, if it is set; 0 otherwise.
        place: of this container among the nodes.

    Raises:
        InvalidInput: the batch cannot be divided, or fewer GPUs are visible than the spec asks for.
    """
    visible = count_visible_gpus()
    size = processes or given or _asked(training, visible)
    plan = RankPlan(size, _names(visible), place.node, place.nodes)
    if training.batch_size % plan.world:
        raise InvalidInput(
            f"spec.training.batchSize: {training.batch_size} is not a multiple of the {plan.world} processes that "
            f"share each step; use {nearest_batch_sizes(training.batch_size, plan.world)}"
        )
    # With several GPUs in sight, the libraries would use all of them in one process.
    return plan if plan.world > 1 or visible > 1 else None


def _asked(training: TrainingSpec, visible: int) -> int:
    """GPUs that a training outside of a cluster uses; 1 on a CPU."""
    if training.gpus == AUTO or not visible:
        return gpus_that_divide(training.batch_size, max(visible, 1))
    if training.gpus > visible:
        raise InvalidInput(
            f"spec.training.gpus is {training.gpus}, but this machine shows {count(visible, 'GPU')}; use {visible} or "
            "Auto, or set CUDA_VISIBLE_DEVICES"
        )
    return training.gpus


def _names(visible: int) -> Sequence[str]:
    named = [name for name in os.environ.get(_VISIBLE, "").split(",") if name]
    return named[:visible] if len(named) >= visible else [str(index) for index in range(visible)]

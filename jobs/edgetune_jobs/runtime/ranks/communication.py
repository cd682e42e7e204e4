"""Exchange between the ranks of a training, by torch.distributed.

Gloo carries what the ranks agree on, and notices a rank that has ended or hangs. Gradients go through NCCL where each
rank has a GPU of its own. The libraries of training do not know of it: they see no LOCAL_RANK.
"""

import os
import re
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from edgetune_jobs.errors import PeerLost, is_out_of_gpu_memory
from edgetune_jobs.models.libraries import prepare_torch
from edgetune_jobs.runtime.ranks.task import RankTask

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup, Store

Value = TypeVar("Value")

_LONGEST_REASON = 300
_LOOPBACK = ("lo", "lo0")
_TCP = "tcp://"
_NOT_AT_BARRIER = re.compile(r"Ranks? ([\d, ]+?) failed to pass monitoredBarrier")
# Gloo waits for the address of a rank under a key of the store that ends with its number.
_WITHOUT_ADDRESS = re.compile(r"wait timeout after \S+ keys: \S+/(\d+)\b")


class ConnectedRanks:
    """One of the ranks, connected to all others."""

    def __init__(self, task: RankTask, gradients: "ProcessGroup | None", place: str, library: str) -> None:
        """
        Args:
            task: of this rank.
            gradients: group for gradients; None for that of everything else.
            place: where the ranks are.
            library: with which they exchange gradients.
        """
        self._task = task
        self.rank = task.rank
        self.size = task.size
        self.per_device = task.per_device
        self.described = _described(task, place, library)
        self._gradients = gradients
        self._timeout = timedelta(seconds=task.timeout_seconds)

    def gather(self, *values: float) -> Sequence[tuple[float, ...]]:
        """The values of every rank, by rank."""
        import torch
        from torch import distributed

        mine = torch.tensor(values, dtype=torch.float64)
        rows = [torch.empty_like(mine) for _ in range(self.size)]

        def exchange() -> None:
            # Unlike other collectives, it says which ranks are missing.
            distributed.monitored_barrier(timeout=self._timeout, wait_all_ranks=True)
            distributed.all_gather(rows, mine)

        self._call(exchange)
        return [tuple(row.tolist()) for row in rows]

    def add_gradients(self, parameters: "Sequence[torch.nn.Parameter]") -> None:
        """Replace each gradient by its sum over all ranks, in one message."""
        import torch
        from torch import distributed

        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self._call(lambda: distributed.all_reduce(flat, group=self._gradients))
        _copy_from(flat, gradients)

    def copy_from_first(self, parameters: "Sequence[torch.nn.Parameter]") -> None:
        """Give the parameters the values that they have on rank 0."""
        import torch
        from torch import distributed

        values = [parameter.data for parameter in parameters]
        flat = torch.cat([value.reshape(-1) for value in values])
        self._call(lambda: distributed.broadcast(flat, src=0, group=self._gradients))
        _copy_from(flat, values)

    def _call(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:
            if is_out_of_gpu_memory(error):
                raise
            raise PeerLost(self._described_loss(str(error))) from error

    def _described_loss(self, reason: str) -> str:
        found = _NOT_AT_BARRIER.search(reason)
        ranks = [int(rank) for rank in found[1].split(",")] if found else []
        who = ", ".join(map(self._task.name_of, ranks)) or f"another rank of {self.size}"
        if re.search("closed by peer|reset by peer|broken pipe", reason, re.IGNORECASE):
            return f"{who} has ended"
        if found is None and "monitoredBarrier" not in reason and "imed out" not in reason:
            return f"{who} cannot be reached: {' '.join(reason.split())[:_LONGEST_REASON]}"
        return f"{who} did not answer within {self._timeout.total_seconds():g} s"


def connect(task: RankTask) -> ConnectedRanks:
    """Find the other ranks and connect to them.

    Raises:
        PeerLost: a rank did not come in time; the message names it.
    """
    prepare_torch()
    import torch
    from torch import distributed

    timeout = timedelta(seconds=task.timeout_seconds)
    try:
        store = _open_store(task, timeout)
        _check_in(store, task, timeout)
    except (RuntimeError, TimeoutError) as error:  # with several nodes, the store is in the process of rank 0
        raise PeerLost(_described_absence(task, 0 if task.rank else None, error)) from error
    try:
        distributed.init_process_group(
            "gloo",
            store=distributed.PrefixStore("ranks", store),
            rank=task.rank,
            world_size=task.size,
            timeout=timeout,
        )
    except (RuntimeError, TimeoutError) as error:
        found = _WITHOUT_ADDRESS.search(str(error))
        raise PeerLost(_described_absence(task, int(found[1]) if found else None, error)) from error
    if not torch.cuda.is_available():
        return ConnectedRanks(task, None, "on this CPU" if task.nodes == 1 else "on CPUs", "Gloo")
    if task.per_device > 1:
        return ConnectedRanks(task, None, f"{task.per_device} on each GPU", "Gloo")
    torch.cuda.set_device(0)
    gradients = distributed.new_group(backend="nccl", timeout=timeout)
    return ConnectedRanks(task, gradients, "one on each GPU", "NCCL")


def _described(task: RankTask, place: str, library: str) -> str:
    if task.nodes > 1:
        return f"{task.size} on {task.nodes} nodes, {place}, gradients by {library}"
    separator = " " if place.startswith("on ") else ", "
    return f"{task.size}{separator}{place}, gradients by {library}"


def _described_absence(task: RankTask, missing: int | None, error: Exception) -> str:
    """Why the ranks could not connect, by the rank that did not come, if that is known."""
    reason = " ".join(str(error).split())[:_LONGEST_REASON]
    if missing is None:
        return f"the {task.size} ranks could not connect{_advice(task)}: {reason}"
    return f"{task.name_of(missing)} did not connect within {task.timeout_seconds:g} s{_advice(task)}: {reason}"


def _open_store(task: RankTask, timeout: timedelta) -> "Store":
    """The store of torch.distributed in which ranks find each other."""
    from torch import distributed

    if task.rendezvous.startswith(_TCP):
        place = urlsplit(task.rendezvous)
        # Waiting for all ranks is left to `_check_in`, which can say who is missing.
        return distributed.TCPStore(
            place.hostname or "", place.port or 0, task.size, task.rank == 0, timeout, wait_for_workers=False
        )
    # Ranks of one machine are reached by no other.
    names = [name for _, name in socket.if_nameindex() if name in _LOOPBACK]
    os.environ.update(dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), names[0]) if names else {})
    return distributed.FileStore(task.rendezvous, task.size)


def _check_in(store: "Store", task: RankTask, timeout: timedelta) -> None:
    """Wait until all ranks are there.

    Raises:
        PeerLost: some did not come in time; the message names them.
    """
    keys = {rank: f"rank-{rank}" for rank in range(task.size)}
    store.set(keys[task.rank], b"here")
    try:
        store.wait(list(keys.values()), timeout)
    except RuntimeError as error:
        missing = [task.name_of(rank) for rank, key in keys.items() if not store.check([key])]
        raise PeerLost(
            f"{', '.join(missing) or 'another rank'} did not come within {task.timeout_seconds:g} s ({task.rendezvous})"
            f"{_advice(task)}"
        ) from error


def _advice(task: RankTask) -> str:
    if task.nodes == 1:
        return ""
    return "; a NetworkPolicy must allow all TCP between the Pods of this Job, also on ports that Gloo and NCCL choose"


def _copy_from(flat: "torch.Tensor", targets: "Sequence[torch.Tensor]") -> None:
    for target, part in zip(targets, flat.split([each.numel() for each in targets]), strict=True):
        target.copy_(part.view_as(target))

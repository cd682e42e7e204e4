"""How the GPUs of a training are split over nodes: as few nodes as possible, with equally many GPUs on each."""

from dataclasses import dataclass

from edgetune_contract.training import MOST_GPUS

MOST_NODES = 64
"""Largest number of nodes of a training: the host name of a Pod has room for an index of two digits."""


@dataclass(frozen=True)
class Split:
    """The Pods of a training, of which each has a node of its own unless its nodes have room for several."""

    gpus: int
    """GPUs of each Pod; 0 on CPUs."""

    nodes: int
    """Number of Pods."""

    @property
    def ranks(self) -> int:
        """Processes of all Pods, which share the examples of a step: one for each GPU, or for each Pod on CPUs."""
        return max(self.gpus, 1) * self.nodes


def split(gpus: int, most_each: int, most_nodes: int) -> Split | None:
    """The Pods with a number of GPUs; None if no number of Pods has equally many on each.

    Args:
        gpus: of all Pods.
        most_each: largest number of GPUs of one Pod.
        most_nodes: largest number of Pods.
    """
    fitting = (nodes for nodes in range(1, most_nodes + 1) if gpus % nodes == 0 and gpus // nodes <= most_each)
    return next((Split(gpus // nodes, nodes) for nodes in fitting), None)


def largest_split(batch_size: int, each: int, nodes: int) -> Split:
    """The most processes that share a batch evenly, of those on up to `nodes` Pods; of equally many, the fewest Pods.

    Args:
        batch_size: examples of a step.
        each: largest number of GPUs of one Pod; 0 on CPUs.
        nodes: largest number of Pods.
    """
    of_pod = range(1, each + 1) if each else (0,)
    splits = (Split(gpus, count) for count in range(1, nodes + 1) for gpus in of_pod)
    even = (found for found in splits if found.ranks <= MOST_GPUS and batch_size % found.ranks == 0)
    return max(even, key=lambda found: (found.ranks, -found.nodes))


def nearest_numbers(gpus: int, batch_size: int, most_each: int, most_nodes: int) -> str:
    """The numbers of GPUs next to one that cannot be split, such as "8 or 10", of those that divide the batch."""
    most = min(most_each * most_nodes, MOST_GPUS)
    numbers = [each for each in range(1, most + 1) if batch_size % each == 0 and split(each, most_each, most_nodes)]
    below = max((each for each in numbers if each < gpus), default=None)
    above = min((each for each in numbers if each > gpus), default=None)
    return " or ".join(str(each) for each in (below, above) if each is not None)

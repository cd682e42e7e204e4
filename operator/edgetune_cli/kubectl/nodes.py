"""The Pods of a stage by node and process, for `kubectl edgetune logs`."""

from collections.abc import Mapping
from typing import Any

from edgetune_cli.kubectl.calls import fail, read
from edgetune_operator.api import names
from edgetune_operator.decisions.pods import creation_order, index_of


def pod_on(job: str, node: int | None, rank: int | None, access: list[str]) -> str:
    """Name of a Job's newest Pod on a node; exits with an error if there is none.

    Args:
        job: name of the Job.
        node: number of the node, from 0; None if `rank` says it.
        rank: number of a process among those of all nodes, from 0.
        access: options of kubectl.
    """
    selector = f"--selector={names.JOB_NAME_LABEL}={job}"
    pods = sorted(read("get", "pods", selector, *access, "-o", "json")["items"], key=creation_order)
    if not pods:
        fail(f"Job {job} has no Pod left, and with it no log")
    each, nodes = _variable(pods[-1], "EDGETUNE_GPUS"), _variable(pods[-1], "EDGETUNE_NODES")
    if rank is not None and rank >= each * nodes:
        fail(f"--rank {rank}: the stage has {each * nodes} processes, from 0 to {each * nodes - 1}")
    wanted = node if rank is None else rank // each
    if rank is not None and node not in (None, wanted):
        fail(f"--node {node}: process {rank} is on node {wanted}; leave out one of the two")
    found = [pod["metadata"]["name"] for pod in pods if index_of(pod) == wanted]
    if not found:
        there = ", ".join(map(str, sorted({index_of(pod) for pod in pods})))
        fail(f"Job {job} has no Pod on node {wanted}; it has Pods on {there}")
    return str(found[-1])


def _variable(pod: Mapping[str, Any], name: str) -> int:
    """A number in the environment of a Pod's stage; 1 if it is not set."""
    containers = [each for each in pod["spec"]["containers"] if each["name"] == names.CONTAINER]
    values = (each.get("value", "") for container in containers for each in container["env"] if each["name"] == name)
    value = next(values, "")
    return max(int(value), 1) if value.isdecimal() else 1

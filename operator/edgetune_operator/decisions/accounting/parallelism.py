"""Processes that share the steps of a training, and how much faster they are than one.

Efficiency compares with the object's newest training in one process, whose speed the row of train keeps: of the same
base, on the same device, with the same settings that decide how fast a process is. Steps and batch may differ.
"""

from edgetune_contract.digest import sha256_of
from edgetune_contract.request import Resolved, Result
from edgetune_contract.spec import Parameters
from edgetune_operator.api.status.stage_status import OneProcess, Parallelism, StageStatus
from edgetune_operator.decisions.observe import JobObservation

_DIGITS = 3
_DECIDE_SPEED = {
    "max_length",
    "micro_batch_size",
    "layout",
    "attention",
    "kernels",
    "optimizer",
    "gradient_checkpointing",
    "precision",
}


def recipe_of(parameters: Parameters, resolved: Resolved | None) -> str:
    """SHA-256 over what decides how fast one process trains, besides its device; empty if the base is not known."""
    if resolved is None:
        return ""
    training = parameters.training.model_dump(mode="json", include=_DECIDE_SPEED)
    lora = parameters.lora.model_dump(mode="json")
    return sha256_of({"base": resolved.base, "method": parameters.method, "lora": lora, "training": training})


def with_job(row: StageStatus, job: JobObservation) -> StageStatus:
    """A training's row with the processes that its Job has."""
    return row.model_copy(update={"parallelism": _parallelism(max(job.gpus, 1) * job.nodes, job.nodes)})


def with_result(row: StageStatus, result: Result, recipe: str) -> StageStatus:
    """A training's row with its processes as the result counts them, and their efficiency if it is known.

    Args:
        row: with the processes of the Job.
        result: of the training.
        recipe: see `recipe_of`.
    """
    processes, speed = int(result.metrics.get("worldSize", 1)), result.metrics.get("tokensPerSecond") or 0.0
    device, of_job, one = result.facts.get("device", ""), row.parallelism, row.one_process
    # The Job that finds a result in the store may have another number of processes than the one that made it.
    nodes = of_job.nodes if of_job is not None and of_job.processes == processes and not result.cached else None
    found = _parallelism(processes, nodes)
    if found is None and speed and recipe:
        one = OneProcess(tokens_per_second=speed, device=device, recipe=recipe)
    elif found is not None and speed and one is not None and (one.device, one.recipe) == (device, recipe):
        efficiency = round(speed / (processes * one.tokens_per_second), _DIGITS)
        found = found.model_copy(update={"efficiency": efficiency})
    return row.model_copy(update={"parallelism": found, "one_process": one})


def _parallelism(processes: int, nodes: int | None) -> Parallelism | None:
    return Parallelism(processes=processes, nodes=nodes) if processes > 1 else None

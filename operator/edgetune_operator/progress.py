"""Progress of a running training, read from the metrics that its Pod serves."""

from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from edgetune_contract.stages import Stage
from edgetune_operator import names
from edgetune_operator.api import ProgressStatus
from edgetune_operator.render import METRICS_PORT

_TIMEOUT = aiohttp.ClientTimeout(total=2)


def running_train_pod(pods: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The Pod of a training that runs now; None if there is none that can be asked."""
    for pod in pods:
        stage = (pod["metadata"].get("labels") or {}).get(names.STAGE_LABEL)
        status = pod["status"]
        if stage == Stage.TRAIN and status.get("phase") == "Running" and status.get("podIP"):
            return pod
    return None


async def read_metrics(pod: Mapping[str, Any]) -> ProgressStatus | None:
    """Progress of the training in a running Pod; None while it does not answer or has not begun."""
    address = pod["status"]["podIP"]
    host = f"[{address}]" if ":" in address else address
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.get(f"http://{host}:{METRICS_PORT}/metrics") as response,
        ):
            return parse_metrics(await response.text(), pod["metadata"]["name"])
    except (aiohttp.ClientError, TimeoutError):
        return None


def parse_metrics(text: str, pod: str) -> ProgressStatus | None:
    """Progress from the text of the metrics of a Pod; None before the first step."""
    try:
        values = {
            sample.name.removeprefix("edgetune_train_"): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        step, total = int(values["step"]), int(values["total_steps"])
    except (KeyError, ValueError):
        return None
    return ProgressStatus(
        stage=Stage.TRAIN,
        step=step,
        total_steps=total,
        percent=min(100 * step // total, 100) if total else 0,
        loss=values.get("loss"),
        tokens_per_second=values.get("tokens_per_second"),
        eta_seconds=values.get("eta_seconds"),
        pod=pod,
        resumed_from=int(values.get("resumed_from_step", 0)),
    )

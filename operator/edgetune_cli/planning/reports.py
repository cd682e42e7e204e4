"""Plans as text, as JSON, and as Markdown for a comment on a pull request."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgetune_cli.planning.figures import Estimate
from edgetune_cli.planning.planner import ObjectPlan
from edgetune_contract.values.units import format_bytes, format_cost
from edgetune_operator.api.names import Key
from edgetune_operator.decisions.forecast.explanation import StageForecast
from edgetune_operator.decisions.plans import Outcome

Removed = Mapping[Key, str]


def text_lines(plans: Sequence[ObjectPlan], removed: Removed) -> Iterator[str]:
    """Lines for a terminal; one object alone has no title."""
    has_titles = len(plans) + len(removed) > 1
    for plan in plans:
        if has_titles:
            yield f"{plan.key.namespace}/{plan.key.name} ({plan.file})"
        for line in plan.forecast.stages:
            estimated = _takes(plan.estimates.get(line.stage))
            about = f" (about {estimated})" if estimated else ""
            requests = f" (in a cluster: requests {line.requests})" if line.requests else ""
            yield f"{line.stage.value:9} {line.action.value:6} {line.why}{about}{requests}"
        for warning in plan.warnings:
            yield f"Warning: {warning}"
        if plan.forecast.outcome is not Outcome.PUBLISHED:
            yield f"\n{plan.forecast.outcome.value}: {plan.forecast.message}"
        if has_titles:
            yield ""
    for key, what in removed.items():
        yield f"{key.namespace}/{key.name}: {what}"
    if has_titles:
        yield _summary(plans, removed)


def json_value(plans: Sequence[ObjectPlan], removed: Removed) -> dict[str, Any]:
    """The plans as plain values."""
    return {
        "objects": [_json_object(plan) for plan in plans],
        "removed": [{"namespace": key.namespace, "name": key.name, "what": what} for key, what in removed.items()],
    }


def markdown_lines(plans: Sequence[ObjectPlan], removed: Removed) -> Iterator[str]:
    """Lines of a comment on a pull request."""
    yield f"### Edgetune plan: {_summary(plans, removed)}"
    for plan in plans:
        yield f"\n#### {_plain(f'{plan.key.namespace}/{plan.key.name}')}\n"
        if not plan.running and plan.forecast.outcome is Outcome.PUBLISHED:
            yield "Nothing runs."
        else:
            yield "| stage | plan | why | about | requests |"
            yield "|---|---|---|---|---|"
            yield from (_row(plan, line) for line in plan.forecast.stages)
        if plan.forecast.outcome is not Outcome.PUBLISHED:
            yield f"\n**{plan.forecast.outcome.value}**: {_plain(plan.forecast.message)}"
        if plan.warnings:
            yield ""
        for warning in plan.warnings:
            yield f"- Warning: {_plain(warning)}"
    if removed:
        yield ""
    for key, what in removed.items():
        yield f"- {_plain(f'{key.namespace}/{key.name}')}: {what}"


def _row(plan: ObjectPlan, line: StageForecast) -> str:
    action = f"**{line.action.value}**" if line in plan.running else line.action.value
    requests = line.requests or (f"{line.gpus} GPU{'s' if line.gpus > 1 else ''}" if line.gpus else "")
    cells = (line.stage.value, action, _plain(line.why), _takes(plan.estimates.get(line.stage)), requests)
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """A text of a file or a cluster that Markdown shows as it is, in one line."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    return "".join(f"\\{each}" if each in "\\`*_[]|#@" else each for each in escaped)


def _takes(estimate: Estimate | None) -> str:
    """What a stage takes, such as "3,600 s of a GPU, 3.00 EUR, 1.2 GB moved"; empty if unknown."""
    if estimate is None:
        return ""
    parts = []
    if estimate.gpu_seconds is not None:
        parts.append(f"{estimate.gpu_seconds:,.0f} GPU-seconds")
    elif estimate.seconds is not None:
        parts.append(f"{estimate.seconds:,.0f} s")
    if estimate.cost is not None:
        parts.append(format_cost(estimate.cost))
    if estimate.moved_bytes is not None:
        parts.append(f"{format_bytes(estimate.moved_bytes)} moved")
    return ", ".join(parts)


def _summary(plans: Sequence[ObjectPlan], removed: Removed) -> str:
    on_gpu = [plan for plan in plans if plan.asks_for_gpu]
    running = [plan for plan in plans if plan.running]
    count = "1 object" if len(plans) == 1 else f"{len(plans)} objects"
    parts = [f"{count}: {len(running)} with stages that run, {len(on_gpu)} with a GPU"]
    known = [plan.gpu_seconds for plan in on_gpu if plan.gpu_seconds is not None]
    if known:
        unknown = len(on_gpu) - len(known)
        parts.append(f"about {sum(known):,.0f} GPU-seconds" + (f" without {unknown} unknown" if unknown else ""))
    if removed:
        parts.append(f"{len(removed)} removed")
    return ", ".join(parts)


def _json_object(plan: ObjectPlan) -> dict[str, Any]:
    return {
        "file": plan.file,
        "namespace": plan.key.namespace,
        "name": plan.key.name,
        "runs": bool(plan.running),
        "asksForGpu": plan.asks_for_gpu,
        "estimatedGpuSeconds": plan.gpu_seconds,
        "outcome": plan.forecast.outcome,
        "message": plan.forecast.message,
        "stages": [_json_stage(line, plan.estimates.get(line.stage)) for line in plan.forecast.stages],
        "warnings": list(plan.warnings),
    }


def _json_stage(line: StageForecast, estimate: Estimate | None) -> dict[str, Any]:
    stage = {"stage": line.stage, "plan": line.action, "why": line.why, "gpus": line.gpus, "requests": line.requests}
    if estimate is None:
        return stage
    figures = {
        "seconds": estimate.seconds,
        "gpuSeconds": estimate.gpu_seconds,
        "movedBytes": estimate.moved_bytes,
        "cost": estimate.cost,
    }
    return stage | {"estimated": {name: value for name, value in figures.items() if value is not None}}

"""Charts of the models side by side, and of the time of the stages: horizontal bars with their values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from edgetune_contract.pipeline import BASE, EDGE
from edgetune_contract.values.units import format_bytes, format_duration, format_share
from edgetune_jobs.reporting.drawing import PALETTE, Chart
from edgetune_jobs.reporting.model_figures import ModelFigures, models_of
from edgetune_jobs.reporting.run_record import GpuTime, RunRecord
from edgetune_jobs.wording import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INCHES_OF_A_BAR = 0.36
_INCHES_BESIDE_BARS = 0.35
_ROOM_FOR_VALUES = 1.4

Value = Callable[[ModelFigures], float | None]


def score_charts(run: RunRecord, other: RunRecord | None = None) -> Iterator[Chart]:
    """Scores of all models; with the format Text, their losses."""
    models = models_of(run.document)
    scored = [model for model in models if model.score is not None]
    if scored:
        name = score_name(run)
        shares = ", ".join(f"{model.name} {format_share(model.score)}" for model in scored)
        rows = count(run.document.scores.examples, "held-out row")
        caption = f"{name.capitalize()} on {rows}: {shares}."
        yield _bars("scores", name.capitalize(), caption, run, other, lambda model: model.score, format_share)
    elif any(model.loss is not None for model in models):
        caption = "Mean loss per token of the held-out rows, in nats; lower is better."
        yield _bars(
            "evaluation-loss",
            "Loss on held-out rows",
            caption,
            run,
            other,
            lambda model: model.loss,
            lambda loss: f"{loss:.3f}",
        )


def cost_charts(run: RunRecord, other: RunRecord | None = None) -> Iterator[Chart]:
    """Size, speed and memory of the models."""
    document = run.document
    models = {model.name: model for model in models_of(document)}
    base, edge = models.get(BASE), models[EDGE]
    caption = f"Bytes of each model's files; the edge model has {format_bytes(edge.bytes)}"
    if base is not None and base.bytes and edge.bytes:
        caption += f", {edge.bytes / base.bytes:.0%} of the base model's size"
    yield _bars(
        "sizes", "Size", f"{caption}.", run, other, lambda model: model.bytes, lambda size: format_bytes(int(size))
    )
    measured = document.measurement
    if measured is None:
        return
    place = f"{count(measured.threads, 'thread')} of {measured.cpu}"
    caption = f"Tokens generated per second on {place}, one prompt at a time; higher is better."
    yield _bars(
        "speed",
        "Generation speed",
        caption,
        run,
        other,
        lambda model: model.tokens_per_second,
        lambda speed: f"{speed:,.1f} tokens/s",
    )
    caption = "Peak memory of the process that ran the model, with its libraries; lower is better."
    yield _bars(
        "memory",
        "Peak memory",
        caption,
        run,
        other,
        lambda model: model.peak_memory_bytes,
        lambda size: format_bytes(int(size)),
    )


def time_charts(run: RunRecord) -> Iterator[Chart]:
    """How long each stage took, and what the GPU time was used for."""
    seconds = {stage.value: manifest.result.seconds for stage, manifest in run.manifests.items()}
    if any(seconds.values()):
        total = format_duration(sum(seconds.values()))
        caption = f"Duration of the attempt that made each stage's output, {total} in all."
        yield _duration_chart("time", "Time by stage", caption, seconds, ["tuned"] * len(seconds))
    gpu = run.usage.total if run.usage else None
    if gpu is not None and gpu.seconds > 0:
        wasted = 1 - gpu.useful / gpu.seconds
        total = format_duration(gpu.seconds)
        caption = f"{total} of GPU time in all runs of the object, {wasted:.0%} of it without progress."
        yield _duration_chart("gpu-time", "GPU time", caption, gpu_parts(gpu), ["edge", "base", "accent", "bad"])


def _duration_chart(name: str, title: str, caption: str, seconds: Mapping[str, float], roles: Sequence[str]) -> Chart:
    labels, values, colours = list(seconds), list(seconds.values()), [PALETTE[role] for role in roles]
    texts = [format_duration(value) for value in values]
    height = _height(len(labels))
    return Chart(name, title, caption, lambda axes: _draw_bars(axes, labels, values, colours, texts), height)


def gpu_parts(gpu: GpuTime) -> Mapping[str, float]:
    """The parts of a GPU time in seconds, which add up to all of it."""
    return {"useful": gpu.useful, "loading": gpu.loading, "repeated steps": gpu.repeated, "failed": gpu.failed}


def score_name(run: RunRecord) -> str:
    """What the score of this version is."""
    details = run.document.scores.details.values()
    return "keyword recall" if any(each.keyword_recall is not None for each in details) else "exact match"


def _bars(
    name: str,
    title: str,
    caption: str,
    run: RunRecord,
    other: RunRecord | None,
    value: Value,
    show: Callable[[float], str],
) -> Chart:
    """One bar for each model that has the value; below it that of the other version, hatched."""
    before = {model.name: value(model) for model in models_of(other.document)} if other else {}
    labels, values, colours, texts, hatched = [], [], [], [], []
    for model in models_of(run.document):
        for figure, label, is_before in ((value(model), model.name, False), (before.get(model.name), "", True)):
            if figure is None or (is_before and value(model) is None):
                continue
            labels.append(label)
            values.append(figure)
            colours.append(PALETTE[model.role])
            texts.append(show(figure))
            hatched.append(is_before)
    if other is not None and any(hatched):
        caption += f" Hatched: version {other.short_version}."
    height = _height(len(labels))
    return Chart(name, title, caption, lambda axes: _draw_bars(axes, labels, values, colours, texts, hatched), height)


def _height(bars: int) -> float:
    return max(_INCHES_BESIDE_BARS + _INCHES_OF_A_BAR * bars, 1.2)


def _draw_bars(
    axes: "Axes",
    labels: Sequence[str],
    values: Sequence[float],
    colours: Sequence[str],
    texts: Sequence[str],
    hatched: Sequence[bool] = (),
) -> None:
    positions = range(len(labels))
    bars = axes.barh(list(positions), list(values), height=0.68, color=list(colours))
    for bar, is_hatched, colour in zip(bars, hatched, colours, strict=False):
        if is_hatched:
            bar.set(facecolor="none", edgecolor=colour, hatch="///")
    for position, value, text in zip(positions, values, texts, strict=True):
        axes.annotate(text, (value, position), xytext=(5, 0), textcoords="offset points", va="center_baseline")
    axes.set_yticks(list(positions), labels=list(labels))
    axes.invert_yaxis()
    axes.set_xlim(0, max([*values, 1e-9]) * _ROOM_FOR_VALUES)
    axes.xaxis.set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(axis="y", length=0)
    axes.spines["bottom"].set_visible(False)

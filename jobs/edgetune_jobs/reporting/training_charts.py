"""Charts of the training, and of the lengths of its rows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from edgetune_contract.stages import Stage
from edgetune_jobs.reporting.drawing import PALETTE, Chart
from edgetune_jobs.reporting.run_record import DataReport, PreparedRows, RunRecord, TrainingStep
from edgetune_jobs.wording import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Figure = Callable[[TrainingStep], float | None]

_LOGARITHMIC_FROM = 50
"""Ratio of the largest to the smallest loss from which the axis is logarithmic."""

_SMOOTHED_FROM = 200
"""Number of steps from which a mean over the neighbours is drawn over the single steps."""

_MOST_LABELS = 4


def training_charts(run: RunRecord, other: RunRecord | None = None) -> Iterator[Chart]:
    """Loss, learning rate and gradient norm by step; of an other version the loss only."""
    if not run.steps:
        return
    yield Chart("loss", "Loss", _loss_caption(run), lambda axes: _draw_loss(axes, run, other))
    if figures := _values(run.steps, lambda step: step.learning_rate):
        highest = max(figures.values())
        caption = f"The learning rate of each step; the highest was {highest:.2g}."
        yield Chart("learning-rate", "Learning rate", caption, lambda axes: _draw_learning_rate(axes, run))
    if figures := _values(run.steps, lambda step: step.gradient_norm):
        yield Chart("gradient-norm", "Gradient norm", _norm_caption(run, figures), lambda axes: _draw_norm(axes, run))


def data_charts(data: DataReport) -> Iterator[Chart]:
    """The lengths of training and evaluation rows."""
    if data.train.histogram:
        lengths = data.train.lengths
        caption = f"Lengths of {count(data.train.examples, 'training example')} before truncation, in tokens"
        caption += f": half have at most {lengths['p50']:,}, 99% at most {lengths['p99']:,}" if "p99" in lengths else ""
        caption += f"; {data.train.truncated:,} were truncated." if data.train.truncated else "; none was truncated."
        yield Chart("tokens", "Tokens per row", caption, lambda axes: _draw_lengths(axes, data))


def resumed_steps(steps: Sequence[TrainingStep]) -> dict[int, int]:
    """The first step of each attempt that resumed a training, by the number of the attempt."""
    first: dict[int, int] = {}
    for step in steps:
        first.setdefault(step.attempt, step.step)
    return {attempt: step for attempt, step in first.items() if attempt > 1 and step > 1}


def _values(steps: Sequence[TrainingStep], figure: Figure) -> dict[int, float]:
    return {step.step: value for step in steps if (value := figure(step)) is not None}


def _loss_caption(run: RunRecord) -> str:
    losses = _values(run.steps, lambda step: step.loss)
    if not losses:
        return "No step had a finite loss."
    first, last = min(losses), max(losses)
    caption = f"Mean loss per learned token, in nats: {losses[first]:.3f} at step {first:,}"
    caption += f", {losses[last]:.3f} at step {last:,}." if last != first else "."
    if len(losses) >= _SMOOTHED_FROM:
        caption += f" Lines are means of {_window(losses)} steps."
    measured = _values(run.steps, lambda step: step.validation_loss)
    if measured:
        best = min(measured, key=lambda step: measured[step])
        caption += f" On the evaluation rows it was lowest after step {best:,}: {measured[best]:.3f}."
    return caption + _resumed_caption(run.steps)


def _resumed_caption(steps: Sequence[TrainingStep]) -> str:
    resumed = sorted(resumed_steps(steps).values())
    if not resumed:
        return " The training was not interrupted." if steps[-1].attempt == 1 else ""
    return f" The training was resumed before {_named_steps(resumed)} (dotted)."


def _named_steps(steps: Sequence[int]) -> str:
    shown = [f"{step:,}" for step in steps[:_MOST_LABELS]]
    more = f" and {len(steps) - _MOST_LABELS} more" if len(steps) > _MOST_LABELS else ""
    return f"step{'s' if len(steps) > 1 else ''} {', '.join(shown)}{more}"


def _norm_caption(run: RunRecord, norms: Mapping[int, float]) -> str:
    limit = _clipped_at(run)
    caption = f"Norm of the gradient before clipping; the largest was {max(norms.values()):.2f}"
    if limit is None:
        return f"{caption}."
    clipped = sum(norm > limit for norm in norms.values())
    return f"{caption}. It was clipped at {limit:g} (dashed) in {clipped:,} of {count(len(norms), 'step')}."


def _clipped_at(run: RunRecord) -> float | None:
    training = run.parameters.get("training")
    limit = training.get("maxGradNorm") if isinstance(training, dict) else None
    return float(limit) if isinstance(limit, int | float) and limit > 0 else None


def _draw_loss(axes: "Axes", run: RunRecord, other: RunRecord | None) -> None:
    losses = _values(run.steps, lambda step: step.loss)
    before = _values(other.steps, lambda step: step.loss) if other else {}
    if before and other:
        _draw_line(axes, before, PALETTE["base"], f"version {other.short_version}")
    _draw_line(axes, losses, PALETTE["tuned"], f"version {run.short_version}" if before else "training rows")
    measured = _values(run.steps, lambda step: step.validation_loss)
    if measured:
        axes.plot(list(measured), list(measured.values()), "o-", color=PALETTE["edge"], ms=4, label="evaluation rows")
    best = run.metrics(Stage.TRAIN).get("bestStep")
    if best is not None and int(best) in measured:
        axes.plot([best], [measured[int(best)]], "*", color=PALETTE["accent"], ms=12, label="best step, kept", zorder=5)
    drawn = [value for values in (losses, before, measured) for value in values.values()]
    if drawn and min(drawn) > 0 and max(drawn) > _LOGARITHMIC_FROM * min(drawn):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda loss, _: f"{loss:g}")
        axes.set_ylabel("nats per token (log)")
    else:
        axes.set_ylabel("nats per token")
    if before or measured:
        _add_legend(axes)
    _finish(axes, run)


def _draw_learning_rate(axes: "Axes", run: RunRecord) -> None:
    rates = _values(run.steps, lambda step: step.learning_rate)
    axes.plot(list(rates), list(rates.values()), color=PALETTE["tuned"])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
    _finish(axes, run)


def _draw_norm(axes: "Axes", run: RunRecord) -> None:
    _draw_line(axes, _values(run.steps, lambda step: step.gradient_norm), PALETTE["tuned"], "gradient norm")
    limit = _clipped_at(run)
    if limit is not None:
        axes.axhline(limit, color=PALETTE["accent"], linestyle="--", linewidth=1.2)
    axes.set_ylim(bottom=0)
    _finish(axes, run)


def _draw_line(axes: "Axes", values: Mapping[int, float], colour: str, label: str) -> None:
    """A line through the steps; of many steps the mean over their neighbours, with the steps themselves behind it."""
    steps, figures = list(values), list(values.values())
    if len(steps) < _SMOOTHED_FROM:
        axes.plot(steps, figures, color=colour, label=label, marker="o" if len(steps) == 1 else None)
        return
    from numpy import convolve, ones

    width = _window(values)
    smooth = convolve(figures, ones(width) / width, mode="valid")
    begin = (width - 1) // 2
    axes.plot(steps, figures, color=colour, alpha=0.3, linewidth=0.8)
    axes.plot(steps[begin : begin + len(smooth)], smooth, color=colour, label=label)


def _window(values: Mapping[int, float]) -> int:
    """Number of steps over which a line of many steps is a mean."""
    return len(values) // 40


def _add_legend(axes: "Axes") -> None:
    """A legend above the chart, where it covers nothing."""
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def _finish(axes: "Axes", run: RunRecord) -> None:
    """The axis of the steps, and a mark where an attempt resumed."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    resumed = resumed_steps(run.steps)
    for attempt, step in resumed.items():
        axes.axvline(step - 0.5, color=PALETTE["accent"], linestyle=":", linewidth=1.4)
        if len(resumed) <= _MOST_LABELS:
            axes.annotate(
                f"attempt {attempt}",
                (step - 0.5, 1),
                xycoords=("data", "axes fraction"),
                xytext=(4, -2),
                textcoords="offset points",
                va="top",
                color=PALETTE["accent"],
                size=10,
            )


def _draw_lengths(axes: "Axes", data: DataReport) -> None:
    """Shares of the rows by length: bars of the training rows, an outline of the evaluation rows."""
    buckets = (*data.train.histogram, *data.eval.histogram)
    width, last = max(each.up_to - each.lower for each in buckets), max(each.up_to for each in buckets)
    # Of lengths that differ by orders of magnitude, most would be in the first bars.
    is_logarithmic = data.train.lengths.get("p50", last) < 2 * width
    for rows, role, label in ((data.train, "tuned", "training rows"), (data.eval, "edge", "evaluation rows")):
        if not rows.histogram:
            continue
        edges, heights = _outline(rows, 1 if is_logarithmic else width)
        fill = role == "tuned"
        axes.stairs(
            heights,
            edges,
            fill=fill,
            color=PALETTE[role],
            alpha=0.75 if fill else 1,
            linewidth=0 if fill else 1.8,
            label=label,
        )
    if is_logarithmic:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda tokens, _: f"{tokens:,.0f}")
    if data.max_length is not None and data.max_length < last:
        axes.axvline(data.max_length, color=PALETTE["accent"], linestyle="--", linewidth=1.2, label="maxLength")
    axes.set_xlabel("tokens")
    axes.set_ylabel("share of the rows")
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    _add_legend(axes)


def _outline(rows: PreparedRows, width: int) -> tuple[list[int], list[float]]:
    """Bounds of bars of at least this width, with empty ones between them, and the share of the rows in each."""
    examples: dict[tuple[int, int], int] = {}
    for bucket in rows.histogram:
        bounds = bucket.lower // width * width, -(-bucket.up_to // width) * width
        examples[bounds] = examples.get(bounds, 0) + bucket.examples
    edges, shares = [min(examples)[0]], []
    for (lower, upper), rows_in_bar in sorted(examples.items()):
        if lower > edges[-1]:
            edges.append(lower)
            shares.append(0.0)
        edges.append(upper)
        shares.append(rows_in_bar / max(rows.examples, 1))
    return edges, shares

"""Output for users: tables of stages, sizes and scores, and the progress of a run."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from edgetune_cli.candidate_table import candidate_table
from edgetune_contract.pipeline import ADAPTER, BASE, EDGE, EVALUATION, SCORED_MODELS, TUNED
from edgetune_contract.results.measurement import EdgeMeasurement
from edgetune_contract.stages import Stage
from edgetune_contract.values.units import format_bytes, format_cost, format_hours, format_points, format_share
from edgetune_operator.api.profiles.gpu_use import GpuStatus
from edgetune_operator.api.reasons import Reason
from edgetune_operator.api.status.object_status import SHORT_VERSION, ArtifactStatus, LoraFineTuneStatus
from edgetune_operator.api.status.stage_status import StageState, StageStatus
from edgetune_operator.decisions.plans import Outcome, View

_PLAIN_INTERVAL_SECONDS = 10.0


class ProgressView:
    """Progress of a run: on a terminal one bar per stage, elsewhere a line at each start and end and every 10 s."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._plain = not console.is_terminal
        self._stage: Stage | None = None
        self._last_line = 0.0
        self._last_text = ""
        self._retry_text = ""
        self._bar: TaskID | None = None
        self._progress = Progress(
            TextColumn("{task.description:9}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            console=console,
        )

    def __enter__(self) -> "ProgressView":
        if not self._plain:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._plain:
            self._progress.stop()

    def update(self, view: View, message: str) -> None:
        """Show the state of the run; `message` is the running stage's latest one."""
        running = view.stage if view.outcome is Outcome.RUNNING else None
        if running is not self._stage:
            self._end_stage(view)
            self._stage = running
            if running is not None:
                self._start_stage(running)
        if running is not None:
            self._show(running, view, message)

    def _start_stage(self, stage: Stage) -> None:
        if self._plain:
            self._console.print(f"{stage}: started", highlight=False)
            self._last_line = time.monotonic()
        else:
            self._bar = self._progress.add_task(stage.value, total=None, text="")

    def _end_stage(self, view: View) -> None:
        if self._stage is None:
            return
        row = next(row for row in view.rows if row.name is self._stage)
        text = f"{row.state.value.lower()}{' (already in the store)' if row.cached else ''}"
        if self._plain:
            seconds = f" in {row.seconds:.1f} s" if row.seconds is not None else ""
            self._console.print(f"{self._stage}: {text}{seconds}", highlight=False)
        elif self._bar is not None:
            self._progress.update(self._bar, total=1, completed=1, text=text)
            self._progress.stop_task(self._bar)

    def _show(self, stage: Stage, view: View, message: str) -> None:
        if view.reason == Reason.ATTEMPT_FAILED and view.message != self._retry_text:
            self._retry_text = view.message
            self._console.print(view.message, style="yellow", highlight=False)
        text = _progress_text(view) or message or view.message.removeprefix(f"{stage}: ")
        if self._plain:
            due = time.monotonic() - self._last_line >= _PLAIN_INTERVAL_SECONDS
            if due and text != self._last_text:
                self._console.print(f"{stage}: {text}", highlight=False)
                self._last_line, self._last_text = time.monotonic(), text
        elif self._bar is not None:
            progress = view.progress
            total, done = (progress.total_steps, progress.step) if progress else (None, 0)
            self._progress.update(self._bar, total=total, completed=done, text=text)


def _progress_text(view: View) -> str:
    progress = view.progress
    if progress is None:
        return ""
    parts = [f"{progress.step}/{progress.total_steps} {progress.unit}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.eta_seconds is not None:
        parts.append(f"{progress.eta_seconds:.0f} s left")
    return ", ".join(parts)


def show_outcome(console: Console, status: LoraFineTuneStatus, ran: frozenset[Stage]) -> None:
    """Print the tables at the end of a run.

    Args:
        console: where to print.
        status: the object's status.
        ran: stages that this run executed; the others were already done.
    """
    status = _of_this_run(status)
    console.print(_stage_table(status, ran))
    if status.scores is not None:
        if (table := _score_table(status)).row_count:
            console.print(table)
        console.print(_score_sentence(status), highlight=False)
    if status.candidates:
        console.print(candidate_table(status.candidates))
    if status.edge is not None:
        console.print(_speed_table(status.edge))
    if status.gpu is not None:
        console.print(_gpu_table(status.gpu))
    for warning in status.warnings:
        console.print(f"Warning: {warning}", style="yellow", highlight=False)
    _show_answers(console, status)


def _of_this_run(status: LoraFineTuneStatus) -> LoraFineTuneStatus:
    """The status without what an earlier run left of the stages after one that failed or was stopped.

    A pinned version is published whatever the stages before it say.
    """
    names = [row.name for row in status.stages]
    done = (StageState.SUCCEEDED, StageState.SKIPPED)
    first = next((index for index, row in enumerate(status.stages) if row.state not in done), len(names))
    unreached = set(names[first + 1 :])
    if not unreached or (status.publication is not None and status.publication.pinned):
        return status
    has_old_scores = Stage.EVALUATE in unreached and status.scores is not None
    reached = {warning for row in status.stages if row.name not in unreached for warning in row.warnings}
    pending = {"state": StageState.PENDING}
    changes: dict[str, Any] = {
        "stages": tuple(
            row.model_copy(update=pending) if row.name in unreached and row.state is StageState.SUCCEEDED else row
            for row in status.stages
        ),
        "artifacts": tuple(each for each in status.artifacts if each.stage not in unreached),
        "warnings": tuple(each for each in status.warnings if each in reached or not has_old_scores),
    }
    if Stage.EVALUATE in unreached:
        changes |= {"scores": None, "edge": None, "candidates": ()}
    return status.model_copy(update=changes)


def show_record(console: Console, status: LoraFineTuneStatus) -> None:
    """Print what a status has besides the outcome: conditions, addresses of artifacts, earlier runs."""
    table = _table("\nConditions", "type")
    for title in ("status", "reason", "message"):
        table.add_column(title)
    for condition in status.conditions:
        table.add_row(condition.type, condition.status, condition.reason, condition.message)
    console.print(table)
    for artifact in status.artifacts:
        console.print(f"{artifact.name}: {artifact.uri}", highlight=False)
    if status.history:
        console.print(_history_table(status))


def _history_table(status: LoraFineTuneStatus) -> Table:
    table = _table("\nHistory", "finished", "outcome", "version", "edge", "edge size", "GPU time", "cost")
    for column in table.columns:
        column.justify, column.no_wrap = "left", True
    for entry in status.history:
        table.add_row(
            entry.finished_at or "",
            entry.outcome,
            entry.version[:SHORT_VERSION],
            format_share(entry.scores.edge if entry.scores else None),
            format_bytes(entry.sizes.edge_bytes if entry.sizes else None),
            format_hours(entry.gpu.seconds) if entry.gpu else "",
            format_cost(entry.gpu.cost) if entry.gpu else "",
        )
    return table


def _table(title: str, first: str, *figures: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(first)
    for name in figures:
        table.add_column(name, justify="right")
    return table


def _stage_table(status: LoraFineTuneStatus, ran: frozenset[Stage]) -> Table:
    table = _table("\nStages", "stage", "output", "size", "seconds")
    table.columns[1].justify = "left"
    table.add_column("what happened")
    for row in status.stages:
        outputs = _outputs(row.name, status)
        table.add_row(
            row.name.value,
            outputs[0].name if outputs else "",
            format_bytes(outputs[0].bytes) if outputs else "",
            f"{row.seconds:.1f}" if row.seconds is not None and row.name in ran else "",
            _what_happened(row, status, ran),
        )
        for further in outputs[1:]:
            table.add_row("", further.name, format_bytes(further.bytes))
    return table


def _outputs(stage: Stage, status: LoraFineTuneStatus) -> list[ArtifactStatus]:
    """Artifacts of a stage: one, or an edge model in each format."""
    return [artifact for artifact in status.artifacts if artifact.stage is stage]


def _chosen_step(metrics: Mapping[str, float]) -> str:
    """The step whose adapter it is, and where training stopped early; empty without evaluations."""
    if "bestStep" not in metrics:
        return ""
    planned = metrics.get("plannedSteps", metrics["steps"])
    stopped = f" of {planned:.0f}, stopped early" if metrics["steps"] < planned else ""
    return f"{stopped}, best at step {metrics['bestStep']:.0f}"


def _what_happened(row: StageStatus, status: LoraFineTuneStatus, ran: frozenset[Stage]) -> str:
    if row.state is StageState.FAILED:
        return f"failed: {row.reason}"
    if row.state is not StageState.SUCCEEDED:
        speed = status.progress.tokens_per_second if status.progress and status.progress.stage is row.name else None
        return f"{row.state.value.lower()}{_processes(row, speed)}"
    if row.cached or row.name not in ran:
        return "checked, nothing changed" if row.name is Stage.PREPARE and row.name in ran else "already done"
    metrics = row.metrics
    if row.name is Stage.PREPARE and "trainExamples" in metrics:
        # A conversation can be several examples. Older releases did not count rows.
        rows = metrics.get("trainRows", metrics["trainExamples"])
        return f"{rows:,.0f} training rows, {metrics.get('evalExamples', 0):,.0f} evaluation rows"
    if row.name is Stage.TRAIN and "steps" in metrics:
        trainable, total = metrics.get("trainableParameters"), metrics.get("totalParameters")
        share = f", {trainable / total:.2%} of the parameters" if trainable and total else ""
        loss = metrics.get("loss", float("nan"))
        together = _processes(row, metrics.get("tokensPerSecond"))
        return f"{metrics['steps']:.0f} steps{_chosen_step(metrics)}, loss {loss:.3f}{share}{together}"
    if row.name is Stage.QUANTIZE and status.resolved is not None and status.resolved.formats is not None:
        return f"{len(status.resolved.formats)} candidates written"
    if row.name is Stage.QUANTIZE and "quantizedShare" in metrics:
        return f"{metrics['quantizedShare']:.0%} of the weights quantized"
    if row.name is Stage.EVALUATE and status.scores is not None:
        return f"{status.scores.examples} rows per model"
    if row.name is Stage.PUBLISH and status.publication is not None:
        return "published" if status.publication.published else "refused by the gates"
    return "done"


def _processes(row: StageStatus, tokens_per_second: float | None) -> str:
    """The processes of a training, with their speed and efficiency as far as known; empty for one process."""
    together = row.parallelism
    if together is None:
        return ""
    efficiency = together.efficiency
    of_one = f" (each process at {efficiency:.0%} of one that trains alone)" if efficiency is not None else ""
    speed = f", {tokens_per_second:,.0f} tokens/s{of_one}" if tokens_per_second else ""
    return f", {together.processes} processes{together.where}{speed}"


def _score_table(status: LoraFineTuneStatus) -> Table:
    scores = status.scores
    if scores is None or not scores.details:
        return _short_score_table(status)
    table = _table("\nScores", "model", "size", "keyword recall", "exact match", "loss")
    for model in (*SCORED_MODELS, *_further_sizes(status)):
        details = scores.details.get(model)
        if details is None:
            continue
        table.add_row(
            model,
            format_bytes(_size_of(model, status)),
            format_share(details.keyword_recall) or "-",
            format_share(details.exact_match) or "-",
            f"{details.loss:.3f}" if details.loss is not None else "-",
        )
    return table


def _short_score_table(status: LoraFineTuneStatus) -> Table:
    """Of an evaluation that was found in the store, the status may have too little space for more than each score."""
    table = _table("\nScores", "model", "size", "score")
    for model in SCORED_MODELS:
        if (score := getattr(status.scores, model, None)) is not None:
            table.add_row(model, format_bytes(_size_of(model, status)), format_share(score))
    return table


def _further_sizes(status: LoraFineTuneStatus) -> Mapping[str, int]:
    """Bytes of the outputs of quantize by their names, which further edge formats have as models too."""
    return {artifact.name: artifact.bytes for artifact in _outputs(Stage.QUANTIZE, status)}


def _size_of(model: str, status: LoraFineTuneStatus) -> int | None:
    size = _further_sizes(status).get(model)
    if size is None and status.sizes is not None:
        size = getattr(status.sizes, f"{ADAPTER if model == TUNED else model}_bytes")
    return size


def _score_sentence(status: LoraFineTuneStatus) -> str:
    scores, sizes = status.scores, status.sizes
    parts = []
    if scores and scores.improvement is not None:
        gained = format_points(scores.improvement)
        parts.append(f"Training gained {f'nothing ({gained})' if scores.gained_nothing else gained}")
    elif scores and scores.gained_nothing:
        parts.append("Training gained nothing: the loss did not fall")
    if scores and scores.drop is not None:
        parts.append(f"merging and quantization cost {format_points(scores.drop)}")
    if sizes and sizes.ratio is not None:
        parts.append(f"the edge model has {sizes.ratio:.0%} of the base's size")
    return "; ".join(parts) + "." if parts else ""


def _speed_table(edge: EdgeMeasurement) -> Table:
    title = f"\nTokens per second on {edge.threads} threads of {edge.cpu}, {edge.prompt_tokens}-token prompt"
    table = _table(title, "model", "prompt", "generation", "first token", "peak memory", "libraries")
    for model, speed in edge.by_model.items():
        first = speed.time_to_first_token_seconds
        table.add_row(
            model,
            _format_speed(speed.prompt_tokens_per_second),
            _format_speed(speed.generation_tokens_per_second),
            f"{1000 * first:,.0f} ms" if first is not None else "-",
            format_bytes(speed.peak_memory_bytes),
            format_bytes(speed.baseline_memory_bytes) or "-",
        )
    return table


def _gpu_table(gpu: GpuStatus) -> Table:
    figures = ("GPU time", "failed", "repeated", "loading", "lost peers", "estimated", "waiting", "cost")
    table = _table("\nGPU time", "of", *figures)
    rows = {"this run": gpu.run, "all runs": gpu.total}
    rows |= {f"{row.stage}, profile {row.profile or 'others'}": row for row in gpu.stages}
    for title, use in rows.items():
        parts = (
            use.seconds,
            use.failed_seconds,
            use.repeated_seconds,
            use.loading_seconds,
            use.lost_peer_seconds,
            use.estimated_seconds,
            use.waiting_seconds,
        )
        table.add_row(title, *(format_hours(part) for part in parts), format_cost(use.cost) or "-")
    return table


def _format_speed(tokens_per_second: float | None) -> str:
    return f"{tokens_per_second:,.1f}" if tokens_per_second is not None else "-"


def _show_answers(console: Console, status: LoraFineTuneStatus) -> None:
    """Print one held-out question and the answers of base and edge, if the evaluation is on this machine."""
    artifact = next((a for a in status.artifacts if a.name == EVALUATION and a.uri.startswith("file://")), None)
    answers = _read_answers(local_path(artifact.uri) / "answers.jsonl") if artifact else None
    if answers is None:
        return
    console.print("\nA held-out question and its answers", style="bold")
    console.print(f"  prompt  {_one_line(answers['prompt'])}", highlight=False)
    for model in (BASE, EDGE):
        # The base's scores are cached across runs: only the run that computed them has its answers.
        if answers.get(model):
            console.print(f"  {model:6}  {_one_line(answers[model])}", highlight=False)


def _read_answers(path: Path) -> dict[str, Any] | None:
    try:
        with path.open(encoding="utf-8") as lines:
            first = json.loads(next(lines))
    except (OSError, StopIteration, json.JSONDecodeError):
        return None
    return first if isinstance(first, dict) and "prompt" in first else None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def local_path(uri: str) -> Path:
    """Path of a file:// URI."""
    return Path(unquote(urlparse(uri).path))

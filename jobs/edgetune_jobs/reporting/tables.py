"""Tables of the report, as text cells; the page escapes them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from edgetune_contract.evaluation import EvaluationSpec
from edgetune_contract.stages import Stage
from edgetune_contract.values.units import format_bytes, format_cost, format_duration, format_share
from edgetune_contract.version import StageOrigin, VersionDocument
from edgetune_jobs.evaluation.gates import Figures, FurtherEdge, check_gates
from edgetune_jobs.reporting.model_figures import ModelFigures, models_of
from edgetune_jobs.reporting.run_record import DataReport, GpuTime, PreparedRows, RunRecord, StageUse, origins_of

_NOTHING = "-"


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: bool = True
    """Whether all columns but the first have figures, which are aligned to the right."""


def evaluation_of(document: VersionDocument) -> EvaluationSpec:
    """How the version was evaluated.

    Raises:
        ValueError: the parameters of the document are not those of this release.
    """
    try:
        return EvaluationSpec.model_validate(document.provenance.parameters.get("evaluation", {}))
    except ValidationError as error:
        raise ValueError("the spec of this version has fields of another release") from error


def gate_table(document: VersionDocument) -> Table | None:
    """The gates of the spec with measured values and limits; None if the spec sets none.

    Raises:
        ValueError: the parameters of the document are not those of this release.
    """
    checks = check_gates(evaluation_of(document), figures_of(document))
    rows = [
        (
            check.gate,
            check.model.removeprefix("the "),
            check.measured,
            check.limit,
            "failed" if check.refusal else "passed",
        )
        for check in checks
    ]
    head = ("gate", "model", "measured", "limit", "result")
    return Table("Each gate with the measured value and its limit", head, rows, figures=False) if rows else None


def figures_of(document: VersionDocument) -> Figures:
    """The figures that the gates were checked against."""
    from edgetune_contract.spec import EdgeFormat

    formats = {edge_format.artifact: edge_format for edge_format in EdgeFormat}
    details = document.scores.details
    further = [
        FurtherEdge(formats[name], details[name].score if name in details else None, edge.artifact.bytes)
        for edge in document.further_edges
        if (name := edge.artifact.name) in formats
    ]
    return Figures(document.scores, document.edge.artifact.bytes, document.measurement, tuple(further))


def score_table(document: VersionDocument) -> Table:
    """Scores of all models."""
    rows = []
    for model in models_of(document):
        if model.scores is None:
            continue
        scores = model.scores
        loss = _NOTHING if scores.loss is None else f"{scores.loss:.3f}"
        shares = (format_share(share) or _NOTHING for share in (scores.keyword_recall, scores.exact_match))
        rows.append((model.name, *shares, loss, scores.runtime or _NOTHING))
    head = ("model", "keyword recall", "exact match", "loss", "scored in")
    return Table(f"Scores on the same {document.scores.examples:,} held-out rows", head, rows)


def cost_table(document: VersionDocument) -> Table:
    """Size, speed and memory of all models."""
    rows = [_cost_row(model) for model in models_of(document)]
    head = ("model", "size", "generation", "prompt", "first token", "peak memory", "of it libraries")
    measured = document.measurement
    if measured is None:
        return Table(
            "Size of each model; spec.evaluation.edge was not set, so speed and memory were not measured",
            head[:2],
            [row[:2] for row in rows],
        )
    place = f"{measured.threads} threads of {measured.cpu}, {measured.prompt_tokens}-token prompt"
    return Table(f"Size, and speed and memory on {place}", head, rows)


def candidate_table(document: VersionDocument) -> Table | None:
    """The formats among which evaluate chose; None if the spec names its formats."""
    rows = [
        (
            each.format.value,
            "chosen" if each.chosen else "",
            format_bytes(each.bytes),
            format_share(each.score) or _NOTHING,
            _speed(each.tokens_per_second),
            format_bytes(each.peak_memory_bytes) or _NOTHING,
            "; ".join(filter(None, (", ".join(each.limits), each.note))) or _NOTHING,
        )
        for each in document.candidates or ()
    ]
    head = ("format", "choice", "size", "score", "generation", "peak memory", "limits not held, notes")
    return Table("Formats among which the edge model was chosen", head, rows, figures=False) if rows else None


def _cost_row(model: ModelFigures) -> tuple[str, ...]:
    size = format_bytes(model.bytes) or _NOTHING
    speed = model.speed
    if speed is None:
        return (model.name, size, *(_NOTHING,) * 5)
    first = speed.time_to_first_token_seconds
    return (
        model.name,
        size,
        _speed(speed.generation_tokens_per_second),
        _speed(speed.prompt_tokens_per_second),
        _NOTHING if first is None else f"{1000 * first:,.0f} ms",
        format_bytes(speed.peak_memory_bytes),
        format_bytes(speed.baseline_memory_bytes) or _NOTHING,
    )


def _speed(tokens_per_second: float | None) -> str:
    return _NOTHING if tokens_per_second is None else f"{tokens_per_second:,.1f} tokens/s"


def row_table(data: DataReport) -> Table:
    """The examples of training and evaluation in figures; a conversation can be several."""
    kinds = (("training", data.train), ("evaluation", data.eval))
    head = ("examples", "number", "tokens", "median", "90%", "99%", "longest", "truncated")
    return Table("Examples, and their lengths in tokens before truncation", head, [_row_row(*kind) for kind in kinds])


def _row_row(kind: str, rows: PreparedRows) -> tuple[str, ...]:
    lengths = (f"{rows.lengths[name]:,}" if name in rows.lengths else _NOTHING for name in ("p50", "p90", "p99", "max"))
    return (kind, f"{rows.examples:,}", f"{rows.tokens:,}", *lengths, f"{rows.truncated:,}")


def training_facts(run: RunRecord) -> Sequence[tuple[str, str]]:
    """What train chose and measured, with its name."""
    metrics, facts = run.metrics(Stage.TRAIN), run.facts(Stage.TRAIN)
    shown = {
        "steps": ("steps", "{:,.0f}"),
        "best step": ("bestStep", "{:,.0f}"),
        "epochs": ("epochs", "{:.2f}"),
        "speed": ("tokensPerSecond", "{:,.1f} tokens/s"),
        "trained parameters": ("trainableParameters", "{:,.0f}"),
        "share of all parameters": ("trainableShare", "{:.2%}"),
        "weights held in NF4": ("quantizedShare", "{:.1%}"),
    }
    rows = [(title, form.format(metrics[name])) for title, (name, form) in shown.items() if name in metrics]
    if "peakMemoryBytes" in metrics:
        rows.append(("peak memory", format_bytes(int(metrics["peakMemoryBytes"]))))
    rows += [(_words(name), text) for name, text in facts.items()]
    return rows


def _words(name: str) -> str:
    """A camelCase name in words."""
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name)


def stage_table(run: RunRecord) -> Table:
    """Time of each stage; with a status also its attempts, and the GPU time of all of them."""
    used = {use.stage: use for use in run.usage.stages} if run.usage else {}
    head = ["stage", "duration", "device", "peak memory", "done"]
    head += ["attempts", "interrupted", "repeated steps", "GPU time"] if used else ["GPU time"]
    rows = []
    for stage, origin in run.origins.items():
        manifest = run.manifests.get(stage)
        memory = origin.metrics.get("usedMemoryBytes")
        row = [
            stage.value,
            format_duration(manifest.result.seconds) if manifest else _NOTHING,
            origin.facts.get("device", _NOTHING),
            _NOTHING if memory is None else format_bytes(int(memory)),
            origin.created_at,
        ]
        rows.append(row + (_use_cells(used.get(stage)) if used else [_gpu_cell(run, stage)]))
    return Table("Stages of the run: each row is about the attempt that made the output", head, rows)


def _gpu_cell(run: RunRecord, stage: Stage) -> str:
    """GPU time of the attempt that made a stage's output: its duration times its GPUs."""
    device, manifest = run.facts(stage).get("device", ""), run.manifests.get(stage)
    if not device or device.startswith("CPU") or manifest is None:
        return _NOTHING
    return format_duration(manifest.result.seconds * run.metrics(stage).get("worldSize", 1))


def _use_cells(use: StageUse | None) -> list[str]:
    if use is None:
        return [_NOTHING] * 4
    lost = _NOTHING if use.lost_steps is None else f"{use.lost_steps:,}"
    gpu = _NOTHING if use.gpu_seconds is None else format_duration(use.gpu_seconds)
    return [f"{use.attempts:,}", f"{use.preemptions:,}", lost, gpu]


def gpu_table(run: RunRecord) -> Table | None:
    """GPU time and what it was used for; None if it is not known, or there was none."""
    usage = run.usage
    if usage is None or usage.total is None or usage.run is None:
        return None
    head = ("of", "GPU time", "useful", "loading", "repeated steps", "failed", "waiting", "cost")
    rows = [_gpu_row("this run", usage.run), _gpu_row("all runs of the object", usage.total)]
    caption = "GPU time; waiting is not part of it: Pods that held GPUs before their container started"
    return Table(caption, head, rows)


def _gpu_row(name: str, gpu: GpuTime) -> tuple[str, ...]:
    parts = (gpu.seconds, gpu.useful, gpu.loading, gpu.repeated, gpu.failed, gpu.waiting)
    return (name, *map(format_duration, parts), format_cost(gpu.cost) or _NOTHING)


def input_table(document: VersionDocument) -> Table:
    """Base and data with the digests of their content."""
    parameters, resolved = document.provenance.parameters, document.provenance.resolved
    dataset = _section(parameters, "dataset")
    rows = [
        ("base model", *_source(_section(parameters, "baseModel")), resolved.base),
        ("training data", *_source(_section(dataset, "train")), resolved.train),
    ]
    if resolved.eval is not None:
        rows.append(("evaluation data", *_source(_section(dataset, "eval")), resolved.eval))
    else:
        share = dataset.get("evalSplitPercent", "?")
        rows.append(("evaluation data", f"{share}% of the training data, selected by the seed", "", ""))
    return Table("Inputs", ("input", "address", "revision", "SHA-256 of the content"), rows, figures=False)


def _source(source: Mapping[str, Any]) -> tuple[str, str]:
    return str(source.get("uri", "?")), str(source.get("revision") or _NOTHING)


def parameter_table(document: VersionDocument) -> Table:
    """Every parameter of the spec."""
    rows = list(flattened(document.provenance.parameters))
    return Table("Parameters of the spec, with defaults", ("parameter", "value"), rows, figures=False)


def origin_table(document: VersionDocument) -> Table:
    """The stages with their digests and images."""
    rows = [
        (stage.value, origin.digest, origin.image or "none: it ran outside a container")
        for stage, origin in origins_of(document).items()
    ]
    return Table("Stages", ("stage", "digest", "image"), rows, figures=False)


def library_table(document: VersionDocument) -> Table | None:
    """Versions of the libraries by stage, in one column where all stages have the same."""
    origins = {stage: origin for stage, origin in origins_of(document).items() if origin.libraries}
    if not origins:
        return None
    names = sorted({name for origin in origins.values() for name in origin.libraries})
    if len({tuple(sorted(origin.libraries.items())) for origin in origins.values()}) == 1:
        (first, *_) = origins.values()
        rows: list[tuple[str, ...]] = [(name, first.libraries[name]) for name in names]
        return Table("Libraries of all stages", ("library", "version"), rows, figures=False)
    rows = [(name, *(_version(origin, name) for origin in origins.values())) for name in names]
    return Table("Libraries by stage", ("library", *(stage.value for stage in origins)), rows, figures=False)


def _version(origin: StageOrigin, name: str) -> str:
    return origin.libraries.get(name, _NOTHING)


def flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of nested parameters, in their order."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flattened(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, default=str)


def _section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = values.get(name)
    return section if isinstance(section, Mapping) else {}

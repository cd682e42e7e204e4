"""The sections of the report: which charts, tables and sentences are in each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from edgetune_contract.pipeline import BASE, EDGE
from edgetune_contract.request import Scores
from edgetune_contract.stages import Stage
from edgetune_contract.values.units import format_bytes, format_duration, format_points, format_share
from edgetune_contract.version import VersionDocument
from edgetune_jobs.reporting import tables
from edgetune_jobs.reporting.answers import AnswerCard, answer_cards
from edgetune_jobs.reporting.comparison import compared_rows, comparison_tables
from edgetune_jobs.reporting.drawing import Chart
from edgetune_jobs.reporting.model_charts import cost_charts, score_charts, score_name, time_charts
from edgetune_jobs.reporting.model_figures import models_of
from edgetune_jobs.reporting.run_record import RunRecord
from edgetune_jobs.reporting.tables import Table
from edgetune_jobs.reporting.training_charts import data_charts, training_charts


@dataclass(frozen=True)
class Tile:
    """One figure at the top of the report."""

    title: str
    figure: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """One section of the report. A section without content is left out."""

    id: str
    name: str
    """Short, for the list of sections."""

    title: str = ""
    """Default: the name."""

    sentences: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    facts: Sequence[tuple[str, str]] = ()
    """Values with their names."""

    tables: Sequence[Table] = ()
    answers: Sequence[AnswerCard] = ()
    folded: Sequence[Table] = field(default=())
    """Long tables that are shown on demand."""

    is_beside: bool = False
    """Whether the table is narrow enough to be beside the chart."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.sentences or self.charts or self.facts or self.tables or self.answers or self.folded)


def tiles(run: RunRecord) -> Iterator[Tile]:
    """The main figures."""
    document = run.document
    models = {model.name: model for model in models_of(document)}
    edge, base = models[EDGE], models.get(BASE)
    if edge.score is not None:
        note = f"{score_name(run)}; base {format_share(base.score)}" if base and base.score is not None else ""
        yield Tile("Score of the edge model", format_share(edge.score), note)
    share = f"{edge.bytes / base.bytes:.0%} of the base model" if base and base.bytes and edge.bytes else ""
    yield Tile("Size of the edge model", format_bytes(edge.bytes), share)
    if edge.speed is not None and edge.speed.generation_tokens_per_second is not None:
        speed = edge.speed.generation_tokens_per_second
        place = f"on {document.measurement.threads} threads" if document.measurement else ""
        yield Tile("Generation", f"{speed:,.1f} tokens/s", place)
    if edge.speed is not None:
        yield Tile("Peak memory", format_bytes(edge.speed.peak_memory_bytes), "with the libraries")
    metrics = run.metrics(Stage.TRAIN)
    if "trainSeconds" in metrics:
        yield Tile("Training", format_duration(metrics["trainSeconds"]), f"{metrics.get('steps', 0):,.0f} steps")


def sections(run: RunRecord, other: RunRecord | None) -> Iterator[Section]:
    """All sections that have content, in their order."""
    made = (
        _comparison(run, other),
        _gates(run),
        _scores(run, other),
        _answers(run, other),
        _training(run, other),
        _data(run),
        _costs(run, other),
        _time(run),
        _provenance(run.document),
        Section("gaps", "Gaps", "What this report lacks", sentences=run.gaps),
    )
    yield from (section for section in made if not section.is_empty)


def _comparison(run: RunRecord, other: RunRecord | None) -> Section:
    if other is None:
        return Section("comparison", "Comparison")
    return Section(
        "comparison",
        "Comparison",
        f"Compared with version {other.short_version}",
        sentences=(compared_rows(run, other),),
        tables=tuple(comparison_tables(run, other)),
    )


def _gates(run: RunRecord) -> Section:
    try:
        table = tables.gate_table(run.document)
    except ValueError as error:
        return Section("gates", "Gates", sentences=(f"The gates cannot be shown: {error}.", *run.document.refusals))
    if table is None:
        return Section("gates", "Gates", sentences=("The spec sets no gates: any model of this run is published.",))
    # That a size or a speed is limited says nothing about what was learned.
    sentences = run.document.refusals
    if not tables.evaluation_of(run.document).gates.has_one_on_the_score:
        sentences = ("No gate is set on the score: a model of this run is published whatever it scores.", *sentences)
    return Section("gates", "Gates", sentences=sentences, tables=(table,))


def _scores(run: RunRecord, other: RunRecord | None) -> Section:
    document = run.document
    return Section(
        "scores",
        "Scores",
        sentences=tuple(_score_sentences(document.scores)),
        charts=tuple(score_charts(run, other)),
        tables=(tables.score_table(document),),
        is_beside=True,
    )


def _score_sentences(scores: Scores) -> Iterator[str]:
    parts = []
    if scores.improvement is not None:
        parts.append(f"Training gained {format_points(scores.improvement)}")
    if scores.drop is not None:
        parts.append(f"merging and quantization cost {format_points(scores.drop)}")
    if parts:
        yield f"{'; '.join(parts)}."
    if scores.gained_nothing:
        yield "Training gained nothing: on these rows, the tuned model is not better than the base model."


def _answers(run: RunRecord, other: RunRecord | None) -> Section:
    cards = answer_cards(run, other)
    if not cards:
        return Section("answers", "Answers")
    shown = f"{len(cards)} of {run.document.scores.examples:,} held-out rows"
    order = "as they come"
    if any(row.scores for row in run.answers):
        order = (
            "first those on which the edge model lost most against another model, then those on which it scores lowest"
        )
    sentence = f"{shown}, {order}. Models with equal answers share a box."
    return Section("answers", "Answers", "Answers side by side", sentences=(sentence,), answers=cards)


def _training(run: RunRecord, other: RunRecord | None) -> Section:
    charts = tuple(training_charts(run, other))
    return Section("training", "Training", charts=charts, facts=tables.training_facts(run))


def _data(run: RunRecord) -> Section:
    if run.data is None:
        return Section("data", "Data")
    charts, table = tuple(data_charts(run.data)), tables.row_table(run.data)
    return Section("data", "Data", charts=charts, tables=(table,), is_beside=True)


def _costs(run: RunRecord, other: RunRecord | None) -> Section:
    return Section(
        "costs",
        "Size and speed",
        "Size, speed and memory",
        charts=tuple(cost_charts(run, other)),
        tables=tuple(
            table for table in (tables.cost_table(run.document), tables.candidate_table(run.document)) if table
        ),
    )


def _time(run: RunRecord) -> Section:
    gpu = tables.gpu_table(run)
    sentences: tuple[str, ...] = ()
    if run.usage is None:
        document = run.document
        live = f"kubectl get lft {document.model} -n {document.namespace} -o yaml | edgetune report -f /dev/stdin"
        sentences = (
            "Attempts and wasted GPU time, which failed or interrupted attempts took, are in the status of the object, "
            f"without which this report was made. After `edgetune run`, `edgetune report -f` of the object shows them; "
            f"for an object of a cluster, `{live}`.",
        )
    return Section(
        "time",
        "Time",
        "Time and GPUs",
        sentences=sentences,
        charts=tuple(time_charts(run)),
        tables=tuple(table for table in (tables.stage_table(run), gpu) if table),
    )


def _provenance(document: VersionDocument) -> Section:
    libraries = tables.library_table(document)
    return Section(
        "provenance",
        "Provenance",
        sentences=(f"Version {document.version} of {document.model} in the namespace {document.namespace}.",),
        tables=(tables.input_table(document), tables.origin_table(document)),
        folded=tuple(table for table in (tables.parameter_table(document), libraries) if table),
    )

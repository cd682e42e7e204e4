"""Two versions compared: figures side by side, parameters that differ, and rows that got better or worse."""

from collections.abc import Callable, Iterator

from edgetune_contract.pipeline import EDGE
from edgetune_contract.stages import Stage
from edgetune_contract.values.units import format_bytes, format_duration, format_points, format_share
from edgetune_contract.version import VersionDocument
from edgetune_jobs.reporting.model_figures import models_of
from edgetune_jobs.reporting.run_record import RowAnswers, RunRecord
from edgetune_jobs.reporting.tables import Table, flattened
from edgetune_jobs.wording import count

_NOTHING = "-"
_SAME = 0.0005


def comparison_tables(run: RunRecord, other: RunRecord) -> Iterator[Table]:
    """Figures of both versions, then what differs in their parameters and inputs."""
    head = ("figure", "this version", f"version {other.short_version}", "difference")
    yield Table("Figures of both versions", head, list(_figures(run, other)))
    differing = list(_differing_parameters(run.document, other.document))
    if differing:
        yield Table("Parameters and inputs that differ", ("parameter", *head[1:3]), differing, figures=False)


def compared_rows(run: RunRecord, other: RunRecord) -> str:
    """How many of the rows that both versions kept answers to the edge model of this version does better or worse."""
    before = {_identity(row): row for row in other.answers if EDGE in row.scores}
    pairs = [(row, before[_identity(row)]) for row in run.answers if EDGE in row.scores and _identity(row) in before]
    if not pairs:
        return "The two versions kept no answers to the same rows with scores."
    better = sum(row.scores[EDGE] > old.scores[EDGE] + _SAME for row, old in pairs)
    worse = sum(row.scores[EDGE] < old.scores[EDGE] - _SAME for row, old in pairs)
    return (
        f"Both versions kept the answers to {count(len(pairs), 'common row')}: the edge model of this version scores "
        f"higher on {better:,} of them and lower on {worse:,}."
    )


def rows_before(run: RunRecord, other: RunRecord | None) -> dict[int, RowAnswers]:
    """The rows of the other version that are also rows of this one, by the number that they have here."""
    before = {_identity(row): row for row in other.answers if EDGE in row.answers} if other else {}
    return {row.row: before[_identity(row)] for row in run.answers if _identity(row) in before}


def _identity(row: RowAnswers) -> tuple[str, str]:
    return row.prompt, row.reference


def _figures(run: RunRecord, other: RunRecord) -> Iterator[tuple[str, ...]]:
    new, old = ({model.name: model for model in models_of(each.document)} for each in (run, other))
    for name, model in new.items():
        score_before = old[name].score if name in old else None
        yield from _line(f"score of {name}", model.score, score_before, format_share, format_points, is_gain=True)
    edge, before = new[EDGE], old[EDGE]
    yield from _line("loss of edge", edge.loss, before.loss, "{:.3f}".format, "{:+.3f}".format)
    yield from _line("size of edge", edge.bytes, before.bytes, _bytes, _byte_difference)
    speeds = edge.tokens_per_second, before.tokens_per_second
    title = "generation of edge, tokens/s"
    yield from _line(title, *speeds, "{:,.1f}".format, "{:+,.1f}".format, is_gain=True)
    memory = edge.peak_memory_bytes, before.peak_memory_bytes
    yield from _line("peak memory of edge", *memory, _bytes, _byte_difference)
    for title, stage in (("train", Stage.TRAIN), ("evaluate", Stage.EVALUATE)):
        seconds = _seconds(run, stage), _seconds(other, stage)
        yield from _line(f"duration of the stage {title}", *seconds, format_duration, _seconds_difference)


def _seconds(run: RunRecord, stage: Stage) -> float | None:
    return run.manifests[stage].result.seconds if stage in run.manifests else None


def _line(
    title: str,
    new: float | None,
    old: float | None,
    show: Callable[[float], str],
    show_difference: Callable[[float], str],
    *,
    is_gain: bool = False,
) -> Iterator[tuple[str, ...]]:
    """A row of the table; `is_gain` says that higher is better. Nothing if neither version has the figure."""
    if new is None and old is None:
        return
    cells = tuple(_NOTHING if value is None else show(value) for value in (new, old))
    if new is None or old is None or cells[0] == cells[1]:
        yield (title, *cells, _NOTHING if new is None or old is None else "the same")
        return
    verdict = "better" if (new > old) == is_gain else "worse"
    yield (title, *cells, f"{show_difference(new - old)}, {verdict}")


def _bytes(size: float) -> str:
    return format_bytes(int(size))


def _byte_difference(size: float) -> str:
    return f"{'+' if size > 0 else '-'}{format_bytes(abs(int(size)))}"


def _seconds_difference(seconds: float) -> str:
    return f"{'+' if seconds > 0 else '-'}{format_duration(abs(seconds))}"


def _differing_parameters(new: VersionDocument, old: VersionDocument) -> Iterator[tuple[str, str, str]]:
    for title in ("base", "train", "eval"):
        digests = (getattr(each.provenance.resolved, title) for each in (new, old))
        cells = tuple(_NOTHING if digest is None else digest[:12] for digest in digests)
        if cells[0] != cells[1]:
            yield f"content of {title}", cells[0], cells[1]
    mine, others = (dict(flattened(each.provenance.parameters)) for each in (new, old))
    for name in [*mine, *(name for name in others if name not in mine)]:
        cells = mine.get(name, _NOTHING), others.get(name, _NOTHING)
        if cells[0] != cells[1]:
            yield name, *cells

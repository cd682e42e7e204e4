"""The table of the candidates of formats Auto: what each takes and scores, and why it is or is not the edge model."""

from collections.abc import Sequence

from rich.table import Table

from edgetune_contract.results.candidates import Candidate
from edgetune_contract.values.units import format_bytes, format_share


def candidate_table(candidates: Sequence[Candidate]) -> Table:
    """The table, with one row for each candidate in the order in which they were measured."""
    table = Table(title="\nCandidates", title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("format")
    for figure in ("size", "score", "loss", "tokens/s", "peak memory"):
        table.add_column(figure, justify="right")
    table.add_column("outcome")
    for each in candidates:
        table.add_row(
            each.format.value,
            format_bytes(each.bytes),
            format_share(each.score) or "-",
            "-" if each.loss is None else f"{each.loss:.3f}",
            "-" if each.tokens_per_second is None else f"{each.tokens_per_second:,.1f}",
            format_bytes(each.peak_memory_bytes) or "-",
            outcome(each),
        )
    return table


def outcome(candidate: Candidate) -> str:
    """Why a candidate is the edge model, or is not."""
    if candidate.chosen:
        return "chosen"
    if candidate.limits:
        return f"beyond {', '.join(candidate.limits)}"
    return candidate.note or "holds all limits; another one is better"

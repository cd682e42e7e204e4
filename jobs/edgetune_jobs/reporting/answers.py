"""Answers side by side: which rows are shown, and which models gave the same answer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgetune_contract.pipeline import EDGE
from edgetune_jobs.evaluation.row_answers import worst_first
from edgetune_jobs.reporting.comparison import rows_before
from edgetune_jobs.reporting.run_record import RowAnswers, RunRecord

MOST_ROWS = 24
_LONGEST_TEXT = 2000


@dataclass(frozen=True)
class Answer:
    """One answer, and the models that gave it."""

    models: Sequence[str]
    text: str
    score: float | None
    """0 to 1; None if it is not known."""

    @property
    def verdict(self) -> str:
        """The score in a word: not by colour alone."""
        if self.score is None:
            return ""
        return {0.0: "wrong", 1.0: "right"}.get(self.score, f"{self.score:.0%}")


@dataclass(frozen=True)
class AnswerCard:
    """One evaluation row."""

    row: int
    """Counted from 1."""

    prompt: str
    reference: str
    answers: Sequence[Answer]


def answer_cards(run: RunRecord, other: RunRecord | None) -> Sequence[AnswerCard]:
    """The rows to show, the most interesting ones first; with the answers of the other version's edge model."""
    before, label = rows_before(run, other), f"edge of {other.short_version}" if other else ""
    return tuple(_card(row, before.get(row.row), label) for row in _ordered(run.answers)[:MOST_ROWS])


def _ordered(rows: Sequence[RowAnswers]) -> Sequence[RowAnswers]:
    names = set(rows[0].scores) if rows else set()
    names = names.intersection(*(row.scores for row in rows))
    if not names:
        return rows
    scores = {name: [row.scores[name] for row in rows] for name in sorted(names)}
    return [rows[number] for number in worst_first(scores)]


def _card(row: RowAnswers, before: RowAnswers | None, label: str) -> AnswerCard:
    answers, scores = row.answers, row.scores
    if before is not None:
        answers = answers | {label: before.answers[EDGE]}
        scores = scores | ({label: before.scores[EDGE]} if EDGE in before.scores else {})
    return AnswerCard(row.row + 1, _cut(row.prompt), _cut(row.reference), tuple(_grouped(answers, scores)))


def _grouped(answers: Mapping[str, str], scores: Mapping[str, float]) -> Iterator[Answer]:
    """Answers with the models that gave them: equal texts have equal scores."""
    models: dict[str, list[str]] = {}
    for name, text in answers.items():
        models.setdefault(text, []).append(name)
    for text, names in models.items():
        score = next((scores[name] for name in names if name in scores), None)
        yield Answer(names, _cut(text), score)


def _cut(text: str) -> str:
    text = text.strip()
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]}… ({len(text) - _LONGEST_TEXT:,} more characters)"

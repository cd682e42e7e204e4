"""Scores of answers: keyword recall, exact match, mean loss. Pure functions."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgetune_contract.evaluation import Match
from edgetune_contract.pipeline import SCORED_MODELS
from edgetune_contract.request import ModelScores, Scores
from edgetune_jobs.data.keywords import comparable, contains


@dataclass(frozen=True)
class ReferenceAnswer:
    """The expected response to a prompt, and keywords that an answer should contain."""

    response: str
    keywords: tuple[str, ...] = ()


def keyword_recall(
    answers: Sequence[str], references: Sequence[ReferenceAnswer], match: Match = Match.WORD
) -> float | None:
    """Share of expected keywords that the answers contain; None if no row has keywords."""
    found = total = 0
    for answer, reference in zip(answers, references, strict=True):
        text = comparable(answer)
        found += sum(contains(text, comparable(keyword), match) for keyword in reference.keywords)
        total += len(reference.keywords)
    return found / total if total else None


def exact_match(answers: Sequence[str], references: Sequence[ReferenceAnswer]) -> float | None:
    """Share of answers equal to the response, apart from surrounding white space and whether accents are composed;
    None if there are no rows."""
    pairs = list(zip(answers, references, strict=True))
    equal = sum(_composed(answer) == _composed(reference.response) for answer, reference in pairs)
    return equal / len(pairs) if pairs else None


def score_model(
    answers: Sequence[str] | None,
    references: Sequence[ReferenceAnswer],
    loss: float | None,
    match: Match = Match.WORD,
    runtime: str | None = None,
) -> ModelScores:
    """Scores of one model. `answers` is None for texts without prompts, which have only a loss."""
    if answers is None:
        return ModelScores(loss=loss, runtime=runtime)
    return ModelScores(
        keyword_recall=keyword_recall(answers, references, match),
        exact_match=exact_match(answers, references),
        loss=loss,
        runtime=runtime,
    )


def row_score(answer: str, reference: ReferenceAnswer, match: Match = Match.WORD) -> float:
    """Score of one answer, 0 to 1: the share of its row's expected keywords; without keywords, whether it is equal."""
    return score_model([answer], [reference], None, match).score or 0.0


def compare(details: Mapping[str, ModelScores], examples: int) -> Scores:
    """Scores of all models on the same rows.

    Args:
        details: scores by model: base, tuned, merged and edge as far as they were scored, and further edge models by
            artifact name.
        examples: number of rows.
    """
    scores = {name: details[name].score for name in SCORED_MODELS if name in details}
    return Scores(**scores, examples=examples, details=dict(details))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text).strip()

"""How answers are scored: keyword recall, exact match, mean loss. Values only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgetune_contract.pipeline import BASE, EDGE, MERGED, TUNED
from edgetune_contract.request import ModelScores, Scores


@dataclass(frozen=True)
class ReferenceAnswer:
    """What an answer is held against."""

    response: str
    keywords: tuple[str, ...] = ()


def keyword_recall(answers: Sequence[str], references: Sequence[ReferenceAnswer]) -> float | None:
    """Expected keywords found in their rows' answers over all expected keywords; None when no row has one.

    A keyword is found where the answer contains it, case-insensitive.
    """
    found = total = 0
    for answer, reference in zip(answers, references, strict=True):
        text = answer.casefold()
        found += sum(keyword.casefold() in text for keyword in reference.keywords)
        total += len(reference.keywords)
    return found / total if total else None


def exact_match(answers: Sequence[str], references: Sequence[ReferenceAnswer]) -> float | None:
    """Share of answers equal to the response, white space at both ends left out; None without rows."""
    pairs = list(zip(answers, references, strict=True))
    return (
        sum(answer.strip() == reference.response.strip() for answer, reference in pairs) / len(pairs) if pairs else None
    )


def score_model(
    answers: Sequence[str] | None, references: Sequence[ReferenceAnswer], loss: float | None
) -> ModelScores:
    """Scores of one model. `answers` is None for texts without prompts, of which only the loss says anything."""
    if answers is None:
        return ModelScores(loss=loss)
    return ModelScores(
        keyword_recall=keyword_recall(answers, references), exact_match=exact_match(answers, references), loss=loss
    )


def compare(details: Mapping[str, ModelScores], examples: int) -> Scores:
    """Scores of all models on the same rows.

    Args:
        details: scores by model: base, tuned, edge, merged if there is one, and further edge models by their artifacts.
        examples: number of rows.
    """
    return Scores(
        base=details[BASE].score,
        tuned=details[TUNED].score,
        merged=details[MERGED].score if MERGED in details else None,
        edge=details[EDGE].score,
        examples=examples,
        details=dict(details),
    )

"""How answers are scored: keyword accuracy, exact match, mean loss. Values only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgetune_contract.request import ModelScores, Scores


@dataclass(frozen=True)
class ReferenceAnswer:
    """What an answer is held against."""

    response: str
    keywords: tuple[str, ...] = ()


def keyword_accuracy(answers: Sequence[str], references: Sequence[ReferenceAnswer]) -> float | None:
    """Share of all rows' keywords that the row's answer holds, case-insensitive; None when no row names one."""
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
        keyword_accuracy=keyword_accuracy(answers, references), exact_match=exact_match(answers, references), loss=loss
    )


def headline(scores: ModelScores) -> float | None:
    """The one score of a model, 0 to 1: keyword accuracy, else exact match."""
    return scores.exact_match if scores.keyword_accuracy is None else scores.keyword_accuracy


def compare(details: Mapping[str, ModelScores], examples: int) -> Scores:
    """Scores of all models on the same rows, with what was gained (percentage points) and lost (0 to 1).

    Args:
        details: scores by model: base, tuned, edge, merged if there is one, and further edge models by their artifacts.
        examples: number of rows.
    """
    base_score, tuned_score, edge_score = (headline(details[name]) for name in ("base", "tuned", "edge"))
    return Scores(
        base=base_score,
        tuned=tuned_score,
        merged=headline(details["merged"]) if "merged" in details else None,
        edge=edge_score,
        improvement=None if base_score is None or tuned_score is None else 100 * (tuned_score - base_score),
        drop=None if tuned_score is None or edge_score is None else tuned_score - edge_score,
        examples=examples,
        details=dict(details),
    )

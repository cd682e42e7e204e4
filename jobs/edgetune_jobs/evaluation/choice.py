"""The rule by which `formats: Auto` chooses one of the candidates, on values.

The answer is the best-scoring candidate that holds all limits: of equal scores the one with the lower loss, of equal
losses the smaller one. Candidates are measured from the largest to the smallest, so that each is measured only if no
larger one is the answer.

The answer is known as soon as a candidate that holds all limits scores as high as the model that it was quantized from
(without one, as soon as it has the highest possible score). A smaller candidate may still score higher: quantization
changes some answers for the better and others for the worse, and which ones prevail on a few hundred rows is chance
(Dutta et al., "Accuracy is Not All You Need", 2024). It approximates the same weights with fewer bits, so a higher
score is no reason to prefer it, and looking for one until one is found would only find luck. Below the score of its
source, a candidate may have lost something that another format keeps: then all are measured.
"""

from edgetune_contract.request import ModelScores
from edgetune_contract.results.candidates import Candidate

_HIGHEST_SCORE = 1.0
# Scores are quotients of small integers: smaller differences are rounding errors.
_TOLERANCE = 1e-9


def better_of(best: Candidate | None, candidate: Candidate) -> Candidate:
    """The better one of two candidates that hold all limits."""
    return candidate if best is None or _rank(candidate) > _rank(best) else best


def is_known(best: Candidate | None, source: ModelScores | None) -> bool:
    """Whether no smaller candidate can be the answer.

    Args:
        best: the best candidate so far that holds all limits; None if there is none.
        source: scores of the model that the candidates were quantized from; None if it was not scored.
    """
    if best is None:
        return False
    if best.score is None:  # texts have a loss only
        return source is not None and source.loss is not None and best.loss is not None and best.loss <= source.loss
    highest = _HIGHEST_SCORE if source is None or source.score is None else source.score
    return best.score >= highest - _TOLERANCE


def _rank(candidate: Candidate) -> tuple[float, float, int]:
    score = 0.0 if candidate.score is None else candidate.score
    loss = float("inf") if candidate.loss is None else candidate.loss
    return round(score / _TOLERANCE), -loss, -candidate.bytes

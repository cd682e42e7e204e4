"""Warnings about what scores and gates do not say: no gate on the score, or no gain from training."""

from edgetune_contract.pipeline import BASE, TUNED
from edgetune_contract.request import Scores
from edgetune_contract.spec import RowFormat
from edgetune_operator.api.objects import LoraFineTuneSpec

_SCORE_GATES = ("minScore", "minImprovement", "maxDrop")
# Scores are quotients of small integers: smaller differences are rounding errors.
_TOLERANCE = 1e-9


def score_warnings(spec: LoraFineTuneSpec, scores: Scores | None) -> tuple[str, ...]:
    """Warnings for the status, the plan and a run.

    Args:
        spec: of the object.
        scores: of the run; None if evaluate has not finished.
    """
    warnings = (_no_gate(spec), _no_gain(scores) if scores is not None else "")
    return tuple(warning for warning in warnings if warning)


def _no_gate(spec: LoraFineTuneSpec) -> str:
    gates = spec.evaluation.gates
    if spec.publish.pin or any(gate is not None for gate in (gates.min_score, gates.min_improvement, gates.max_drop)):
        return ""
    if spec.dataset.format is RowFormat.TEXT:
        return "with spec.dataset.format: Text models have no score, so a model is published however little it learned"
    return (
        f"spec.evaluation.gates has no gate on the score ({', '.join(_SCORE_GATES)}), so a model is published whatever "
        "its score"
    )


def _no_gain(scores: Scores) -> str:
    base, tuned = (scores.details.get(name) for name in (BASE, TUNED))
    if scores.improvement is not None:
        if scores.improvement > _TOLERANCE:
            return ""
        return (
            f"training gained nothing: the tuned model scores {scores.tuned:.3f} and the base model {scores.base:.3f} "
            f"on the same {scores.examples:,} evaluation rows"
        )
    if base is None or tuned is None or base.loss is None or tuned.loss is None or tuned.loss < base.loss:
        return ""
    return (
        f"training gained nothing: the loss of the tuned model is {tuned.loss:.3f} and that of the base model "
        f"{base.loss:.3f} on the same {scores.examples:,} evaluation rows"
    )

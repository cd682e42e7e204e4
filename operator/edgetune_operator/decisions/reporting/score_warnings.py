"""Warnings about what scores and gates do not say: no gate on the score, or no gain from training."""

from edgetune_contract.pipeline import BASE, TUNED
from edgetune_contract.request import Scores
from edgetune_contract.spec import RowFormat
from edgetune_operator.api.spec import LoraFineTuneSpec

_SCORE_GATES = ("minScore", "minImprovement", "maxDrop")


def score_warnings(spec: LoraFineTuneSpec, scores: Scores | None) -> tuple[str, ...]:
    """Warnings for the status, the plan and a run.

    Args:
        spec: of the object.
        scores: of the run; None if evaluate has not finished.
    """
    warnings = (_no_gate(spec) if _has_no_gate(spec) else "", _no_gain(scores) if scores is not None else "")
    return tuple(warning for warning in warnings if warning)


def score_note(spec: LoraFineTuneSpec, scores: Scores | None) -> str:
    """The same warnings in a few words, for a column."""
    notes = ("no gate" if _has_no_gate(spec) else "", "gained nothing" if scores and scores.gained_nothing else "")
    return ", ".join(note for note in notes if note)


def _has_no_gate(spec: LoraFineTuneSpec) -> bool:
    return not spec.publish.pin and not spec.evaluation.gates.has_one_on_the_score


def _no_gate(spec: LoraFineTuneSpec) -> str:
    if spec.dataset.format is RowFormat.TEXT:
        return "with spec.dataset.format: Text models have no score, so a model is published however little it learned"
    return (
        f"spec.evaluation.gates has no gate on the score ({', '.join(_SCORE_GATES)}), so a model is published whatever "
        "its score"
    )


def _no_gain(scores: Scores) -> str:
    if not scores.gained_nothing:
        return ""
    if scores.improvement is not None:
        return (
            f"training gained nothing: the tuned model scores {scores.tuned:.3f} and the base model {scores.base:.3f} "
            f"on the same {scores.examples:,} evaluation rows"
        )
    base, tuned = scores.details[BASE], scores.details[TUNED]
    return (
        f"training gained nothing: the loss of the tuned model is {tuned.loss:.3f} and that of the base model "
        f"{base.loss:.3f} on the same {scores.examples:,} evaluation rows"
    )

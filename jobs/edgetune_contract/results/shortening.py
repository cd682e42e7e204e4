"""Shortened results and messages: a termination message has few bytes, and a manifest has everything."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from edgetune_contract.pipeline import SCORED_MODELS
from edgetune_contract.values.text import escaped

if TYPE_CHECKING:
    from edgetune_contract.request import Result, Scores

# Tables show no more: shares as percentages with one decimal, losses with three.
_DIGITS = 4


def shortened(result: "Result", kept_metrics: tuple[str, ...]) -> Iterator["Result"]:
    """The result, then shorter and shorter ones.

    Parts are left out in this order: facts and warnings of later stages; their figures; their scores by model, of which
    the score of each model stays; results of later stages, the last one first (each costs one short Job that finds its
    manifest); facts; warnings, the last one first (their number replaces them); the notes of candidates; runtimes and
    further digits of the scores by model; candidates; the speeds of further edge formats, and their scores.

    Args:
        result: the result of a stage.
        kept_metrics: names of the metrics of later stages that are kept as long as these are.
    """
    yield result
    brief = tuple(each.model_copy(update={"facts": {}, "warnings": ()}) for each in result.done)
    yield result.model_copy(update={"done": brief})
    brief = tuple(_without_figures(each, kept_metrics) for each in brief)
    yield result.model_copy(update={"done": brief})
    brief = tuple(_without_details(each) for each in brief)
    for kept in range(len(brief), -1, -1):
        yield result.model_copy(update={"done": brief[:kept]})
    shortest = result
    for kept in range(len(result.warnings), -1, -1):
        left_out = len(result.warnings) - kept
        more = "1 more warning is" if left_out == 1 else f"{left_out} more warnings are"
        note = (f"{more} in the manifest",) if left_out else ()
        shortest = result.model_copy(update={"done": (), "facts": {}, "warnings": (*result.warnings[:kept], *note)})
        yield shortest
    bare = tuple(each.model_copy(update={"note": ""}) for each in shortest.candidates)
    shortest = shortest.model_copy(update={"candidates": bare})
    yield shortest
    shortest = shortest.model_copy(update={"scores": _with_few_digits(shortest.scores)})
    yield shortest
    shortest = shortest.model_copy(update={"candidates": ()})
    yield shortest
    said = (*shortest.warnings, "the speeds of further edge formats are in the manifest")
    if shortest.edge is not None and shortest.edge.further:
        edge = shortest.edge.model_copy(update={"further": {}})
        shortest = shortest.model_copy(update={"edge": edge, "warnings": said})
        yield shortest
    said = (*shortest.warnings, "the scores of further edge formats are in the manifest")
    yield shortest.model_copy(update={"scores": _without_further_formats(shortest.scores), "warnings": said})


def _with_few_digits(scores: "Scores | None") -> "Scores | None":
    if scores is None:
        return None
    details = {
        name: each.model_copy(
            update={
                "keyword_recall": _rounded(each.keyword_recall),
                "exact_match": _rounded(each.exact_match),
                "loss": _rounded(each.loss),
                "runtime": None,
            }
        )
        for name, each in scores.details.items()
    }
    return scores.model_copy(update={"details": details})


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, _DIGITS)


def _without_further_formats(scores: "Scores | None") -> "Scores | None":
    if scores is None:
        return None
    details = {name: each for name, each in scores.details.items() if name in SCORED_MODELS}
    return scores.model_copy(update={"details": details})


def _without_figures(result: "Result", kept_metrics: tuple[str, ...]) -> "Result":
    metrics = {name: value for name, value in result.metrics.items() if name in kept_metrics}
    return result.model_copy(update={"metrics": metrics, "scores": _with_few_digits(result.scores)})


def _without_details(result: "Result") -> "Result":
    scores = result.scores.model_copy(update={"details": {}}) if result.scores is not None else None
    return result.model_copy(update={"scores": scores})


def without_repeated_folders(encoded: bytes) -> bytes:
    """The JSON of a result without the URIs of artifacts that `with_folders` finds again: all but the first one."""
    document = from_json(encoded)
    for result in (document, *document.get("done", ())):
        artifacts = result.get("artifacts", ())
        for each in artifacts[1:]:
            if each["uri"] == _beside(artifacts[0]["uri"], each["name"]):
                del each["uri"]
    return to_json(document)


def with_folders(artifacts: Any) -> Any:
    """Artifacts as JSON values, each with its URI: by default the folder beside the first one's, with its own name."""
    first = artifacts[0] if isinstance(artifacts, list) and artifacts else None
    if not isinstance(first, dict) or not isinstance(first.get("uri"), str):
        return artifacts
    return [
        {**each, "uri": _beside(first["uri"], each["name"])}
        if isinstance(each, dict) and "uri" not in each and isinstance(each.get("name"), str)
        else each
        for each in artifacts
    ]


def _beside(uri: str, name: str) -> str:
    return f"{uri.rpartition('/')[0]}/{name}"


def cut(message: str, most_bytes: int) -> str:
    """The message in valid UTF-8, with its middle left out if its JSON is longer than the limit."""
    # A file name that is not UTF-8 is decoded to lone surrogates, which JSON cannot encode.
    message = escaped(message.encode(errors="replace").decode())
    shorter, kept = message, min(len(message), most_bytes)
    while len(to_json(shorter)) > most_bytes:
        half = kept // 2
        shorter = f"{message[:half]} … {message[len(message) - half :]}"
        kept = kept * 9 // 10
    return shorter

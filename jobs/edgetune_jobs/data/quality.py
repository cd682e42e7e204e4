"""Data quality: warnings about few rows, repeated rows, evaluation rows that training saw, and keywords."""

from collections.abc import Sequence

from edgetune_jobs.data.data_set import DataSet
from edgetune_jobs.data.examples import Example, RowParser
from edgetune_jobs.messages import count

# How many examples people found to be enough, by what the model is to learn.
_SIZE_ADVICE = (
    (500, "style adaptation usually needs 500 to 1,000"),
    (2_000, "domain adaptation usually needs 2,000 to 10,000"),
    (10_000, "a new task usually needs 10,000 to 50,000"),
)


def size_advice(examples: int) -> list[str]:
    """A warning that names the nearest purpose for which so many training examples are usually too few."""
    found = count(examples, "training example")
    return [f"{found}: {advice}" for enough, advice in _SIZE_ADVICE if examples < enough][:1]


def repeated_rows(data_set: DataSet) -> list[str]:
    """A warning about rows that occur more than once."""
    first: dict[bytes, Example] = {}
    repeated = [
        example for example in data_set.examples if first.setdefault(example.identity(), example) is not example
    ]
    if not repeated:
        return []
    original = first[repeated[0].identity()].place
    return [
        f"{data_set.spec_field}: {count(len(repeated), 'row repeats', 'rows repeat')} an earlier one "
        f"(the first: {repeated[0].place} is {original} again)"
    ]


def leaked_rows(train: Sequence[Example], evaluation: Sequence[Example]) -> list[str]:
    """A warning about evaluation rows whose question is among the training rows: their scores say little."""
    known = {example.question() for example in train}
    leaked = [example for example in evaluation if example.question() in known]
    if not leaked:
        return []
    return [
        f"{len(leaked)} of {len(evaluation):,} evaluation rows also occur in the training data "
        f"(the first: {leaked[0].place}): scores on them show memory, not learning"
    ]


def keyword_coverage(data_set: DataSet, evaluation: Sequence[Example], parser: RowParser) -> list[str]:
    """Warnings about evaluation rows without keywords, or with keywords that their own response does not hold."""
    without = sum(not example.keywords for example in evaluation)
    if without == len(evaluation):
        meant = parser.lookalike_of_keyword(tuple(data_set.fields))
        if meant is None:
            return []
        return [
            "no evaluation row names expected keywords, so the score is exact match; "
            f"if {meant!r} holds them, set spec.dataset.fields.expectedKeyword: {meant!r}"
        ]
    warnings = []
    if without:
        warnings.append(f"{without:,} of {len(evaluation):,} evaluation rows name no expected keyword")
    unanswerable = [example for example in evaluation if not _answers_itself(example)]
    if unanswerable:
        warnings.append(
            f"{count(len(unanswerable), 'row expects', 'rows expect')} a keyword that the row's own response does "
            f"not hold (the first: {unanswerable[0].place})"
        )
    return warnings


def _answers_itself(example: Example) -> bool:
    response = example.response.lower()
    return all(keyword.lower() in response for keyword in example.keywords)

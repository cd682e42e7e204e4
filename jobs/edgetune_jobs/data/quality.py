"""Warnings about data quality: few rows, duplicates, leaked evaluation rows, expected keywords."""

from collections import Counter
from collections.abc import Mapping, Sequence

from edgetune_contract.evaluation import Match
from edgetune_contract.spec import CHAT_TEMPLATE, DEFAULT_TEMPLATE, DatasetSpec, RowFormat
from edgetune_jobs.data.data_set import DataSet
from edgetune_jobs.data.examples import Example, RowParser
from edgetune_jobs.data.keywords import comparable, contains
from edgetune_jobs.wording import count, some

# Below this number of examples, the advice applies.
_SIZE_ADVICE = (
    (500, "style adaptation usually needs 500 to 1,000"),
    (2_000, "domain adaptation usually needs 2,000 to 10,000"),
    (10_000, "a new task usually needs 10,000 to 50,000"),
)


def size_advice(examples: int) -> list[str]:
    """A warning with the least demanding purpose that usually needs more training examples."""
    found = count(examples, "training example")
    return [f"{found}: {advice}" for enough, advice in _SIZE_ADVICE if examples < enough][:1]


def duplicate_rows(data_set: DataSet) -> list[str]:
    """A warning about rows that duplicate an earlier row."""
    first: dict[bytes, Example] = {}
    duplicates = [
        example for example in data_set.examples if first.setdefault(example.identity(), example) is not example
    ]
    if not duplicates:
        return []
    original = first[duplicates[0].identity()].place
    return [
        f"{data_set.spec_field}: {count(len(duplicates), 'row duplicates', 'rows duplicate')} an earlier row "
        f"(first: {duplicates[0].place} duplicates {original})"
    ]


def leaked_rows(train: Sequence[Example], evaluation: Sequence[Example]) -> list[str]:
    """A warning about evaluation rows whose prompt is also in a training row."""
    known = {example.question() for example in train}
    leaked = [example for example in evaluation if example.question() in known]
    if not leaked:
        return []
    return [
        f"{len(leaked)} of {len(evaluation):,} evaluation rows also occur in the training data "
        f"(first: {leaked[0].place}); scores on them measure memorization, not generalization"
    ]


def keyword_coverage(data_set: DataSet, evaluation: Sequence[Example], parser: RowParser) -> list[str]:
    """Warnings about evaluation rows without keywords, or whose own response does not contain their keywords."""
    without = sum(not example.keywords for example in evaluation)
    if without == len(evaluation):
        meant = parser.probable_keyword_field(tuple(data_set.fields))
        if meant is None:
            return []
        return [
            "no evaluation row has expected keywords, so the score is the exact match; "
            f"if the field {meant!r} contains them, set spec.dataset.fields.expectedKeyword: {meant!r}"
        ]
    warnings = []
    if without:
        warnings.append(f"no expected keywords in {without:,} of {len(evaluation):,} evaluation rows")
    unanswerable = _rows_without_keywords(evaluation, Match.SUBSTRING)
    if unanswerable:
        warnings.append(
            f"{count(len(unanswerable), 'evaluation row expects', 'evaluation rows expect')} a keyword that the row's "
            f"own response does not contain (first: {unanswerable[0].place})"
        )
    missing = {id(example) for example in unanswerable}
    inside = [example for example in _rows_without_keywords(evaluation, Match.WORD) if id(example) not in missing]
    if inside:
        # It does not depend on spec.evaluation.match, which is not in prepare's digest.
        warnings.append(
            f"{count(len(inside), 'evaluation row expects', 'evaluation rows expect')} a keyword that the row's own "
            f"response contains only inside a longer word or number (first: {inside[0].place}); it counts only with "
            f"spec.evaluation.match: {Match.SUBSTRING}"
        )
    return warnings


def _rows_without_keywords(evaluation: Sequence[Example], match: Match) -> list[Example]:
    """Rows whose own response does not contain all their keywords."""
    return [
        example
        for example in evaluation
        if example.keywords
        and not all(
            contains(response, comparable(keyword), match)
            for response in (comparable(example.response),)
            for keyword in example.keywords
        )
    ]


def unused_columns(data_sets: Sequence[DataSet], parser: RowParser, dataset: DatasetSpec) -> list[str]:
    """Warnings with the columns that are not read, and about a template that is not used.

    Args:
        data_sets: training and evaluation data.
        parser: parser of their rows.
        dataset: format and template.
    """
    warnings = []
    if dataset.format is not RowFormat.INSTRUCTION and dataset.template not in (DEFAULT_TEMPLATE, CHAT_TEMPLATE):
        warnings.append(f"spec.dataset.template is not used by the format {dataset.format}")
    rows = sum((data_set.fields for data_set in data_sets), start=Counter[str]())
    unused = [f"{name[:64]!r} ({count(rows[name], 'row')})" for name in rows if name not in parser.wanted_fields]
    if unused:
        in_template = dataset.format is RowFormat.INSTRUCTION and dataset.template != CHAT_TEMPLATE
        hint = "; a column is part of the prompt if spec.dataset.template has its name in braces" if in_template else ""
        warnings.append(f"{count(len(unused), 'column is', 'columns are')} not used: {some(unused)}{hint}")
    return warnings


def unused_message_fields(fields: Mapping[str, int]) -> list[str]:
    """A warning with the fields of messages that the chat template does not use, and the number of their messages."""
    named = [f"{name[:64]!r} ({count(number, 'message')})" for name, number in fields.items()]
    return [f"the base model's chat template does not use these fields of messages: {some(named)}"] if named else []


def repeated_conversations(rows: int, examples: int) -> list[str]:
    """A warning if there are more tokenized examples than rows."""
    if examples == rows:
        return []
    return [
        f"{count(rows, 'training row is', 'training rows are')} {examples:,} training examples: the chat template "
        "renders earlier answers differently when others follow, so each answer is learned in an example of its own"
    ]

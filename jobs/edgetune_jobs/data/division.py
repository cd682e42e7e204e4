"""Divides the rows that were read into training and evaluation examples, with warnings about both."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgetune_contract.spec import DatasetSpec, RowFormat
from edgetune_jobs.data import quality
from edgetune_jobs.data.data_set import DataSet
from edgetune_jobs.data.examples import Example, RowParser
from edgetune_jobs.data.splits import hold_out


@dataclass(frozen=True)
class DividedRows:
    """Training and evaluation examples, in the order in which they are written."""

    train: Sequence[Example]
    evaluation: Sequence[Example]
    evaluation_field: str
    """Path in the spec of the evaluation rows' source: spec.dataset.train if they are split off."""

    warnings: Sequence[str]


def divide(dataset: DatasetSpec, seed: int, train_set: DataSet, eval_set: DataSet | None) -> DividedRows:
    """Training and evaluation examples, with warnings about them.

    Args:
        dataset: format, template and share of the evaluation rows.
        seed: spec.training.seed, which selects the rows to hold out.
        train_set: the rows of spec.dataset.train.
        eval_set: the evaluation rows; None to split them off the training rows.

    Raises:
        InvalidInput: no evaluation rows can be split off.
    """
    train: Sequence[Example] = train_set.examples
    about_eval: list[str] = []
    if eval_set is None:
        train, evaluation = hold_out(train_set.examples, dataset.eval_split_percent, seed)
    else:
        evaluation = eval_set.examples
        about_eval = [
            *eval_set.warnings,
            *quality.duplicate_rows(eval_set),
            *quality.leaked_rows(train, evaluation),
        ]
    named = eval_set or train_set
    parser = RowParser(dataset)
    if dataset.format is not RowFormat.TEXT:
        about_eval += quality.keyword_coverage(named, evaluation, parser)
    warnings = (
        *quality.size_advice(len(train)),
        *train_set.warnings,
        *quality.duplicate_rows(train_set),
        *about_eval,
        *quality.unused_columns([data_set for data_set in (train_set, eval_set) if data_set], parser, dataset),
    )
    return DividedRows(train, evaluation, named.spec_field, warnings)

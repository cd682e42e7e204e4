"""Batches of the tokenizer in the child process."""

from pathlib import Path
from typing import Any, cast

import pytest

from edgetune_contract.spec import RowFormat
from edgetune_jobs.data.examples import Example
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.data.readers.rows import Place
from edgetune_jobs.models.trial import tokenizing
from edgetune_jobs.models.trial.process import TrialProcess


class RecordedTrial:
    """Records how long the responses of each call are."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    def call(self, function: Any, *arguments: Any, **_: Any) -> list[Any]:
        if function is tokenizing._tokenize:
            self.calls.append([len(example.response) for example in arguments[3]])
        return []


def test_long_rows_are_tokenized_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_MOST_CHARACTERS", 10)
    trial = RecordedTrial()
    prompt_format = PromptFormat(template="{instruction}", format=RowFormat.TEXT)
    tokenizer = tokenizing.BoundedTokenizer(cast(TrialProcess, trial), Path("base"), prompt_format, 16)

    tokenizer.tokenize([Example(Place("rows.jsonl"), (), "a" * length) for length in (4, 4, 4, 30, 1, 9, 10)])

    assert trial.calls == [[4, 4], [4], [30], [1, 9], [10]]

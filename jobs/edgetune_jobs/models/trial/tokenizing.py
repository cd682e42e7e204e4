"""Tokenizes examples in the trial's child process: a row can make a template or a tokenizer compute without end."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edgetune_jobs.data.chat.renderers import Span
from edgetune_jobs.data.examples import Example
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.data.readers.rows import BadRow
from edgetune_jobs.data.tokenization import ExampleTokenizer, SpecialTokens, TokenizedExample
from edgetune_jobs.errors import BASE_FIELD, InvalidInput
from edgetune_jobs.models.loading import load_tokenizer
from edgetune_jobs.models.trial.process import HOW_TO_REPAIR, TrialFailed, TrialProcess
from edgetune_jobs.models.trial.worker import say_doing

_SHARE_OF_ONE = 0.2
# Tokenizers need about a second for a million characters.
_CHARACTERS_PER_SECOND = 100_000
# Their results take about a hundred times as much memory, of which one call has 2 GiB: books as rows are no bomb.
_MOST_CHARACTERS = 4_000_000
# A conversation is rendered several times: up to each answer, and without what the template may drop.
_MESSAGES_PER_SECOND = 50
# In the child process: the tokenizer of the last call.
_tokenizers: dict[tuple[Path, PromptFormat, int], ExampleTokenizer] = {}


class BoundedTokenizer:
    """An ExampleTokenizer in a child process with limits."""

    def __init__(self, trial: TrialProcess, folder: Path, prompt_format: PromptFormat, max_length: int) -> None:
        """
        Args:
            trial: the child process.
            folder: folder of the model whose tokenizer is used.
            prompt_format: the template for examples.
            max_length: maximum length of an example in tokens; longer responses are truncated.

        Raises:
            InvalidInput: the tokenizer cannot be loaded, or a required chat template is missing.
        """
        self._trial = trial
        self._settings = (folder, prompt_format, max_length)
        try:
            trial.call(_open, *self._settings)
        except TrialFailed as error:
            raise InvalidInput(f"{BASE_FIELD}: {error}; {HOW_TO_REPAIR}") from error

    def unused_fields(self) -> Mapping[str, int]:
        """As `ExampleTokenizer.unused_fields`, for the examples so far."""
        return self._trial.call(_unused_fields, *self._settings)

    def special_tokens(self) -> SpecialTokens:
        """As `ExampleTokenizer.special_tokens`."""
        return self._trial.call(_special_tokens, *self._settings)

    def tokenize(self, examples: Sequence[Example], *, each_answer: bool = False) -> list[TokenizedExample | BadRow]:
        """Tokens of each example, or the reason why it is invalid: see `ExampleTokenizer.tokenize`.

        Raises:
            InvalidInput: an example takes more time or memory than any text should.
        """
        return [found for batch in _batches(examples) for found in self._together(batch, each_answer)]

    def text_of(self, example: TokenizedExample) -> tuple[Span, ...]:
        """As `ExampleTokenizer.text_of`."""
        return self._trial.call(_text_of, *self._settings, example)

    def _together(self, examples: Sequence[Example], each_answer: bool) -> list[TokenizedExample | BadRow]:
        try:
            return self._tokenize(examples, each_answer, share=1.0)
        except TrialFailed:
            # One by one, with less time for each, to find the example.
            return [found for example in examples for found in self._alone(example, each_answer)]

    def _alone(self, example: Example, each_answer: bool) -> list[TokenizedExample | BadRow]:
        try:
            return self._tokenize([example], each_answer, share=_SHARE_OF_ONE)
        except TrialFailed as error:
            if error.is_limit:
                raise InvalidInput(
                    f"{BASE_FIELD}: its chat template or tokenizer {error.reason} on {example.place}; "
                    "use another base model, or change this row"
                ) from error
            return [BadRow(example.place, f"the base model's tokenizer {error.reason}")]

    def _tokenize(
        self, examples: Sequence[Example], each_answer: bool, share: float
    ) -> list[TokenizedExample | BadRow]:
        characters = sum(map(_characters, examples))
        messages = sum(len(each.prompt) + 1 for each in examples)
        seconds = characters // _CHARACTERS_PER_SECOND + messages // _MESSAGES_PER_SECOND
        arguments = (*self._settings, list(examples), each_answer)
        return self._trial.call(_tokenize, *arguments, extra_seconds=seconds, share=share)


def _batches(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """The examples in order, at most _MOST_CHARACTERS at a time, or one that has more."""
    batch: list[Example] = []
    room = _MOST_CHARACTERS
    for example in examples:
        room -= _characters(example)
        if batch and room < 0:
            yield batch
            batch, room = [], _MOST_CHARACTERS - _characters(example)
        batch.append(example)
    if batch:
        yield batch


def _characters(example: Example) -> int:
    return len(example.response) + sum(len(turn.content) for turn in example.prompt)


def _open(folder: Path, prompt_format: PromptFormat, max_length: int) -> None:
    _tokenizers.clear()
    say_doing("loading the tokenizer")
    tokenizer = ExampleTokenizer(load_tokenizer(folder), prompt_format, max_length)
    _tokenizers[folder, prompt_format, max_length] = tokenizer


def _tokenize(
    folder: Path, prompt_format: PromptFormat, max_length: int, examples: list[Example], each_answer: bool
) -> list[TokenizedExample | BadRow]:
    if (folder, prompt_format, max_length) not in _tokenizers:
        _open(folder, prompt_format, max_length)
    say_doing("rendering and tokenizing rows")
    return _tokenizers[folder, prompt_format, max_length].tokenize(examples, each_answer=each_answer)


def _text_of(folder: Path, prompt_format: PromptFormat, max_length: int, example: TokenizedExample) -> tuple[Span, ...]:
    if (folder, prompt_format, max_length) not in _tokenizers:
        _open(folder, prompt_format, max_length)
    say_doing("rendering and tokenizing rows")
    return _tokenizers[folder, prompt_format, max_length].text_of(example)


def _special_tokens(folder: Path, prompt_format: PromptFormat, max_length: int) -> SpecialTokens:
    if (folder, prompt_format, max_length) not in _tokenizers:
        _open(folder, prompt_format, max_length)
    return _tokenizers[folder, prompt_format, max_length].special_tokens


def _unused_fields(folder: Path, prompt_format: PromptFormat, max_length: int) -> dict[str, int]:
    tokenizer = _tokenizers.get((folder, prompt_format, max_length))
    return dict(tokenizer.unused_fields) if tokenizer is not None else {}

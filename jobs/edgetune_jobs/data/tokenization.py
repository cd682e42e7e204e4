"""Examples as tokens, so that a prompt has the same tokens in training, in evaluation and when people ask the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from edgetune_jobs.data.examples import Example
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.data.readers.rows import BadRow
from edgetune_jobs.data.templates import CannotRender, Renderer, Span, renderer_for
from edgetune_jobs.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenizedExample:
    """Tokens of one example, cut to the longest length allowed."""

    source: Example
    prompt: str
    """Text before the response; empty for the format Text."""

    prompt_ids: list[int]
    completion_ids: list[int]
    """Tokens of the response with EOS; without it if they were cut."""

    prompt_mask: list[int]
    """1 for tokens of the prompt that are learned: earlier answers of a conversation."""

    full_length: int
    """Tokens before cutting."""

    @property
    def input_ids(self) -> list[int]:
        """All tokens."""
        return self.prompt_ids + self.completion_ids

    @property
    def completion_mask(self) -> list[int]:
        """1 for tokens that are learned, 0 for others; as long as input_ids."""
        return self.prompt_mask + [1] * len(self.completion_ids)

    @property
    def is_truncated(self) -> bool:
        """Whether tokens were cut off."""
        return self.full_length > len(self.prompt_ids) + len(self.completion_ids)


class ExampleTokenizer:
    """Turns examples into tokens.

    Text is tokenized as a whole, as trl does, wherever the tokens of each piece's beginning then stay what they are on
    their own; else piece by piece. Either way the prompt's tokens are those of the prompt alone, as the model will see
    them when it is asked. BOS comes first if the tokenizer puts it there, EOS comes last, once.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt_format: PromptFormat, max_length: int) -> None:
        """Take over a tokenizer.

        Args:
            tokenizer: the base's; it has an EOS token.
            prompt_format: how examples become text.
            max_length: longest example in tokens.

        Raises:
            InvalidInput: the tokenizer's chat template is asked for, and it has none.
        """
        self._tokenizer = tokenizer
        self._renderer = renderer_for(prompt_format, tokenizer)
        self._max_length = max_length
        self._leading_ids = _leading_ids(tokenizer, self._renderer)
        self._eos = int(tokenizer.eos_token_id)

    def tokenize(self, examples: Sequence[Example]) -> list[TokenizedExample | BadRow]:
        """Tokens of each example, or why it cannot be used."""
        rendered = [self._render(example) for example in examples]
        texts = {text for spans in rendered if not isinstance(spans, BadRow) for text in _prefixes(spans)}
        ids_of = self._tokenize(sorted(texts))
        tokenized: list[TokenizedExample | BadRow] = []
        for example, spans in zip(examples, rendered, strict=True):
            tokenized.append(spans if isinstance(spans, BadRow) else self._assemble(example, spans, ids_of))
        return tokenized

    def _render(self, example: Example) -> tuple[Span, ...] | BadRow:
        try:
            return self._renderer.render(example)
        except CannotRender as error:
            return BadRow(example.place, str(error))

    def _tokenize(self, texts: Sequence[str]) -> dict[str, list[int]]:
        if not texts:
            return {}
        # Longer than the model's context is no news here: the length is judged below.
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return dict(zip(texts, encoded["input_ids"], strict=True))

    def _assemble(
        self, example: Example, spans: Sequence[Span], ids_of: dict[str, list[int]]
    ) -> TokenizedExample | BadRow:
        pieces = self._pieces(spans, ids_of)
        # What the tokenizer puts first belongs to the prompt, or without one to the text.
        pieces[0] = [*self._leading_ids, *pieces[0]]
        prompt_ids: list[int] = []
        prompt_mask: list[int] = []
        for span, ids in zip(spans[:-1], pieces[:-1], strict=True):
            prompt_ids += ids
            prompt_mask += [int(span.is_learned)] * len(ids)
        completion_ids = self._with_eos(pieces[-1])
        room = self._max_length - len(prompt_ids)
        if room < 1 or len(prompt_ids) + len(completion_ids) < 2 or (len(spans) > 1 and not prompt_ids):
            return BadRow(example.place, self._nothing_left(len(prompt_ids)))
        return TokenizedExample(
            source=example,
            prompt="".join(span.text for span in spans[:-1]),
            prompt_ids=prompt_ids,
            completion_ids=completion_ids[:room],
            prompt_mask=prompt_mask,
            full_length=len(prompt_ids) + len(completion_ids),
        )

    def _pieces(self, spans: Sequence[Span], ids_of: dict[str, list[int]]) -> list[list[int]]:
        """Tokens of each span."""
        prefixes = _prefixes(spans)
        whole = ids_of[prefixes[-1]]
        ends = [len(ids_of[prefix]) for prefix in prefixes]
        if all(whole[:end] == ids_of[prefix] for prefix, end in zip(prefixes, ends, strict=True)):
            return [whole[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
        alone = self._tokenize(sorted({span.text for span in spans}))
        return [alone[span.text] for span in spans]

    def _with_eos(self, ids: list[int]) -> list[int]:
        """Tokens that end in EOS. Chat templates end a turn with it by themselves, often with a line break after it."""
        for index in range(len(ids) - 1, -1, -1):
            if ids[index] == self._eos:
                return ids[: index + 1]
            if str(self._tokenizer.decode(ids[index:])).strip():
                break
        return [*ids, self._eos]

    def _nothing_left(self, prompt_length: int) -> str:
        if not prompt_length:
            return "has no tokens to learn from: the tokenizer drops all of its characters"
        return (
            f"has a prompt of {prompt_length:,} tokens, and spec.training.maxLength is {self._max_length:,}: nothing "
            "of the response would be left; raise maxLength, or shorten the prompt"
        )


def prompt_ids(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
    """Token ids of a question, wrapped, up to where the answer begins: the same as in training and evaluation.

    Raises:
        InvalidInput: the tokenizer's chat template is asked for and is missing, or does not take the question.
    """
    renderer = renderer_for(prompt_format, tokenizer)
    try:
        text = renderer.wrap(prompt)
    except CannotRender as error:
        raise InvalidInput(f"the prompt cannot be wrapped: {error}") from error
    return [*_leading_ids(tokenizer, renderer), *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]


def _prefixes(spans: Sequence[Span]) -> list[str]:
    """The text up to the end of each span."""
    return list(accumulate(span.text for span in spans))


def _leading_ids(tokenizer: "PreTrainedTokenizerBase", renderer: Renderer) -> list[int]:
    """What the tokenizer puts before a text, such as BOS; nothing where the text has it already."""
    if not renderer.adds_special_tokens:
        return []
    probe = "a"
    bare = tokenizer(probe, add_special_tokens=False)["input_ids"]
    dressed = tokenizer(probe)["input_ids"]
    for begin in range(len(dressed) - len(bare) + 1):
        if dressed[begin : begin + len(bare)] == bare:
            return list(dressed[:begin])
    return []

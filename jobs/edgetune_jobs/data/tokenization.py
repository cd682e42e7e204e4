"""Tokenizes examples, so that a prompt has the same tokens in training, evaluation and inference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING

from edgetune_contract.spec import RowFormat
from edgetune_jobs.data.chat.renderers import Renderer, Span, renderer_for
from edgetune_jobs.data.chat.template import CannotRender
from edgetune_jobs.data.examples import Example
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.data.readers.rows import BadRow
from edgetune_jobs.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenizedExample:
    """Tokens of one example, truncated to the maximum length."""

    source: Example
    prompt: str
    """The text before the response; empty for the format Text."""

    prompt_ids: list[int]
    completion_ids: list[int]
    """Tokens of the response, with EOS unless they were truncated."""

    prompt_mask: list[int]
    """1 for tokens of the prompt that are learned: earlier assistant messages of a conversation."""

    full_length: int
    """Number of tokens before truncation."""

    reference: str
    """The answer to compare with: the response, or its text by the chat template if it has tool calls or reasoning."""

    had_repeated_start: bool = False
    """Whether tokens such as BOS came from two places, the text and the tokenizer; one of them was left out."""

    @property
    def input_ids(self) -> list[int]:
        """Tokens of prompt and response."""
        return self.prompt_ids + self.completion_ids

    @property
    def completion_mask(self) -> list[int]:
        """1 for tokens that are learned, 0 for others; as many as input_ids."""
        return self.prompt_mask + [1] * len(self.completion_ids)

    @property
    def is_truncated(self) -> bool:
        """Whether tokens were cut off."""
        return self.full_length > len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens of a tokenizer that no row has to contain."""

    pad_id: int
    pad: str
    eos: str


@dataclass(frozen=True)
class _TooLong(BadRow):
    """The prompt has at least as many tokens as an example may have."""

    full_length: int


class ExampleTokenizer:
    """Tokenizes examples.

    The text is tokenized as a whole, as trl does, if the tokens of each prefix are also a prefix of all tokens;
    otherwise each span is tokenized alone. In both cases, the prompt's tokens are those of the prompt alone, which is
    what the model sees at inference. BOS is first, once, if the text or the tokenizer has it; EOS is last, once.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt_format: PromptFormat, max_length: int) -> None:
        """
        Args:
            tokenizer: the base model's, with an EOS token.
            prompt_format: the template for examples.
            max_length: maximum length of an example in tokens; longer responses are truncated.

        Raises:
            InvalidInput: a chat template is required and the tokenizer has none.
        """
        self._tokenizer = tokenizer
        self._renderer = renderer_for(prompt_format, tokenizer)
        self._max_length = max_length
        self._leading_ids = _leading_ids(tokenizer, self._renderer)
        self._bos: int | None = tokenizer.bos_token_id
        self._eos = int(tokenizer.eos_token_id)

    @property
    def special_tokens(self) -> SpecialTokens:
        """The tokenizer's."""
        tokenizer = self._tokenizer
        return SpecialTokens(int(tokenizer.pad_token_id), str(tokenizer.pad_token), str(tokenizer.eos_token))

    @property
    def unused_fields(self) -> Mapping[str, int]:
        """Fields of messages that the chat template does not use, with the number of messages that have them."""
        usage = self._renderer.usage
        return usage.unused_fields if usage is not None else {}

    def tokenize(self, examples: Sequence[Example], *, each_answer: bool = False) -> list[TokenizedExample | BadRow]:
        """Tokens of each example, or the reason why it is invalid.

        Args:
            examples: valid rows.
            each_answer: learn every answer of a conversation, if necessary by several tokenized examples; otherwise
                there is exactly one for each row, whose completion is the last answer that begins within the maximum
                length (the last of all, if the row has keywords of it).
        """
        rendered = [(example, self._render(example, each_answer)) for example in examples]
        texts = {
            text
            for _, answers in rendered
            if not isinstance(answers, BadRow)
            for spans in answers
            for text in _prefixes(spans)
        }
        ids_of = self._tokenize(sorted(texts))
        tokenized: list[TokenizedExample | BadRow] = []
        for example, answers in rendered:
            if isinstance(answers, BadRow):
                tokenized.append(answers)
                continue
            made = _that_fit([self._assemble(example, spans, ids_of, each_answer) for spans in answers])
            tokenized += made if each_answer else [self._earlier_answer(example, each) for each in made]
        return tokenized

    def text_of(self, example: TokenizedExample) -> tuple[Span, ...]:
        """The text of an example's tokens with special ones, in spans that are learned or not."""
        ids, mask = example.input_ids, example.completion_mask
        ends = [end for end in range(1, len(ids) + 1) if end == len(ids) or mask[end] != mask[end - 1]]
        # Tokens alone can have another text than after others, such as without a space before them.
        texts = ["", *(str(self._tokenizer.decode(ids[:end])) for end in ends)]
        return tuple(
            Span(text[len(before) :], is_learned=bool(mask[end - 1]))
            for before, text, end in zip(texts, texts[1:], ends, strict=False)
        )

    def _earlier_answer(self, example: Example, made: TokenizedExample | BadRow) -> TokenizedExample | BadRow:
        """The last earlier answer that fits, if the last one does not and the row has no keywords of it."""
        if not isinstance(made, _TooLong) or example.keywords:
            return made
        for index in range(len(example.prompt) - 1, 0, -1):
            if example.prompt[index].role != "assistant" or not example.prompt[index].is_learned:
                continue
            earlier = self.tokenize([example.up_to(index)])[0]
            if isinstance(earlier, TokenizedExample):
                return replace(earlier, full_length=made.full_length)
        return made

    def _render(self, example: Example, each_answer: bool) -> Sequence[tuple[Span, ...]] | BadRow:
        try:
            return self._renderer.render_answers(example) if each_answer else [self._renderer.render(example)]
        except CannotRender as error:
            return BadRow(example.place, str(error))

    def _tokenize(self, texts: Sequence[str]) -> dict[str, list[int]]:
        if not texts:
            return {}
        # verbose=False: no warning about texts longer than the model's context, which are truncated later.
        encoded = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return dict(zip(texts, encoded["input_ids"], strict=True))

    def _assemble(
        self, example: Example, spans: Sequence[Span], ids_of: dict[str, list[int]], each_answer: bool
    ) -> TokenizedExample | BadRow:
        pieces = self._pieces(spans, ids_of)
        # Leading tokens such as BOS belong to the prompt, or to the text if there is no prompt.
        start = _begin_once(self._leading_ids, pieces[0], self._bos)
        had_repeated_start = len(start) < len(self._leading_ids) + len(pieces[0])
        pieces[0] = start
        full_length = sum(map(len, pieces[:-1])) + len(self._with_eos(pieces[-1]))
        if each_answer:
            spans, pieces = self._up_to_last_that_fits(spans, pieces)
        prompt_ids: list[int] = []
        prompt_mask: list[int] = []
        for span, ids in zip(spans[:-1], pieces[:-1], strict=True):
            prompt_ids += ids
            prompt_mask += [int(span.is_learned)] * len(ids)
        completion_ids = self._with_eos(pieces[-1])
        room = self._max_length - len(prompt_ids)
        if room < 1:
            return _TooLong(example.place, self._nothing_to_learn(len(prompt_ids)), full_length)
        if len(prompt_ids) + len(completion_ids) < 2 or (len(spans) > 1 and not prompt_ids):
            return BadRow(example.place, self._nothing_to_learn(len(prompt_ids)))
        return TokenizedExample(
            source=example,
            prompt="".join(span.text for span in spans[:-1]),
            prompt_ids=prompt_ids,
            completion_ids=completion_ids[:room],
            prompt_mask=prompt_mask,
            full_length=full_length,
            reference=self._reference(example, completion_ids),
            had_repeated_start=had_repeated_start,
        )

    def _up_to_last_that_fits(
        self, spans: Sequence[Span], pieces: list[list[int]]
    ) -> tuple[Sequence[Span], list[list[int]]]:
        """Spans and tokens without the last turns, if the last answer begins after the maximum length."""
        begins = [0, *accumulate(map(len, pieces))]
        for last in range(len(spans) - 1, 0, -1):
            if spans[last].is_learned and begins[last] < self._max_length:
                return spans[: last + 1], pieces[: last + 1]
        return spans, pieces

    def _reference(self, example: Example, completion_ids: Sequence[int]) -> str:
        if not example.response_fields:
            return example.response
        return str(self._tokenizer.decode(completion_ids, skip_special_tokens=True)).strip()

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
        """Tokens that end in EOS. Chat templates end a turn with EOS themselves, often followed by a line break."""
        for index in range(len(ids) - 1, -1, -1):
            if ids[index] == self._eos:
                while index and ids[index - 1] == self._eos:
                    index -= 1
                return ids[: index + 1]
            if str(self._tokenizer.decode(ids[index:])).strip():
                break
        return [*ids, self._eos]

    def _nothing_to_learn(self, prompt_length: int) -> str:
        if not prompt_length:
            return "no tokens to learn: the tokenizer drops all characters"
        return (
            f"the prompt has {prompt_length:,} tokens and spec.training.maxLength is {self._max_length:,}, which "
            "leaves no tokens for the response; raise maxLength or shorten the prompt"
        )


def _that_fit(answers: list[TokenizedExample | BadRow]) -> list[TokenizedExample | BadRow]:
    """A row's answers without those that begin after the maximum length, which the last other one counts as cut off."""
    too_long = [each.full_length for each in answers if isinstance(each, _TooLong)]
    fitting = [each for each in answers if isinstance(each, TokenizedExample)]
    if not too_long or len(too_long) + len(fitting) < len(answers) or not fitting:
        return answers
    return [*fitting[:-1], replace(fitting[-1], full_length=max(too_long))]


def prompt_ids(
    prompt_format: PromptFormat,
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    columns: Mapping[str, str] = MappingProxyType({}),
) -> list[int]:
    """Token ids of a wrapped prompt up to where the response begins, the same as in training and evaluation.

    Args:
        prompt_format: the template.
        tokenizer: the model's.
        prompt: the instruction, or the user's message.
        columns: values of the template's other columns.

    Raises:
        InvalidInput: a required chat template is missing or cannot render the prompt, or the template's columns differ.
    """
    renderer = renderer_for(prompt_format, tokenizer)
    try:
        text = renderer.wrap(prompt, columns)
    except CannotRender as error:
        raise InvalidInput(f"cannot render the prompt: {error}") from error
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return _begin_once(_leading_ids(tokenizer, renderer), ids, tokenizer.bos_token_id)


def runtime_adds_bos(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a runtime may add BOS to each wrapped prompt, as the tokenizer does: it then begins as in training.

    It may not if a template of the spec has BOS itself, which would then be there twice; or if the tokenizer's chat
    template has none, because chats are tokenized without it. Runtimes know chat templates that have BOS, and add none.
    """
    renderer = renderer_for(prompt_format, tokenizer)
    text = prompt_format.template if prompt_format.format is RowFormat.INSTRUCTION else ""
    if not renderer.adds_special_tokens:
        try:
            text = renderer.wrap("a", {})
        except CannotRender:  # a chat template that needs more than one message from the user
            return True
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    has_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
    return not has_bos if renderer.adds_special_tokens else has_bos


def _begin_once(leading: Sequence[int], ids: Sequence[int], bos: int | None) -> list[int]:
    """Token ids after the tokens that the tokenizer adds before a text, which are there once even if both have them."""
    whole = list(ids) if list(ids[: len(leading)]) == list(leading) else [*leading, *ids]
    while len(whole) > 1 and whole[0] == whole[1] == bos:
        del whole[0]
    return whole


def _prefixes(spans: Sequence[Span]) -> list[str]:
    """The text up to the end of each span."""
    return list(accumulate(span.text for span in spans))


def _leading_ids(tokenizer: "PreTrainedTokenizerBase", renderer: Renderer) -> list[int]:
    """Tokens that the tokenizer adds before a text; none if the rendered text already has them."""
    return leading_ids(tokenizer) if renderer.adds_special_tokens else []


def leading_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Tokens that the tokenizer adds before a text, such as BOS."""
    probe = "a"
    plain = tokenizer(probe, add_special_tokens=False)["input_ids"]
    with_special = tokenizer(probe)["input_ids"]
    for begin in range(len(with_special) - len(plain) + 1):
        if with_special[begin : begin + len(plain)] == plain:
            return list(with_special[:begin])
    return []

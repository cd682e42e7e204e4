"""Examples as text: prompt and response wrapped by the data set's template, or by the tokenizer's chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edgetune_contract.spec import CHAT_TEMPLATE, RowFormat
from edgetune_jobs.data.examples import ASSISTANT, USER, Example, Message
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_INSTRUCTION = "{instruction}"


class CannotRender(Exception):
    """The template does not take this example; the message says why."""


@dataclass(frozen=True)
class Span:
    """A piece of an example's text."""

    text: str
    is_learned: bool


class Renderer(Protocol):
    """Makes the text of examples."""

    def wrap(self, prompt: str) -> str:
        """The text of a question alone, up to where the answer begins.

        Raises:
            CannotRender: the template does not take it.
        """
        ...

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the text lacks the tokens that the tokenizer puts before a text, such as BOS."""
        ...

    def render(self, example: Example) -> tuple[Span, ...]:
        """The example's text in pieces; the last is the response, learned, and all before it is the prompt.

        Raises:
            CannotRender: the template does not take this example.
        """
        ...


def renderer_for(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> Renderer:
    """The renderer for a row format and its template.

    Raises:
        InvalidInput: a chat template is asked for and the tokenizer has none.
    """
    row_format = prompt_format.format
    if row_format is RowFormat.TEXT:
        return TextRenderer(_INSTRUCTION)
    if row_format is RowFormat.INSTRUCTION and prompt_format.template != CHAT_TEMPLATE:
        return TextRenderer(prompt_format.template)
    if not tokenizer.chat_template:
        field = "spec.dataset.format: Chat" if row_format is RowFormat.CHAT else "spec.dataset.template: ChatTemplate"
        raise InvalidInput(
            f"{field} needs a chat template, and the base's tokenizer has none (chat_template.jinja, or chat_template "
            "in tokenizer_config.json): name an instruction-tuned base, or give spec.dataset.template as text with "
            "{instruction} in it and rows in the format Instruction"
        )
    return ChatRenderer(tokenizer)


@dataclass(frozen=True)
class TextRenderer:
    """Wraps the instruction by a text with {instruction} in it; an example without a prompt is its response alone."""

    template: str
    adds_special_tokens: bool = True

    def wrap(self, prompt: str) -> str:
        return self.template.replace(_INSTRUCTION, prompt)

    def render(self, example: Example) -> tuple[Span, ...]:
        response = Span(example.response, is_learned=True)
        if not example.prompt:
            return (response,)
        return Span(self.wrap(example.prompt[-1].content), is_learned=False), response


class ChatRenderer:
    """Wraps a conversation by the tokenizer's chat template, which brings its special tokens along.

    All assistant messages are learned. A template may render an earlier turn differently once later ones follow (some
    drop what the assistant thought): then only the last answer is learned.
    """

    adds_special_tokens = False

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer

    def wrap(self, prompt: str) -> str:
        return self._apply([Message(USER, prompt)], is_prompt=True)

    def render(self, example: Example) -> tuple[Span, ...]:
        messages = (*example.prompt, Message(ASSISTANT, example.response))
        whole = self._apply(messages)
        answers = [index for index, message in enumerate(messages) if message.role == ASSISTANT]
        bounds = [self._bounds(messages, index) for index in answers]
        if not whole.startswith(bounds[-1][0]) or not whole[len(bounds[-1][0]) :].strip():
            raise CannotRender(
                "the chat template renders the prompt differently when the answer follows, so the answer cannot be "
                "told apart: use a template as text, or another base"
            )
        bounds[-1] = bounds[-1][0], whole
        if not all(whole.startswith(text) for pair in bounds for text in pair):
            bounds = bounds[-1:]
        return _spans(whole, [(len(before), len(after)) for before, after in bounds])

    def _bounds(self, messages: Sequence[Message], index: int) -> tuple[str, str]:
        """The conversation up to where the answer at `index` begins, and up to where it ends."""
        return self._apply(messages[:index], is_prompt=True), self._apply(messages[: index + 1])

    def _apply(self, messages: Sequence[Message], *, is_prompt: bool = False) -> str:
        from jinja2 import TemplateError

        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=is_prompt))
        except TemplateError as error:
            raise CannotRender(f"the base's chat template refuses it: {error}") from error
        except Exception as error:  # a template is a program: its expressions may fail in any way
            raise CannotRender(f"the base's chat template fails on it: {error}") from error


def _spans(whole: str, learned: Sequence[tuple[int, int]]) -> tuple[Span, ...]:
    spans: list[Span] = []
    position = 0
    for begin, end in learned:
        spans.append(Span(whole[position:begin], is_learned=False))
        spans.append(Span(whole[begin:end], is_learned=True))
        position = end
    return tuple(span for span in spans if span.text)

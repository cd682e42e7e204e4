"""Renders examples as text, with the data set's template or the tokenizer's chat template."""

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
    """The template cannot render this example; the message is the reason."""


@dataclass(frozen=True)
class Span:
    """A piece of an example's text."""

    text: str
    is_learned: bool


class Renderer(Protocol):
    """Renders examples as text."""

    def wrap(self, prompt: str) -> str:
        """The text of a prompt alone, up to where the response begins.

        Raises:
            CannotRender: the template cannot render it.
        """
        ...

    @property
    def adds_special_tokens(self) -> bool:
        """Whether the tokenizer must add its leading tokens, such as BOS, because the rendered text lacks them."""
        ...

    def render(self, example: Example) -> tuple[Span, ...]:
        """The example's text in spans: the last one is the response and is learned, the others are the prompt.

        Raises:
            CannotRender: the template cannot render this example.
        """
        ...


def renderer_for(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> Renderer:
    """The renderer for a row format and its template.

    Raises:
        InvalidInput: a chat template is required and the tokenizer has none.
    """
    row_format = prompt_format.format
    if row_format is RowFormat.TEXT:
        return TextRenderer(_INSTRUCTION)
    if row_format is RowFormat.INSTRUCTION and prompt_format.template != CHAT_TEMPLATE:
        return TextRenderer(prompt_format.template)
    if not tokenizer.chat_template:
        field = "spec.dataset.format: Chat" if row_format is RowFormat.CHAT else "spec.dataset.template: ChatTemplate"
        raise InvalidInput(
            f"{field} needs a chat template, but the base model has none (no chat_template.jinja, and no chat_template "
            "in tokenizer_config.json); use an instruction-tuned base model, or set spec.dataset.format: Instruction "
            "and a spec.dataset.template that contains {instruction}"
        )
    return ChatRenderer(tokenizer)


@dataclass(frozen=True)
class TextRenderer:
    """Replaces {instruction} in a template by the prompt; an example without a prompt is its response alone."""

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
    """Renders a conversation with the tokenizer's chat template, which includes the special tokens.

    All assistant messages are learned. If the template renders an earlier turn differently when later turns follow
    (some templates drop earlier reasoning), only the last assistant message is learned.
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
                "the chat template renders the prompt differently when the response follows, so the response cannot be "
                "located; set spec.dataset.template to a text with {instruction}, or use another base model"
            )
        bounds[-1] = bounds[-1][0], whole
        if not all(whole.startswith(text) for pair in bounds for text in pair):
            bounds = bounds[-1:]
        return _spans(whole, [(len(before), len(after)) for before, after in bounds])

    def _bounds(self, messages: Sequence[Message], index: int) -> tuple[str, str]:
        """The conversation up to the start of the assistant message at `index`, and up to its end."""
        return self._apply(messages[:index], is_prompt=True), self._apply(messages[: index + 1])

    def _apply(self, messages: Sequence[Message], *, is_prompt: bool = False) -> str:
        from jinja2 import TemplateError

        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=is_prompt))
        except MemoryError:
            raise
        except TemplateError as error:
            raise CannotRender(f"the base model's chat template rejects it: {error}") from error
        except Exception as error:  # a template is a program, whose expressions can raise anything
            raise CannotRender(f"the base model's chat template fails on it: {error}") from error


def _spans(whole: str, learned: Sequence[tuple[int, int]]) -> tuple[Span, ...]:
    spans: list[Span] = []
    position = 0
    for begin, end in learned:
        spans.append(Span(whole[position:begin], is_learned=False))
        spans.append(Span(whole[begin:end], is_learned=True))
        position = end
    return tuple(span for span in spans if span.text)

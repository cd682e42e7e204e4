"""Renders examples as text, with the data set's template or the tokenizer's chat template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from edgetune_contract.spec import CHAT_TEMPLATE, RowFormat
from edgetune_jobs.data.chat.messages import ASSISTANT, SYSTEM, USER, Message
from edgetune_jobs.data.chat.template import CannotRender, ChatTemplate, Conversation
from edgetune_jobs.data.chat.usage import TemplateUsage
from edgetune_jobs.data.examples import Example
from edgetune_jobs.data.prompt_format import INSTRUCTION, PromptFormat
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.wording import some

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Span:
    """A piece of an example's text."""

    text: str
    is_learned: bool


class Renderer(Protocol):
    """Renders examples as text."""

    def wrap(self, prompt: str, columns: Mapping[str, str]) -> str:
        """The text of a prompt alone, up to where the response begins.

        Args:
            prompt: the instruction, or the user's message.
            columns: values of the template's other columns.

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

    def render_answers(self, example: Example) -> Sequence[tuple[Span, ...]]:
        """The same, as often as necessary to learn every answer of a conversation.

        Raises:
            CannotRender: the template cannot render this example.
        """
        ...

    @property
    def usage(self) -> TemplateUsage | None:
        """What a chat template does not use; None for other templates."""
        ...


def renderer_for(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> Renderer:
    """The renderer for a row format and its template.

    Raises:
        InvalidInput: a chat template is required and the tokenizer has none.
    """
    row_format = prompt_format.format
    if row_format is RowFormat.TEXT:
        return TextRenderer(prompt_format.model_copy(update={"template": f"{{{INSTRUCTION}}}"}))
    if row_format is RowFormat.INSTRUCTION and prompt_format.template != CHAT_TEMPLATE:
        return TextRenderer(prompt_format)
    if not tokenizer.chat_template:
        field = "spec.dataset.format: Chat" if row_format is RowFormat.CHAT else "spec.dataset.template: ChatTemplate"
        raise InvalidInput(
            f"{field} needs a chat template, but the base model has none (no chat_template.jinja, and no chat_template "
            "in tokenizer_config.json); use an instruction-tuned base model, or set spec.dataset.format: Instruction "
            "and a spec.dataset.template that contains {instruction}"
        )
    return ChatRenderer(tokenizer, prompt_format)


@dataclass(frozen=True)
class TextRenderer:
    """Fills in a template's columns; an example without a prompt is its response alone."""

    prompt_format: PromptFormat
    adds_special_tokens: bool = True
    usage: TemplateUsage | None = None

    def wrap(self, prompt: str, columns: Mapping[str, str]) -> str:
        values = {**columns, INSTRUCTION: prompt}
        missing = [name for name in self.prompt_format.columns if name not in values]
        if missing:
            raise CannotRender(f"the model's template also has {{{missing[0]}}}; give its value")
        unknown = [name for name in columns if name not in self.prompt_format.columns]
        if unknown:
            names = some(repr(name) for name in self.prompt_format.columns)
            raise CannotRender(
                f"the model's template has no {{{unknown[0]}}} (its columns besides the prompt: {names})"
            )
        return self.prompt_format.fill(values.__getitem__)

    def render(self, example: Example) -> tuple[Span, ...]:
        response = Span(example.response, is_learned=True)
        if not example.prompt:
            return (response,)
        return Span(self.wrap(example.prompt[-1].content, example.columns), is_learned=False), response

    def render_answers(self, example: Example) -> Sequence[tuple[Span, ...]]:
        return (self.render(example),)


class ChatRenderer:
    """Renders a conversation with the tokenizer's chat template, which includes the special tokens.

    All assistant messages are learned. If the template renders an earlier turn differently when later turns follow
    (some templates drop earlier reasoning, or write EOS only at the end), each of them is rendered as the last one.
    """

    adds_special_tokens = False

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", prompt_format: PromptFormat) -> None:
        self._template = ChatTemplate(tokenizer)
        self._format = prompt_format
        self.usage = TemplateUsage(self._template)

    def wrap(self, prompt: str, columns: Mapping[str, str]) -> str:
        if columns:
            raise CannotRender(f"the model's chat template has no column {next(iter(columns))!r}")
        system = (Message(SYSTEM, self._format.system),) if self._format.system else ()
        asked = Conversation((*system, Message(USER, prompt)), self._format.tools)
        return self._template.apply(asked, is_prompt=True)

    def render(self, example: Example) -> tuple[Span, ...]:
        conversation = _conversation(example)
        whole, spans = self._locate(conversation)
        self.usage.check(conversation, whole)
        return spans

    def render_answers(self, example: Example) -> Sequence[tuple[Span, ...]]:
        last = self.render(example)
        answers = _conversation(example).learned
        if sum(span.is_learned for span in last) >= len(answers):
            return (last,)
        # The check of the whole conversation has judged each message as the last one.
        earlier = (self._locate(_conversation(example.up_to(index)))[1] for index in answers[:-1])
        return (*earlier, last)

    def _locate(self, conversation: Conversation) -> tuple[str, tuple[Span, ...]]:
        """The conversation's text, and its spans."""
        whole = self._template.apply(conversation)
        answers = conversation.learned
        bounds = [self._bounds(conversation, index) for index in answers]
        if not whole.startswith(bounds[-1][0]) or not whole[len(bounds[-1][0]) :].strip():
            raise CannotRender(
                "the chat template renders the prompt differently when the response follows, so the response cannot be "
                "located; set spec.dataset.template to a text with {instruction}, or use another base model"
            )
        bounds[-1] = bounds[-1][0], whole
        if not all(whole.startswith(text) for pair in bounds for text in pair):
            bounds = bounds[-1:]
        return whole, _spans(whole, [(len(before), len(after)) for before, after in bounds])

    def _bounds(self, conversation: Conversation, index: int) -> tuple[str, str]:
        """The conversation up to the start of the assistant message at `index`, and up to its end."""
        before = self._template.apply(conversation.first(index), is_prompt=True)
        return before, self._template.apply(conversation.first(index + 1))


def _conversation(example: Example) -> Conversation:
    answer = Message(ASSISTANT, example.response, example.response_fields)
    return Conversation((*example.prompt, answer), example.tools)


def _spans(whole: str, learned: Sequence[tuple[int, int]]) -> tuple[Span, ...]:
    spans: list[Span] = []
    position = 0
    for begin, end in learned:
        spans.append(Span(whole[position:begin], is_learned=False))
        spans.append(Span(whole[begin:end], is_learned=True))
        position = end
    return tuple(span for span in spans if span.text)

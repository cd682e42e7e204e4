"""The tokenizer's chat template, applied to conversations with all their fields."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgetune_jobs.data.chat.messages import ASSISTANT, TOOL_CALLS, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class CannotRender(Exception):
    """The template cannot render this example; the message is the reason."""


@dataclass(frozen=True)
class Conversation:
    """What a chat template gets."""

    messages: tuple[Message, ...]
    tools: Sequence[Mapping[str, Any]] = ()

    @property
    def learned(self) -> list[int]:
        """Indexes of the messages that are learned."""
        return [
            index for index, message in enumerate(self.messages) if message.role == ASSISTANT and message.is_learned
        ]

    def first(self, number: int) -> "Conversation":
        """Its first messages."""
        return Conversation(self.messages[:number], self.tools)

    def with_message(self, index: int, message: Message) -> "Conversation":
        """The conversation with another message at `index`."""
        return Conversation((*self.messages[:index], message, *self.messages[index + 1 :]), self.tools)


class ChatTemplate:
    """Renders conversations as text."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", text: str | None = None) -> None:
        """`text` is another template than the tokenizer's own."""
        self._tokenizer = tokenizer
        self._text = text

    def apply(self, conversation: Conversation, *, is_prompt: bool = False) -> str:
        """The text of a conversation.

        Args:
            conversation: messages and tools.
            is_prompt: append the beginning of an answer.

        Raises:
            CannotRender: the template rejects the conversation, or fails.
        """
        calls = [call for message in conversation.messages for call in message.fields.get(TOOL_CALLS, ())]
        arguments = [call["function"]["arguments"] for call in calls if call["function"]["arguments"]]
        turns = [
            {"role": message.role, "content": message.content, **message.fields} for message in conversation.messages
        ]
        if not arguments:
            return self._apply(turns, conversation.tools, is_prompt)
        try:
            rendered = self._apply(turns, conversation.tools, is_prompt)
        except CannotRender:
            return self._apply(_with_text_arguments(turns), conversation.tools, is_prompt)
        # Some templates write arguments as they are, and expect the text of their JSON: DeepSeek's, for example.
        if any(repr(each) in rendered and repr(each) != json.dumps(each) for each in arguments):
            return self._apply(_with_text_arguments(turns), conversation.tools, is_prompt)
        return rendered

    def _apply(self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], is_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(turns),
                    tools=list(tools) or None,
                    chat_template=self._text,
                    tokenize=False,
                    add_generation_prompt=is_prompt,
                )
            )
        except MemoryError:
            raise
        except TemplateError as error:
            raise CannotRender(f"the base model's chat template rejects it: {error}") from error
        except Exception as error:  # a template is a program, whose expressions can raise anything
            raise CannotRender(f"the base model's chat template fails on it: {error}") from error


def _with_text_arguments(turns: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The same messages with the arguments of tool calls as JSON text."""
    return [
        {**turn, TOOL_CALLS: [_with_text(call) for call in turn[TOOL_CALLS]]} if TOOL_CALLS in turn else turn
        for turn in turns
    ]


def _with_text(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}

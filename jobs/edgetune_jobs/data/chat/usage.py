"""Finds what a chat template does not use of a conversation: it is refused, or named."""

from collections import Counter
from dataclasses import replace

from edgetune_jobs.data.chat.messages import ASSISTANT, USER, Message
from edgetune_jobs.data.chat.template import CannotRender, ChatTemplate, Conversation

# Fields of messages that are part of what is said. Others, such as name and tool_call_id, are named if unused.
_SAID = ("tool_calls", "reasoning_content", "reasoning", "thinking", "refusal", "function_call", "audio")
# Rendering again for every row would double the time; after so many rows a template is known.
_MOST_TRIED = 20


class TemplateUsage:
    """Finds fields that a template does not use, by rendering without them: the text is then the same."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._used: set[str] = set()
        """Roles and names of fields that changed the text."""

        self._unused: Counter[str] = Counter()

    @property
    def unused_fields(self) -> dict[str, int]:
        """Fields of messages that never changed the text, with the number of messages that have them."""
        return {name: number for name, number in self._unused.items() if f".{name}" not in self._used}

    def check(self, conversation: Conversation, whole: str) -> None:
        """Check that the template uses everything that is said in a conversation.

        Args:
            conversation: the conversation.
            whole: its text.

        Raises:
            CannotRender: it does not use the tools, a message, or a field of a message.
        """
        if conversation.tools and self._text(Conversation(conversation.messages)) == whole:
            raise CannotRender(f"the base model's chat template does not use tools; {_ADVICE}")
        for index, message in enumerate(conversation.messages):
            self._check_content(conversation, whole, index, message)
            self._check_fields(conversation, index, message)

    def _check_content(self, conversation: Conversation, whole: str, index: int, message: Message) -> None:
        content = message.content.strip()
        if not content or (message.role in self._used and content in whole):
            return
        # Templates may also drop what earlier answers said, so an answer is judged as the last message.
        judged = conversation.first(index + 1) if message.role == ASSISTANT else conversation
        if self._text(judged.with_message(index, replace(message, content=""))) != self._text(judged):
            self._used.add(message.role)
            return
        if message.role in (USER, ASSISTANT):
            beside = f" beside {', '.join(message.fields)}" if message.fields else ""
            what = f"the content of message {index} ({message.role}{beside})"
        else:
            what = f"messages of role {message.role}"
        raise CannotRender(f"the base model's chat template does not use {what}; {_ADVICE}")

    def _check_fields(self, conversation: Conversation, index: int, message: Message) -> None:
        if not message.fields:
            return
        # Templates may drop the reasoning of earlier turns, so a message is judged as the last one.
        until = conversation.first(index + 1)
        text = self._text(until)
        if text is None:
            until = conversation
            text = self._text(until)
        for name in message.fields:
            said = name in _SAID
            if not said and (f".{name}" in self._used or self._unused[name] >= _MOST_TRIED):
                self._unused[name] += 1
                continue
            others = {other: value for other, value in message.fields.items() if other != name}
            without = until.with_message(index, replace(message, fields=others))
            if self._text(without) != text:
                self._used.add(f".{name}")
            elif said:
                raise CannotRender(
                    f"the base model's chat template does not use {name} of message {index} ({message.role}); {_ADVICE}"
                )
            else:
                self._unused[name] += 1

    def _text(self, conversation: Conversation) -> str | None:
        """The text; None if the template rejects the conversation, which also shows that it looks at it."""
        try:
            return self._template.apply(conversation)
        except CannotRender:
            return None


_ADVICE = "use a base model whose template does, or remove them from the data"

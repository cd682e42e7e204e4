"""The chat template of a tuned model, which renders a user's message as the prompt that training used.

A template of the spec becomes one in Jinja. A chat template of the base stays; if all conversations of the training
data share a system message, it becomes the default.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgetune_contract.spec import CHAT_TEMPLATE, RowFormat
from edgetune_jobs.data.chat.messages import SYSTEM, USER, Message
from edgetune_jobs.data.chat.template import CannotRender, ChatTemplate, Conversation
from edgetune_jobs.data.prompt_format import INSTRUCTION, PromptFormat
from edgetune_jobs.data.tokenization import leading_ids, prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = "columns"
"""Variable of the template with the values of the columns besides the instruction."""

_BOS = "{{- bos_token -}}\n"
_SPACE = "{{- ' ' -}}\n"
_ESCAPES = str.maketrans({"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_SAMPLES = ("a", "Name the fault.", "1. P-17:\n 9.3 mm/s")


@dataclass(frozen=True)
class TrainedTemplate:
    """A chat template in Jinja."""

    text: str
    warnings: tuple[str, ...] = ()

    @property
    def for_llama_cpp(self) -> str:
        """The template for llama.cpp, which itself adds the space that some tokenizers lack after a special token."""
        return self.text.replace(_BOS + _SPACE, _BOS, 1)


def trained_template(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> TrainedTemplate | None:
    """The chat template for a tuned model; None if the base's stays.

    Args:
        prompt_format: how prompts were wrapped in training.
        tokenizer: the model's, with the chat template of the base.
    """
    if prompt_format.format is RowFormat.CHAT:
        return _with_default_system(prompt_format.system, tokenizer) if prompt_format.system else None
    if prompt_format.format is RowFormat.TEXT or prompt_format.template == CHAT_TEMPLATE:
        return None
    return _of_instructions(prompt_format, tokenizer)


def text_literal(text: str) -> str:
    """A text as a string in Jinja, for the libraries of Python and for llama.cpp's own."""
    return f"'{text.translate(_ESCAPES)}'"


def _of_instructions(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase") -> TrainedTemplate:
    """The first template whose prompts have exactly the tokens of training: they differ in what begins a prompt."""
    first = leading_ids(tokenizer)
    if first == [tokenizer.bos_token_id]:
        begin = _BOS
    else:
        begin = "".join(f"{{{{- {text_literal(text)} -}}}}\n" for text in tokenizer.convert_ids_to_tokens(first))
    templates = [_instruction_template(prompt_format, start) for start in ("", begin, begin + _SPACE)]
    for template in templates:
        if all(_gives_tokens_of_training(template, prompt_format, tokenizer, sample) for sample in _SAMPLES):
            return TrainedTemplate(template)
    return TrainedTemplate(
        templates[1],
        (
            "the tokenizer gives other tokens for a prompt of the chat template than for a prompt of training: use "
            "edgetune generate, or a runtime with the prompt as text",
        ),
    )


def _instruction_template(prompt_format: PromptFormat, begin: str) -> str:
    """Each of the user's messages as a prompt of training, each answer with EOS, and other instructions before them."""
    values = f"{{%- set values = {COLUMNS} if {COLUMNS} is defined else {{}} -%}}\n" if prompt_format.columns else ""
    prompt = "".join(
        f"{{{{- {_value(text) if is_column else text_literal(text)} -}}}}\n"
        for text, is_column in prompt_format.pieces()
    )
    return (
        f"{values}{begin}"
        "{%- for message in messages -%}\n"
        "{%- if message['role'] == 'user' -%}\n"
        f"{prompt}"
        "{%- elif message['role'] == 'assistant' -%}\n"
        "{{- message['content'] -}}{{- eos_token -}}\n"
        "{%- elif message['role'] in ['system', 'developer'] -%}\n"
        "{{- message['content'] -}}{{- '\\n\\n' -}}\n"
        "{%- else -%}\n"
        "{{- raise_exception('this model was trained on prompts without messages of role ' + message['role']) -}}\n"
        "{%- endif -%}\n"
        "{%- endfor -%}"
    )


def _value(column: str) -> str:
    return "message['content']" if column == INSTRUCTION else f"values.get({text_literal(column)}, '')"


def _gives_tokens_of_training(
    template: str, prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase", sample: str
) -> bool:
    columns = dict.fromkeys(prompt_format.columns, sample)
    rendered = tokenizer.apply_chat_template(
        [{"role": USER, "content": sample}],
        chat_template=template,
        add_generation_prompt=True,
        return_dict=True,
        **{COLUMNS: columns},
    )
    return list(rendered["input_ids"]) == prompt_ids(prompt_format, tokenizer, sample, columns)


def _with_default_system(system: str, tokenizer: "PreTrainedTokenizerBase") -> TrainedTemplate | None:
    """The base's template, which begins with `system` if a conversation has no system message of its own."""
    original = tokenizer.get_chat_template()
    default = (
        "{%- if messages and messages[0]['role'] not in ['system', 'developer'] -%}"
        f"{{%- set messages = [{{'role': 'system', 'content': {text_literal(system)}}}] + messages -%}}"
        "{%- endif %}"
    )
    if original.startswith(default):
        return None
    asked = Message(USER, _SAMPLES[0])
    expected = _render(tokenizer, original, Conversation((Message(SYSTEM, system), asked)))
    if expected and _render(tokenizer, default + original, Conversation((asked,))) == expected:
        return TrainedTemplate(default + original)
    return TrainedTemplate(
        original,
        (
            "the chat template cannot begin with the system message of the training data by itself: send it with each "
            "conversation",
        ),
    )


def _render(tokenizer: "PreTrainedTokenizerBase", template: str, conversation: Conversation) -> str:
    """A conversation's prompt; empty if the template rejects it."""
    try:
        return ChatTemplate(tokenizer, template).apply(conversation, is_prompt=True)
    except CannotRender:
        return ""

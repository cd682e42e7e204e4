"""Ollama's Modelfile of a GGUF model: the prompt of training as a template of Go, stop words, and settings as scored.

Ollama would read the chat template of the GGUF file only if it knew it: it has no Jinja. A chat template of the base is
therefore translated by its effect on a conversation whose texts can be found again.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_contract.spec import CHAT_TEMPLATE, RowFormat
from edgetune_jobs.data.chat.messages import ASSISTANT, SYSTEM, USER, Message
from edgetune_jobs.data.chat.template import CannotRender, ChatTemplate, Conversation
from edgetune_jobs.data.prompt_format import INSTRUCTION, PromptFormat
from edgetune_jobs.wording import some

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODELFILE = "Modelfile"

# Two quotes in a row could end the Modelfile's string, two braces begin an action; a piece may be followed by either.
_SPECIAL_IN_TEMPLATE = re.compile(r'\{(?=\{|\Z)|"(?="|\Z)|\A"|\r')
_SYSTEM, _FIRST, _ANSWER, _SECOND = "edgetune-system", "edgetune-first", "edgetune-answer", "edgetune-second"


@dataclass(frozen=True)
class RuntimeSettings:
    """What Ollama must know besides the prompt."""

    file: str
    """Name of the model's GGUF file in the same folder."""

    adds_bos: bool
    """Whether the runtime adds BOS itself."""

    ends: tuple[int, ...]
    """Ids of the tokens that end an answer."""

    context_length: int
    """Tokens of prompt and answer."""

    adapter: str = ""
    """Name of the file of an adapter for the model; empty if there is none."""


def modelfile(prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase", settings: RuntimeSettings) -> str:
    """The text of a Modelfile.

    Args:
        prompt_format: how prompts were wrapped in training.
        tokenizer: the model's, with the chat template of training.
        settings: of the runtime.
    """
    template = _template(prompt_format, tokenizer, settings)
    lines = ["# ollama create NAME -f Modelfile", *_notes(prompt_format, template), f"FROM ./{settings.file}"]
    if settings.adapter:
        lines.append(f"ADAPTER ./{settings.adapter}")
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    # Greedy, as the model was scored: Ollama's defaults sample, and penalize repetitions.
    lines += ["PARAMETER temperature 0", "PARAMETER repeat_penalty 1.0", f"PARAMETER num_ctx {settings.context_length}"]
    ends = tokenizer.convert_ids_to_tokens(list(dict.fromkeys(settings.ends)))
    lines += [f'PARAMETER stop """{end}"""' for end in ends if '"' not in end]
    return "\n".join(lines) + "\n"


def write_modelfile(
    folder: Path, prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase", settings: RuntimeSettings
) -> None:
    """Write the Modelfile of a model folder; see `modelfile`."""
    text = modelfile(prompt_format, tokenizer, settings)
    (folder / MODELFILE).write_text(text, encoding="utf-8", newline="")


def _notes(prompt_format: PromptFormat, template: str | None) -> list[str]:
    if template is None:
        return ["# Its chat template cannot be written as a template of Ollama: use llama-server for conversations."]
    if prompt_format.columns:
        # Names have no line ends: see PromptFormat.
        return [f"# Ollama has no values for the columns {some(prompt_format.columns)}: they are empty in its prompts."]
    return []


def _template(
    prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase", settings: RuntimeSettings
) -> str | None:
    """The template of Go; None if there is none for the chat template."""
    if prompt_format.format is RowFormat.TEXT:
        return "{{ .Prompt }}"
    if prompt_format.format is RowFormat.CHAT or prompt_format.template == CHAT_TEMPLATE:
        return _chat_template(tokenizer, settings)
    pieces = (
        ("{{ .Prompt }}" if text == INSTRUCTION else "") if is_column else _text(text)
        for text, is_column in prompt_format.pieces()
    )
    system = "{{ if .System }}{{ .System }}\n\n{{ end }}"
    return f"{system}{''.join(pieces)}{{{{ .Response }}}}{_text(str(tokenizer.eos_token))}"


def _text(text: str) -> str:
    """A text in a template of Go in a Modelfile."""
    return _SPECIAL_IN_TEMPLATE.sub(
        lambda match: '{{ "\\r" }}' if match[0] == "\r" else f"{{{{ `{match[0]}` }}}}", text
    )


def _chat_template(tokenizer: "PreTrainedTokenizerBase", settings: RuntimeSettings) -> str | None:
    """A template that gives the same prompts for conversations of user and assistant, with or without a system message.

    Messages become the same text again: what a template does with their content, such as trimming it, is left out.
    """
    if "strftime_now" in str(tokenizer.get_chat_template()):  # its prompts have today's date
        return None
    first, answer, second = Message(USER, _FIRST), Message(ASSISTANT, _ANSWER), Message(USER, _SECOND)
    single = _rendered(tokenizer, first)
    talk = _rendered(tokenizer, first, answer, second)
    with_system = _rendered(tokenizer, Message(SYSTEM, _SYSTEM), first)
    begin, asked, ask = single.partition(_FIRST)
    found = re.fullmatch(f"(?s:{re.escape(begin + _FIRST)}(.*){_ANSWER}(.*){_SECOND}{re.escape(ask)})", talk)
    if not asked or found is None:
        return None
    between, after = found.groups()
    bos = str(tokenizer.bos_token) if settings.adds_bos and tokenizer.bos_token else ""
    start = _text(begin.removeprefix(bos))
    system, has_system, rest = with_system.partition(_SYSTEM)
    if has_system and rest.endswith(_FIRST + ask):
        rest = rest.removesuffix(_FIRST + ask)
        own = f"{_text(system.removeprefix(bos))}{{{{ $.System }}}}{_text(rest)}"
        start = f"{{{{ if $.System }}}}{own}{{{{ else }}}}{start}{{{{ end }}}}"
    last = "{{ if eq (len (slice $.Messages $i)) 1 }}" + _text(ask) + "{{ else }}" + _text(between) + "{{ end }}"
    return (
        "{{ $first := true }}{{ range $i, $_ := .Messages }}"
        f'{{{{ if eq .Role "user" }}}}{{{{ if $first }}}}{start}{{{{ $first = false }}}}{{{{ else }}}}{_text(after)}'
        f"{{{{ end }}}}{{{{ .Content }}}}{_text(ask) if ask == between else last}"
        '{{ else if eq .Role "assistant" }}{{ .Content }}{{ end }}{{ end }}'
    )


def _rendered(tokenizer: "PreTrainedTokenizerBase", *messages: Message) -> str:
    """The prompt of a conversation; empty if the template rejects it."""
    try:
        return ChatTemplate(tokenizer).apply(Conversation(messages), is_prompt=True)
    except CannotRender:
        return ""

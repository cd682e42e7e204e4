"""What all conversations of the training data share: inference must begin with it too."""

from collections.abc import Sequence

from edgetune_contract.spec import RowFormat
from edgetune_jobs.data.chat.messages import SYSTEM
from edgetune_jobs.data.examples import Example
from edgetune_jobs.data.prompt_format import PromptFormat


def with_shared_context(prompt_format: PromptFormat, examples: Sequence[Example]) -> PromptFormat:
    """The prompt format with the system message and the tools that all examples share; without those that differ."""
    if prompt_format.format is not RowFormat.CHAT or not examples:
        return prompt_format
    first = examples[0]
    system = _system(first)
    return prompt_format.model_copy(
        update={
            "system": system if all(_system(example) == system for example in examples) else "",
            "tools": first.tools if all(example.tools == first.tools for example in examples) else (),
        }
    )


def differing_context(prompt_format: PromptFormat, examples: Sequence[Example]) -> list[str]:
    """A warning about system messages or tools that are in some prompts of the training data only.

    Args:
        prompt_format: the format with what all examples share.
        examples: training examples.
    """
    differing = [
        *(["system messages"] if not prompt_format.system and any(_system(example) for example in examples) else []),
        *(["tools"] if not prompt_format.tools and any(example.tools for example in examples) else []),
    ]
    if prompt_format.format is not RowFormat.CHAT or not differing:
        return []
    return [
        f"the {' and '.join(differing)} of the training rows differ, so edgetune generate uses none: "
        "prompts without them are unlike those of training"
    ]


def _system(example: Example) -> str:
    """Content of the system message; empty if there is none."""
    return example.prompt[0].content if example.prompt and example.prompt[0].role == SYSTEM else ""

"""Answers of a model, as users get them."""

from pathlib import Path


def answer(model: Path, prompt: str, max_new_tokens: int) -> str:
    """The whole answer of a merged or edge model to a prompt."""
    from edgetune_jobs.evaluation.text_generation import stream_answer

    return "".join(stream_answer(model, prompt, max_new_tokens))

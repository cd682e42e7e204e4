"""The answer of a merged or edge model to one prompt, for the command line."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import Any

from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.data.tokenization import prompt_ids
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.evaluation import decoding, inference
from edgetune_jobs.models import loading


def stream_answer(
    model: Path, prompt: str, max_new_tokens: int, columns: Mapping[str, str] = MappingProxyType({})
) -> Iterator[str]:
    """The model's greedy answer, streamed as pieces of text.

    Args:
        model: folder of a merged or edge model, with edgetune.json.
        prompt: the question alone; it is wrapped in the template of the training rows.
        max_new_tokens: maximum length of the answer in tokens.
        columns: values of the template's other columns.

    Raises:
        InvalidInput: the folder has no model of edgetune, or the prompt is empty or too long for the model, or the
            template has other columns.
    """
    prompt_format = PromptFormat.read(model)
    if not prompt.strip():
        raise InvalidInput("the prompt is empty; give some text")
    device = loading.choose_device()
    tokenizer = loading.load_tokenizer(model, str(model))
    loaded = loading.load_stored(model, device)
    import torch
    from transformers import TextIteratorStreamer

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    tokens = prompt_ids(prompt_format, tokenizer, prompt, columns)
    limit = inference.position_limit(loaded)
    if limit is not None and len(tokens) >= limit:
        raise InvalidInput(f"the prompt has {len(tokens):,} tokens, but the model has {limit:,} positions; shorten it")
    room = inference.room_for_answer(len(tokens), max_new_tokens, limit)
    ids = torch.tensor([tokens], device=device)
    options: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "generation_config": decoding.greedy_settings(loaded, tokenizer, room),
        "streamer": streamer,
    }
    failure: list[BaseException] = []

    def work() -> None:
        try:
            with torch.inference_mode():
                loaded.generate(**options)
        except BaseException as error:  # noqa: BLE001 - raised in the reader's thread
            failure.append(error)
            streamer.end()

    worker = Thread(target=work, daemon=True)
    worker.start()
    yield from streamer
    worker.join()
    if failure:
        raise failure[0]

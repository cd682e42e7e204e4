"""Greedy answers and losses of a causal language model, in batches."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TokenIds = Sequence[int]

# Bounds the memory of keys and values: a model of 7 billion parameters keeps about 0.5 MB a token.
_MOST_TOKENS = 16_384
# Bounds the memory of logits when losses are computed: 1 GiB in float32.
_MOST_LOGITS = 2**28


def greedy_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[TokenIds],
    *,
    max_new_tokens: int,
    batch_size: int,
    on_rows: Callable[[int], None] = lambda _: None,
) -> list[str]:
    """Most likely answer to each prompt, token by token up to EOS or `max_new_tokens`, in the order of the prompts.

    Prompts of like length share a batch, padded on the left; `on_rows` is told the size of each finished batch.
    """
    import torch

    settings = greedy_settings(model, tokenizer, max_new_tokens)
    answers = [""] * len(prompts)
    for rows in batches([len(prompt) + max_new_tokens for prompt in prompts], batch_size):
        ids, mask = _pad_left([prompts[row] for row in rows], tokenizer.pad_token_id, model.device)
        with torch.inference_mode():
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
        texts = tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            answers[row] = text
        on_rows(len(rows))
    return answers


def mean_loss(
    model: "PreTrainedModel",
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    *,
    pad_token_id: int,
    batch_size: int,
    on_rows: Callable[[int], None] = lambda _: None,
) -> float | None:
    """Mean cross-entropy over all completion tokens in nats, in float32; None without any token to predict.

    The first token of a completion without a prompt has nothing before it and is left out.
    """
    import torch
    from torch.nn.functional import cross_entropy

    total, tokens = 0.0, 0
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    for rows in batches(lengths, batch_size, _MOST_LOGITS // model.get_output_embeddings().weight.shape[0]):
        ids, mask = _pad_left([[*prompts[row], *completions[row]] for row in rows], pad_token_id, model.device)
        learned = torch.zeros_like(mask)
        for index, row in enumerate(rows):
            length = len(completions[row]) if prompts[row] else len(completions[row]) - 1
            learned[index, ids.shape[1] - length :] = 1
        # Completions end at the right edge, so logits are only needed for the last columns.
        columns = min(ids.shape[1], max(len(completions[row]) for row in rows) + 1)
        with torch.inference_mode():
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                logits_to_keep=columns,
                use_cache=False,
                **_positions(model, mask),
            ).logits
            losses = cross_entropy(
                logits[:, :-1].float().flatten(0, 1), ids[:, -columns:][:, 1:].flatten(), reduction="none"
            )
        kept = learned[:, -columns:][:, 1:].flatten().bool()
        total += losses[kept].double().sum().item()
        tokens += int(kept.sum())
        on_rows(len(rows))
    return total / tokens if tokens else None


def greedy_settings(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", max_new_tokens: int) -> Any:
    """Generation settings for plain greedy decoding, with every end token of model and tokenizer.

    The model's own settings, such as a temperature or a penalty for repetitions, are put aside: all models are to be
    scored by the same rule.
    """
    from transformers import GenerationConfig

    configured = model.generation_config.eos_token_id if model.generation_config else None
    ends = configured if isinstance(configured, list) else [configured]
    eos = sorted({token for token in [tokenizer.eos_token_id, *ends] if token is not None})
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=tokenizer.pad_token_id)
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=eos,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )


def batches(lengths: Sequence[int], most_rows: int, most_tokens: int = _MOST_TOKENS) -> Iterator[list[int]]:
    """Row numbers in batches of like length, longest first, so that running out of memory shows at once.

    A batch has at most `most_rows` rows and, padded, `most_tokens` tokens, and never more than _MOST_TOKENS; a longer
    row is a batch of its own.
    """
    bound = min(most_tokens, _MOST_TOKENS)
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        rows = max(1, min(most_rows, bound // max(1, lengths[order[start]])))
        yield order[start : start + rows]
        start += rows


def _positions(model: "PreTrainedModel", mask: "torch.Tensor") -> "dict[str, torch.Tensor]":
    """Position of each token in its own row, for models that take it: padding on the left must not shift the text."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        return {}
    return {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}


def _pad_left(
    rows: Sequence[TokenIds], pad_token_id: int, device: "torch.device"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Token ids and attention mask, int64 [rows, longest row]."""
    import torch

    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad_token_id] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask

"""Forward passes of a causal language model over prompts with completions, in batches."""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgetune_jobs.errors import is_out_of_gpu_memory
from edgetune_jobs.evaluation.drafts import agreement
from edgetune_jobs.evaluation.pace import OnBatch
from edgetune_jobs.models.loading import free_memory

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

TokenIds = Sequence[int]

# Bounds the memory of the KV cache: a model with 7 billion parameters uses about 0.5 MB per token.
_MOST_TOKENS = 16_384
# Bounds the memory of logits while losses are computed: 1 GiB in float32.
_MOST_LOGITS = 2**28
# Names of position tables in transformers: embed_positions, position_embeddings, wpe, positions_embed.
_POSITION_TABLE = re.compile(r"(^|\.)(wpe|embed_positions?|positions?_embed(ding)?s?)(\.|$)")


@dataclass(frozen=True)
class TeacherForced:
    """Results of one pass over prompts with given completions."""

    total: float
    """Sum of the cross-entropy over all completion tokens in nats, each in float32."""

    tokens: int
    """Number of completion tokens that are predicted."""

    greedy: list[list[int]]
    """For each row the first token ids of the model's greedy answer: those in which it agrees with the completion, and
    the first one that differs. Empty without a prompt."""

    @property
    def loss(self) -> float | None:
        """Mean cross-entropy over all completion tokens in nats; None if there is no token to predict."""
        return self.total / self.tokens if self.tokens else None


def teacher_forced(
    model: "PreTrainedModel",
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    *,
    pad_token_id: int,
    batch_size: int,
    on_batch: OnBatch = lambda *_: None,
    most_logits: int = _MOST_LOGITS,
) -> TeacherForced:
    """Loss of completions, and how far the model would answer with them, from one forward pass over each row.

    The first token of a completion without a prompt has no context and is left out. At most `most_logits` logits are
    in memory at once.
    """
    total, tokens, read = 0.0, 0, 0
    greedy: list[list[int]] = [[] for _ in prompts]

    def add(rows: Sequence[int]) -> None:
        nonlocal total, tokens, read
        ids, mask = pad_left([[*prompts[row], *completions[row]] for row in rows], pad_token_id, model.device)
        # Completions are right-aligned: only their columns need logits.
        learned = [len(completions[row]) if prompts[row] else len(completions[row]) - 1 for row in rows]
        losses, choices = _last_predictions(model, ids, mask, max(learned), most_logits)
        for row, row_losses, row_choices, count in zip(rows, losses, choices.tolist(), learned, strict=True):
            total += row_losses[len(row_losses) - count :].double().sum().item()
            tokens += count
            if prompts[row]:
                greedy[row] = agreement(completions[row], row_choices[len(row_choices) - count :])
        read += sum(lengths[row] for row in rows)

    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    for count in in_batches(add, lengths, batch_size, most_logits // _vocabulary(model)):
        on_batch(count, read / sum(lengths))
    return TeacherForced(total, tokens, greedy)


def position_limit(model: "PreTrainedModel") -> int | None:
    """The number of positions for which a model has learned or stored embeddings; None if positions are computed.

    Beyond it, the model fails with an index error. Rotary and relative positions are computed.
    """
    from torch import nn

    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(positions, int):
        return None
    tables = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and _POSITION_TABLE.search(name) and module.num_embeddings >= positions
    ]
    tables += [
        buffer.shape[0]
        for name, buffer in model.named_buffers()
        if _POSITION_TABLE.search(name) and buffer.dim() == 2 and buffer.shape[0] == positions
    ]
    return min(positions, *tables) if tables else None


def room_for_answer(prompt_tokens: int, max_new_tokens: int, limit: int | None) -> int:
    """Maximum number of tokens of an answer: fewer than `max_new_tokens` if the positions end before, at least 1."""
    return max_new_tokens if limit is None else max(1, min(max_new_tokens, limit - prompt_tokens))


def in_batches(
    work: Callable[[Sequence[int]], None], lengths: Sequence[int], most_rows: int, most_tokens: int = _MOST_TOKENS
) -> Iterator[int]:
    """Call `work` with row numbers in batches of similar length, longest first; yields the size of each finished batch.

    A batch has at most `most_rows` rows and, padded, at most `most_tokens` and _MOST_TOKENS tokens; a longer row is a
    batch of its own. If a batch does not fit into GPU memory, it and all later batches are halved; if a single row does
    not fit, the error is raised.
    """
    bound = min(most_tokens, _MOST_TOKENS)
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        count = max(1, min(most_rows, bound // max(1, lengths[order[start]])))
        rows = order[start : start + count]
        if _fits(work, rows):
            yield len(rows)
            start += len(rows)
        else:
            most_rows = len(rows) // 2


def _fits(work: Callable[[Sequence[int]], None], rows: Sequence[int]) -> bool:
    """Call `work`; False if the rows do not fit into GPU memory, but fewer rows may."""
    try:
        work(rows)
        return True
    except RuntimeError as error:
        if len(rows) == 1 or not is_out_of_gpu_memory(error):
            raise
    free_memory()  # outside of the except block, where the traceback no longer references the failed pass
    return False


def _last_predictions(
    model: "PreTrainedModel", ids: "torch.Tensor", mask: "torch.Tensor", count: int, most_logits: int
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Cross-entropy of the last `count` tokens of each row, float32, and the tokens with the largest logits in their
    places, int64; both [rows, count], with bounded memory for logits.

    If not all logits may be in memory at once, the model runs once for each part of them.
    """
    import torch
    from torch.nn.functional import cross_entropy

    rows, length = ids.shape
    losses = [torch.empty(rows, 0, device=ids.device)]
    choices = [torch.empty(rows, 0, device=ids.device, dtype=torch.int64)]
    step = max(1, most_logits // (_vocabulary(model) * rows))
    with torch.inference_mode():
        for begin in range(length - 1 - count, length - 1, step):
            columns = torch.arange(begin, min(begin + step, length - 1), device=ids.device)
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                logits_to_keep=columns,
                use_cache=False,
                **_positions(model, mask),
            ).logits.float()
            each = cross_entropy(logits.flatten(0, 1), ids[:, columns + 1].flatten(), reduction="none")
            losses.append(each.view(rows, -1))
            choices.append(logits.argmax(dim=-1))
    return torch.cat(losses, dim=1), torch.cat(choices, dim=1)


def _vocabulary(model: "PreTrainedModel") -> int:
    return int(model.get_output_embeddings().weight.shape[0])


def _positions(model: "PreTrainedModel", mask: "torch.Tensor") -> "dict[str, torch.Tensor]":
    """Position of each token in its row without the padding on the left, for models with `position_ids`."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "position_ids" not in inspect.signature(inner.forward).parameters:
        return {}
    return {"position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0)}


def pad_left(
    rows: Sequence[TokenIds], pad_token_id: int, device: "torch.device"
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Token ids of rows, padded on the left, and their attention mask; both int64 [rows, longest row]."""
    import torch

    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad_token_id] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask

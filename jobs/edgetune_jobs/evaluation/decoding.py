"""Greedy answers of a causal language model, decoded token by token only where no draft has the tokens already."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgetune_jobs.evaluation.drafts import continues, cut, is_finished, loop
from edgetune_jobs.evaluation.inference import (
    TokenIds,
    in_batches,
    pad_left,
    position_limit,
    room_for_answer,
    teacher_forced,
)
from edgetune_jobs.evaluation.pace import OnBatch, expected_tokens

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

# After so many steps, and each time after twice as many, finished rows leave their batches. The others start again with
# one forward pass over prompt and answer so far, which costs as much as some steps.
_FIRST_STEPS = 32


def greedy_answers(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[TokenIds],
    *,
    max_new_tokens: int,
    batch_size: int,
    begun: Sequence[TokenIds] | None = None,
    drafts: Sequence[TokenIds] | None = None,
    on_batch: OnBatch = lambda *_: None,
) -> list[list[int]]:
    """Token ids of the greedy answer to each prompt: up to and with an end token, `max_new_tokens` or the model's last
    position, in the order of the prompts.

    Begun answers and drafts save time and change no answer, apart from rounding: forward passes over other numbers of
    tokens add floats in another order, and may choose another token where two logits are equal within rounding.

    Args:
        model: the model; its own generation settings are replaced.
        tokenizer: the model's.
        prompts: token ids; equal prompts are answered once.
        max_new_tokens: maximum length of an answer.
        batch_size: maximum number of prompts in a batch; prompts of similar length share one, padded on the left.
        begun: first tokens of each answer, as `TeacherForced.greedy` has them.
        drafts: answers that the model probably gives too, such as those of the model that it was made from. One
            forward pass checks all tokens of a draft.
        on_batch: called after each batch.
    """
    decoding = _Decoding(model, tokenizer, prompts, max_new_tokens, batch_size, on_batch)
    if begun is not None:
        for row, tokens in enumerate(begun):
            decoding.take(row, tokens)
    if drafts is not None:
        decoding.check(drafts)
    return decoding.run()


class _Decoding:
    """Answers to distinct prompts, which grow until all are finished."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        prompts: Sequence[TokenIds],
        max_new_tokens: int,
        batch_size: int,
        on_batch: OnBatch,
    ) -> None:
        self._model, self._prompts, self._batch_size, self._on_batch = model, prompts, batch_size, on_batch
        self._pad = tokenizer.pad_token_id
        self._settings = greedy_settings(model, tokenizer, max_new_tokens)
        self._ends = frozenset(self._settings.eos_token_id)
        self._limit = position_limit(model)
        self._rooms = [room_for_answer(len(prompt), max_new_tokens, self._limit) for prompt in prompts]
        self._answers: list[list[int]] = [[] for _ in prompts]
        firsts: dict[tuple[int, ...], int] = {}
        self._first = [firsts.setdefault(tuple(prompt), row) for row, prompt in enumerate(prompts)]
        """For each row the first one with the same prompt, which has the answer of both."""

        self._reported = self._decoded = self._ended = 0

    def take(self, row: int, tokens: TokenIds) -> None:
        """Take the first tokens of a row's answer if they are more than are known."""
        row = self._first[row]
        answer = cut(tokens, self._ends, self._rooms[row])
        if len(answer) > len(self._answers[row]):
            self._answers[row] = answer

    def check(self, drafts: Sequence[TokenIds]) -> None:
        """Take the tokens of drafts up to the first one that the model does not choose, and its choice there."""
        rows = [row for row in self._unfinished() if continues(self._answers[row], drafts[row])]
        passed = teacher_forced(
            self._model,
            [self._prompts[row] for row in rows],
            [drafts[row] for row in rows],
            pad_token_id=self._pad,
            batch_size=self._batch_size,
            on_batch=lambda *_: self._on_batch(0, 0.0),
        )
        for row, tokens in zip(rows, passed.greedy, strict=True):
            self.take(row, tokens)

    def run(self) -> list[list[int]]:
        """The finished answers, one for each prompt."""
        steps = _FIRST_STEPS
        self._report()
        while rows := self._unfinished():
            self._decode(rows, steps)
            self.check([loop(answer, room) for answer, room in zip(self._answers, self._rooms, strict=True)])
            steps *= 2
        return [self._answers[first] for first in self._first]

    def _unfinished(self) -> list[int]:
        return [row for row, first in enumerate(self._first) if row == first and not self._is_finished(row)]

    def _is_finished(self, row: int) -> bool:
        return is_finished(self._answers[row], self._ends, self._rooms[row])

    def _decode(self, rows: Sequence[int], steps: int) -> None:
        """Add up to `steps` tokens to the answers of rows."""

        def missing(row: int) -> int:
            return min(steps, self._rooms[row] - len(self._answers[row]))

        def decode(batch: Sequence[int]) -> None:
            chosen = [rows[each] for each in batch]
            if self._limit is None:
                self._generate(chosen, max(map(missing, chosen)))
                return
            # A batch runs until its last row ends, and no row may run beyond the last position.
            counts = {row: missing(row) for row in chosen}
            for count in sorted(set(counts.values()) - {0}):
                self._generate([row for row in chosen if counts[row] == count], count)

        lengths = [len(self._prompts[row]) + len(self._answers[row]) + missing(row) for row in rows]
        for _ in in_batches(decode, lengths, self._batch_size):
            self._report()

    def _generate(self, rows: Sequence[int], steps: int) -> None:
        import torch

        begun = [[*self._prompts[row], *self._answers[row]] for row in rows]
        ids, mask = pad_left(begun, self._pad, self._model.device)
        with torch.inference_mode():
            output = self._model.generate(
                input_ids=ids, attention_mask=mask, generation_config=self._settings, max_new_tokens=steps
            )
        for row, tokens in zip(rows, output[:, ids.shape[1] :].tolist(), strict=True):
            before = len(self._answers[row])
            self.take(row, self._answers[row] + tokens)
            self._decoded += len(self._answers[row]) - before
            self._ended += self._answers[row][-1] in self._ends

    def _report(self) -> None:
        finished = sum(self._is_finished(first) for first in self._first)
        left = sum(
            expected_tokens(self._rooms[row] - len(self._answers[row]), self._ended, self._decoded)
            for row in self._unfinished()
        )
        self._on_batch(finished - self._reported, self._decoded / (self._decoded + left) if self._decoded else 0.0)
        self._reported = finished


def greedy_settings(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", max_new_tokens: int) -> Any:
    """Generation settings for plain greedy decoding, with all end tokens of model and tokenizer.

    They replace the model's own settings, such as temperature or repetition penalty, so that all models are scored
    by the same rule.
    """
    from transformers import GenerationConfig

    ends = end_tokens(model.generation_config, tokenizer)
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )


def end_tokens(settings: "GenerationConfig | None", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Ids of the tokens that end an answer, by a model's generation settings and its tokenizer."""
    configured = settings.eos_token_id if settings else None
    ends = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [tokenizer.eos_token_id, *ends] if token is not None})

"""Losses of batches equal those of single rows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune_jobs.evaluation import inference
from edgetune_jobs.models import loading
from support.families import FAMILIES, make_model
from support.position_tables import model_of_type

PROMPTS = [[5, 9, 30], [7], [40, 41, 42, 43, 44, 45, 46, 47], [300, 301]]
COMPLETIONS = [[10, 1], [11, 12, 13, 1], [14], [15, 16, 1]]


def mean_loss(*args: Any, **options: Any) -> float | None:
    return inference.teacher_forced(*args, **options).loss


def _loss_sum(model: Any, prompt: list[int], completion: list[int]) -> float:
    with torch.no_grad():
        log_probabilities = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    first = len(prompt)
    return -float(sum(log_probabilities[at - 1, token].item() for at, token in enumerate(completion, first) if at))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_mean_loss_is_over_completion_tokens_for_any_batch_size(model: Any, batch_size: int) -> None:
    expected = sum(map(_loss_sum, [model] * 4, PROMPTS, COMPLETIONS)) / sum(map(len, COMPLETIONS))

    loss = mean_loss(model, PROMPTS, COMPLETIONS, pad_token_id=2, batch_size=batch_size)

    assert loss == pytest.approx(expected, rel=1e-5)


def test_texts_without_prompt_leave_out_their_first_token(model: Any) -> None:
    expected = sum(_loss_sum(model, [], completion) for completion in COMPLETIONS) / sum(
        len(c) - 1 for c in COMPLETIONS
    )

    loss = mean_loss(model, [[]] * 4, COMPLETIONS, pad_token_id=2, batch_size=4)

    assert loss == pytest.approx(expected, rel=1e-5)


def test_without_a_token_to_predict_there_is_no_loss(model: Any) -> None:
    assert mean_loss(model, [[]], [[4]], pad_token_id=2, batch_size=1) is None


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "bloom", "falcon", "gpt_neox", "mamba", "xglm"])
def test_computed_positions_are_no_limit(model_type: str) -> None:
    sizes = {"intermediate_size": 32, "d_model": 32, "attention_heads": 2, "num_layers": 1, "ffn_dim": 32}

    assert inference.position_limit(model_of_type(model_type, **sizes)) is None


def test_an_answer_has_room_up_to_the_last_position() -> None:
    rooms = [inference.room_for_answer(tokens, 8, 24) for tokens in (2, 16, 17, 23, 24)]

    assert rooms == [8, 8, 7, 1, 1]
    assert inference.room_for_answer(1000, 8, None) == 8


def test_padding_does_not_shift_the_positions_of_models_with_absolute_positions(tokenizer: Any) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=64, n_layer=1, n_head=2, eos_token_id=1)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    alone = sum(map(_loss_sum, [model] * 4, PROMPTS, COMPLETIONS)) / sum(map(len, COMPLETIONS))

    assert mean_loss(model, PROMPTS, COMPLETIONS, pad_token_id=2, batch_size=4) == pytest.approx(alone, rel=1e-5)


def batches(lengths: list[int], most_rows: int, *most_tokens: int) -> list[list[int]]:
    done: list[list[int]] = []
    sizes = list(inference.in_batches(lambda rows: done.append(list(rows)), lengths, most_rows, *most_tokens))
    assert sizes == list(map(len, done))
    return done


def test_batches_have_each_row_once_with_similar_lengths_together_and_bounded() -> None:
    lengths = [5, 20_000, 900, 7, 900, 6]

    assert batches(lengths, 2) == [[1], [2, 4], [3, 5], [0]]
    assert batches([3_000] * 7, 32) == [[0, 1, 2, 3, 4], [5, 6]]
    assert batches([3_000] * 3, 32, 6_000) == [[0, 1], [2]]


def test_a_batch_that_does_not_fit_into_gpu_memory_halves_all_later_batches() -> None:
    attempts: list[list[int]] = []

    def work(rows: Sequence[int]) -> None:
        attempts.append(list(rows))
        if len(rows) > 2:
            raise RuntimeError("CUDA error: out of memory")

    assert list(inference.in_batches(work, [9, 8, 7, 6, 5], 5)) == [2, 2, 1]
    assert attempts == [[0, 1, 2, 3, 4], [0, 1], [2, 3], [4]]


def test_a_single_row_that_does_not_fit_and_other_errors_are_raised() -> None:
    def fail(message: str) -> Callable[[Sequence[int]], None]:
        def work(_: Sequence[int]) -> None:
            raise RuntimeError(message)

        return work

    for message, sizes in (("CUDA error: out of memory", [1]), ("a bug", [1, 1])):
        with pytest.raises(RuntimeError, match=message):
            list(inference.in_batches(fail(message), sizes, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_a_long_row_are_computed_in_parts(family: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", family, tied=True, dtype="float32")
    model: Any = loading.load_base(folder, torch.float32, torch.device("cpu"))
    prompts, completions = [[5, 9, 30], []], [list(range(40, 60)), list(range(90, 107))]
    whole = mean_loss(model, prompts, completions, pad_token_id=2, batch_size=2)
    seen: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda _, __, logits: seen.append(logits.numel()))
    bound = 6 * model.config.vocab_size

    parts = mean_loss(model, prompts, completions, pad_token_id=2, batch_size=2, most_logits=bound)

    assert parts == pytest.approx(whole, rel=1e-5)
    assert len(seen) == 4 + 3, "20 and 16 tokens, 6 at a time"
    assert max(seen) == bound


def test_logits_of_a_batch_are_bounded(model: Any) -> None:
    alone = mean_loss(model, PROMPTS, COMPLETIONS, pad_token_id=2, batch_size=1)
    sizes: list[int] = []
    options: dict[str, Any] = {
        "on_batch": lambda rows, _: sizes.append(rows),
        "most_logits": 10 * model.config.vocab_size,
    }

    loss = mean_loss(
        model,
        PROMPTS,
        COMPLETIONS,
        pad_token_id=2,
        batch_size=8,
        **options,
    )

    assert sizes == [1, 2, 1], "rows of 9, 5, 5 and 5 tokens in batches of up to 10"
    assert loss == pytest.approx(alone, rel=1e-5)

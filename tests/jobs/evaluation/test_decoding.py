"""Greedy answers are the same for every batch size, draft and order, in float32."""

import random
from typing import Any

import pytest
import torch

from edgetune_jobs.evaluation import decoding, inference
from edgetune_jobs.evaluation.drafts import loop
from support.position_tables import WITH_POSITION_TABLES, model_of_type

PROMPTS = [[5, 9, 30], [7], [40, 41, 42, 43, 44, 45, 46, 47], [300, 301], [9, 9, 9, 9, 9], [7]]


@pytest.fixture
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished rows leave their batch after 2 tokens, 4, 8, …"""
    monkeypatch.setattr(decoding, "_FIRST_STEPS", 2)


def one_by_one(model: Any, prompt: list[int], ends: set[int], max_new_tokens: int) -> list[int]:
    """The greedy answer without batches, caches and drafts: the definition."""
    answer: list[int] = []
    while len(answer) < max_new_tokens and (not answer or answer[-1] not in ends):
        with torch.no_grad():
            answer.append(int(model(input_ids=torch.tensor([prompt + answer])).logits[0, -1].argmax()))
    return answer


def answers(model: Any, tokenizer: Any, prompts: list[list[int]], **options: Any) -> list[list[int]]:
    settings = {"max_new_tokens": 12, "batch_size": 4, **options}
    return decoding.greedy_answers(model, tokenizer, prompts, **settings)


@pytest.fixture
def ends(model: Any, tokenizer: Any) -> set[int]:
    """Ends of answers: tokens that this random model chooses after different numbers of steps."""
    free = [one_by_one(model, prompt, set(), 12) for prompt in PROMPTS]
    model.generation_config.eos_token_id = [free[0][3], free[2][8]]
    return {tokenizer.eos_token_id, free[0][3], free[2][8]}


@pytest.mark.usefixtures("short_rounds")
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_answers_are_those_of_single_rows_for_any_batch_size(
    model: Any, tokenizer: Any, ends: set[int], batch_size: int
) -> None:
    expected = [one_by_one(model, prompt, ends, 12) for prompt in PROMPTS]
    finished: list[int] = []

    given = answers(model, tokenizer, PROMPTS, batch_size=batch_size, on_batch=lambda rows, _: finished.append(rows))

    assert given == expected
    assert sum(finished) == len(PROMPTS)
    assert len(set(map(len, expected))) > 1, "answers end after different numbers of tokens"


@pytest.mark.usefixtures("short_rounds")
@pytest.mark.parametrize("seed", range(8))
def test_no_draft_changes_an_answer(model: Any, tokenizer: Any, ends: set[int], seed: int) -> None:
    expected = [one_by_one(model, prompt, ends, 12) for prompt in PROMPTS]
    draw = random.Random(seed)
    drafts = [answer[: draw.randrange(len(answer) + 1)] + draw.choices(range(60), k=4) for answer in expected]
    references = [[*answer[: draw.randrange(len(answer) + 1)], 1] for answer in expected]
    begun = inference.teacher_forced(model, PROMPTS, references, pad_token_id=2, batch_size=4).greedy

    assert answers(model, tokenizer, PROMPTS, begun=begun, drafts=drafts) == expected


def test_an_answer_that_a_draft_has_is_not_decoded(
    model: Any, tokenizer: Any, ends: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [one_by_one(model, prompt, ends, 12) for prompt in PROMPTS]
    monkeypatch.setattr(model, "generate", None)

    assert answers(model, tokenizer, PROMPTS, drafts=expected) == expected


@pytest.mark.usefixtures("short_rounds")
def test_an_answer_that_repeats_itself_is_decoded_up_to_the_third_time(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [one_by_one(model, prompt, set(), 96) for prompt in PROMPTS]
    assert any(loop(answer[:48], 96) == answer for answer in expected), "none of the answers repeats itself"
    decoded, generate = [0], model.generate

    def counted(**options: Any) -> Any:
        decoded[-1] += len(options["input_ids"]) * options["max_new_tokens"]
        return generate(**options)

    monkeypatch.setattr(model, "generate", counted)
    assert answers(model, tokenizer, PROMPTS, max_new_tokens=96) == expected

    decoded.append(0)
    monkeypatch.setattr(decoding, "loop", lambda *_: [])
    assert answers(model, tokenizer, PROMPTS, max_new_tokens=96) == expected
    assert decoded[0] < decoded[1]


def test_a_loop_is_continued_up_to_four_times_its_length() -> None:
    assert loop([8, 5, 6, 5, 6, 5, 6], 12) == [8, 5, 6, 5, 6, 5, 6, 5, 6, 5, 6, 5]
    assert len(loop([7, 7, 7], 100)) == 12
    assert loop([5, 6, 5, 6], 12) == loop([5, 6, 5, 6, 5, 6, 9], 12) == []


def test_equal_prompts_are_answered_once(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, generate = [], model.generate

    def counted(**options: Any) -> Any:
        rows.append(len(options["input_ids"]))
        return generate(**options)

    monkeypatch.setattr(model, "generate", counted)

    first, second, third = answers(model, tokenizer, [[7], [5, 9, 30], [7]], batch_size=8)

    assert rows == [2]
    assert first == third != second


@pytest.mark.usefixtures("short_rounds", "ends")
def test_finished_rows_leave_their_batch(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, generate = [], model.generate

    def counted(**options: Any) -> Any:
        rows.append(len(options["input_ids"]))
        return generate(**options)

    monkeypatch.setattr(model, "generate", counted)

    lengths = sorted(len(answer) for answer in answers(model, tokenizer, PROMPTS[:5], batch_size=8))

    assert rows[0] == 5
    assert rows[1] == sum(length > 2 for length in lengths)
    assert rows[-1] < 5


@pytest.mark.parametrize("model_type", WITH_POSITION_TABLES)
def test_answers_end_at_the_last_position_of_the_model(model_type: str, tokenizer: Any) -> None:
    model = model_of_type(model_type)
    prompts = [[7] * length for length in (23, 22, 14, 4, 3)]

    assert inference.position_limit(model) == 24
    given = answers(model, tokenizer, prompts, max_new_tokens=8, batch_size=5)

    assert given == [
        answers(model, tokenizer, [prompt], max_new_tokens=min(8, 24 - len(prompt)), batch_size=1)[0]
        for prompt in prompts
    ]


def test_answers_are_greedy_regardless_of_the_models_own_settings(model: Any, tokenizer: Any) -> None:
    plain = answers(model, tokenizer, PROMPTS)
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=3.0)

    assert answers(model, tokenizer, PROMPTS) == plain


def test_an_answer_ends_at_any_end_token_of_model_or_tokenizer(model: Any, tokenizer: Any) -> None:
    first = answers(model, tokenizer, PROMPTS[:1], max_new_tokens=3)[0][0]
    model.generation_config.eos_token_id = [first]

    assert decoding.greedy_settings(model, tokenizer, 3).eos_token_id == sorted({1, first})
    assert answers(model, tokenizer, PROMPTS[:1], max_new_tokens=3) == [[first]]

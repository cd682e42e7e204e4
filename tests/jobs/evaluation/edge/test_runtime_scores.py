"""Scores of GGUF in llama.cpp: the loss and the answers are those of transformers."""

import math
import random
import threading
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgetune_jobs.evaluation import decoding, inference
from edgetune_jobs.evaluation.edge.child_process import CannotRun
from edgetune_jobs.evaluation.edge.runtime_scores import ScoreLines, score_in_llama_cpp
from edgetune_jobs.evaluation.edge.scoring_process import LINE, Feed, Line, Row, RowScore, score_row
from edgetune_jobs.models import loading
from support.edge_models import make_model, write_gguf
from support.llama_cpp import packages_of_llama_cpp

PROMPTS = [(5, 9, 30), (7,), (40, 41, 42, 43, 44, 45, 46, 47)]
COMPLETIONS = [(10, 1), (11, 12, 13, 1), (14,)]
MOST = 12


def feed_of(model: Any) -> Feed:
    """A model of transformers that is fed as llama.cpp is."""
    fed: list[int] = []

    def feed(kept: int, tokens: Sequence[int]) -> "np.ndarray":
        fed[kept:] = tokens
        if not fed:
            return np.empty((0, model.config.vocab_size), np.float32)
        with torch.no_grad():
            logits: np.ndarray = model(input_ids=torch.tensor([fed])).logits[0, kept:].numpy()
        return logits

    return feed


def scores_of(model: Any, tokenizer: Any) -> tuple[float | None, list[list[int]]]:
    """Loss and answers as transformers gives them."""
    passed = inference.teacher_forced(model, PROMPTS, COMPLETIONS, pad_token_id=2, batch_size=4)
    return passed.loss, decoding.greedy_answers(model, tokenizer, PROMPTS, max_new_tokens=MOST, batch_size=4)


@pytest.mark.parametrize("seed", range(6))
def test_rows_are_scored_as_by_transformers_whatever_the_draft(model: Any, tokenizer: Any, seed: int) -> None:
    loss, answers = scores_of(model, tokenizer)
    ends = decoding.end_tokens(model.generation_config, tokenizer)
    draw = random.Random(seed)
    drafts = [(*answer[: draw.randrange(len(answer) + 1)], 3, 4) for answer in answers]

    scores = [
        score_row(feed_of(model), Row(prompt, completion, draft), ends, MOST)
        for prompt, completion, draft in zip(PROMPTS, COMPLETIONS, drafts, strict=True)
    ]

    assert [score.answer for score in scores] == answers
    assert sum(score.loss for score in scores) / sum(score.tokens for score in scores) == pytest.approx(loss, rel=1e-5)


def test_an_answer_that_equals_its_completion_takes_one_pass(model: Any, tokenizer: Any) -> None:
    _, answers = scores_of(model, tokenizer)
    passes: list[int] = []

    def feed(kept: int, tokens: Sequence[int]) -> "np.ndarray":
        passes.append(kept)
        return feed_of(model)(kept, tokens)

    assert score_row(feed, Row(PROMPTS[0], tuple(answers[0])), [], MOST).answer == answers[0]
    assert passes == [0]


def test_a_text_has_a_loss_over_all_but_its_first_token_and_no_answer(model: Any) -> None:
    expected = inference.teacher_forced(model, [()], [(11, 12, 13)], pad_token_id=2, batch_size=1).loss

    score = score_row(feed_of(model), Row((), (11, 12, 13)), [], MOST)

    assert (score.tokens, score.answer) == (2, [])
    assert score.loss / 2 == pytest.approx(expected, rel=1e-5)
    assert score_row(feed_of(model), Row((), (11,)), [], MOST).tokens == 0


def test_a_long_row_takes_no_more_memory_than_its_logits() -> None:
    logits = np.zeros((500, 20_000), np.float32)
    tracemalloc.start()
    try:
        score = score_row(lambda _, tokens: logits[: len(tokens)], Row((), tuple(range(501))), [], MOST)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert score.loss == pytest.approx(500 * math.log(20_000))
    assert peak < 0.1 * logits.nbytes


def test_single_rows_which_may_be_long_or_short_do_not_show_the_pace(tmp_path: Path) -> None:
    done: list[tuple[int, float]] = []
    lines = ScoreLines(tmp_path / "lines", 80, lambda rows, share: done.append((rows, share)))

    for count in (1, 30, 2, 40, 7):
        with (tmp_path / "lines").open("ab") as file:
            file.writelines(LINE.dump_json(Line(row=RowScore(1.0, 1))) + b"\n" for _ in range(count))
        lines.read()

    assert done == [(1, 0.0), (30, 0.0), (2, 33 / 80), (40, 73 / 80), (7, 1.0)]


def test_llama_cpp_scores_a_gguf_file(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(packages_of_llama_cpp()))
    folder = write_gguf(make_model(tmp_path / "model", "llama"), tmp_path / "edge").parent
    loss, answers = scores_of(loading.load_stored(folder, torch.device("cpu")), tokenizer)
    done: list[float] = []

    scored = score_in_llama_cpp(
        folder,
        [Row(prompt, completion) for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)],
        ends=[tokenizer.eos_token_id],
        max_new_tokens=MOST,
        scratch=tmp_path,
        stop=threading.Event(),
        on_batch=lambda _, share: done.append(share),
    )

    assert scored.runtime.startswith("llama.cpp (llama-cpp-python ")
    assert scored.loss == pytest.approx(loss, rel=0.02)
    assert [answer[:1] for answer in scored.answers] == [answer[:1] for answer in answers]
    assert done[-1] == 1.0


def test_a_file_that_llama_cpp_does_not_read_is_an_error_with_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(packages_of_llama_cpp()))
    file = write_gguf(make_model(tmp_path / "model", "llama"), tmp_path / "edge")
    file.write_bytes(file.read_bytes()[:5000])

    with pytest.raises(CannotRun, match=r"tensor|read|bounds|gguf"):
        score_in_llama_cpp(
            file.parent,
            [Row((3,), (4,))],
            ends=[1],
            max_new_tokens=1,
            scratch=tmp_path,
            stop=threading.Event(),
            on_batch=lambda *_: None,
        )

"""Scores a GGUF model in llama.cpp: as devices run it, and on a CPU many times faster than in transformers."""

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetune_jobs.evaluation.edge.child_process import Child
from edgetune_jobs.evaluation.edge.scoring_process import LINE, REQUEST, Row, RowScore, ScoringRequest
from edgetune_jobs.evaluation.pace import OnBatch
from edgetune_jobs.models.libraries import usable_cpus

# Rows are scored one by one, and one alone says little about the pace of the others.
_ROWS_THAT_SHOW_THE_PACE = 32
_MODULE = "edgetune_jobs.evaluation.edge.scoring_process"


@dataclass(frozen=True)
class RuntimeScores:
    """Loss and greedy answers of a model in its runtime."""

    runtime: str
    """The runtime with its version."""

    loss: float | None
    """Mean cross-entropy over all completion tokens in nats; None if there is no token to predict."""

    answers: list[list[int]]
    """Token ids of each answer; empty for texts without prompts."""


def score_in_llama_cpp(
    folder: Path,
    rows: Sequence[Row],
    *,
    ends: Sequence[int],
    max_new_tokens: int,
    scratch: Path,
    stop: threading.Event,
    on_batch: OnBatch,
) -> RuntimeScores:
    """Score rows in a process of llama.cpp.

    Args:
        folder: the model's, with a GGUF file.
        rows: what to score; equal prompts are not answered together.
        ends: ids of the tokens that end an answer.
        max_new_tokens: maximum length of an answer in tokens.
        scratch: folder for temporary files.
        stop: interrupts it when set.
        on_batch: called when rows have been scored; with a share after each 32 rows and at the end.

    Raises:
        OutOfMemory, CannotStart, CannotRun, TransientError, Interrupted: as `Child.run` and `Child.check_exit`.
    """
    threads = usable_cpus()
    child = Child(_MODULE, folder.name, threads, scratch)
    request = ScoringRequest(folder, tuple(rows), tuple(ends), max_new_tokens, threads, os.getpid())
    lines = ScoreLines(child.result_file, len(rows), on_batch)
    ending = child.run(REQUEST.dump_json(request), stop, on_poll=lines.read)
    child.check_exit(ending, bool(lines.runtime), lines.problem)
    tokens = sum(score.tokens for score in lines.scores)
    loss = sum(score.loss for score in lines.scores) / tokens if tokens else None
    return RuntimeScores(lines.runtime, loss, [score.answer for score in lines.scores])


class ScoreLines:
    """The lines that the process has written so far."""

    def __init__(self, file: Path, rows: int, on_batch: OnBatch) -> None:
        """Read nothing yet; the arguments are those of `score_in_llama_cpp`, and the file that the process writes."""
        self.runtime, self.problem = "", ""
        self.scores: list[RowScore] = []
        self._file, self._rows, self._on_batch, self._read_bytes = file, rows, on_batch, 0

    def read(self) -> None:
        """Read complete lines that have been added."""
        if not self._file.is_file():
            return
        with self._file.open("rb") as file:
            file.seek(self._read_bytes)
            added = file.read()
        complete = added[: added.rfind(b"\n") + 1]
        self._read_bytes += len(complete)
        before = len(self.scores)
        for text in complete.splitlines():
            line = LINE.validate_json(text)
            self.runtime, self.problem = line.runtime or self.runtime, line.problem or self.problem
            self.scores += [] if line.row is None else [line.row]
        scored = len(self.scores)
        shows_pace = scored == self._rows or scored // _ROWS_THAT_SHOW_THE_PACE > before // _ROWS_THAT_SHOW_THE_PACE
        if scored > before:
            self._on_batch(scored - before, scored / self._rows if shows_pace else 0.0)

"""`python -m edgetune_jobs.evaluation.edge.scoring_process REQUEST RESULT`: the process that scores one GGUF model.

Both are files. RESULT gets one JSON object a line: the runtime, then each row as soon as it is scored.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from edgetune_jobs.evaluation.drafts import agreement, continues, cut, is_finished
from edgetune_jobs.evaluation.edge.process import keep_to_cores
from edgetune_jobs.evaluation.edge.runtimes import LlamaCppRunner
from edgetune_jobs.models.libraries import end_with

if TYPE_CHECKING:
    import numpy as np

Feed = Callable[[int, Sequence[int]], "np.ndarray"]
"""(kept, tokens) -> logits: as LlamaCppRunner.feed."""


@dataclass(frozen=True)
class Row:
    """One row to score, as token ids."""

    prompt: tuple[int, ...]
    """Empty for a text, which has a loss and no answer."""

    completion: tuple[int, ...]
    draft: tuple[int, ...] = ()
    """An answer that the model probably gives; empty if there is none."""


@dataclass(frozen=True)
class ScoringRequest:
    """What to score."""

    folder: Path
    """The model's folder."""

    rows: tuple[Row, ...]
    ends: tuple[int, ...]
    """Tokens that end an answer."""

    max_new_tokens: int
    threads: int
    parent: int
    """Process ID of the parent; when it ends, this process ends too."""


@dataclass(frozen=True)
class RowScore:
    """What the model does with one row."""

    loss: float
    """Sum of the cross-entropy over the completion's tokens in nats."""

    tokens: int
    """Number of these tokens."""

    answer: list[int] = field(default_factory=list)
    """Token ids of the greedy answer, up to and with an end token or max_new_tokens."""


@dataclass(frozen=True)
class Line:
    """One line of the result: one of these fields is set."""

    runtime: str = ""
    """The runtime with its version, once its libraries are loaded."""

    row: RowScore | None = None
    """The score of the next row."""

    problem: str = ""
    """Message of the runtime if it does not load or run the model."""


REQUEST = TypeAdapter(ScoringRequest)
LINE = TypeAdapter(Line)


def score_row(feed: Feed, row: Row, ends: Sequence[int], max_new_tokens: int) -> RowScore:
    """Loss of a row's completion, and the greedy answer to its prompt.

    One pass over prompt and completion gives the loss and the answer as far as it agrees with the completion; further
    passes check the rest of the draft, and then decode token by token.
    """
    ids, first = [*row.prompt, *row.completion], max(len(row.prompt), 1)
    logits, expected = feed(0, ids[:-1])[first - 1 :], ids[first:]
    loss = sum(map(_cross_entropy, logits, expected))
    if not row.prompt:
        return RowScore(loss, len(expected))
    answer = cut(agreement(row.completion, logits.argmax(axis=1).tolist()), ends, max_new_tokens)
    while not is_finished(answer, ends, max_new_tokens):
        guess = row.draft[len(answer) :] if continues(answer, row.draft) else ()
        known = [*row.prompt, *answer]
        choices = feed(len(known) - 1, [known[-1], *guess]).argmax(axis=1).tolist()
        answer = cut([*answer, *agreement(guess, choices)], ends, max_new_tokens)
    return RowScore(loss, len(expected), answer)


def _cross_entropy(logits: "np.ndarray", expected: int) -> float:
    """Cross-entropy of one token in nats; float64 copies of all tokens' logits would take gigabytes."""
    import numpy as np

    shifted = logits.astype(np.float64) - logits.max()
    return float(np.log(np.exp(shifted).sum()) - shifted[expected])


def main() -> None:
    """Score the rows in the request file."""
    request_file, result_file = map(Path, sys.argv[1:])
    request = REQUEST.validate_json(request_file.read_bytes())
    end_with(request.parent)
    keep_to_cores(request.threads)
    with result_file.open("wb") as result:

        def write(line: Line) -> None:
            result.write(LINE.dump_json(line) + b"\n")
            result.flush()

        runner = LlamaCppRunner(request.threads, all_logits=True)
        write(Line(runtime=runner.name))
        try:
            longest = max(len(row.prompt) + max(len(row.completion), request.max_new_tokens) for row in request.rows)
            runner.load(request.folder, longest)
            for row in request.rows:
                write(Line(row=score_row(runner.feed, row, request.ends, request.max_new_tokens)))
        except Exception as error:
            write(Line(problem=str(error) or type(error).__name__))
            raise


if __name__ == "__main__":
    main()

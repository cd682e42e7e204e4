"""Answers and scores by row: what evaluate keeps of them, and in which order a reader wants to see them.

row_scores.jsonl   {"row", "base", "tuned", …}                                    every row
answers.jsonl      {"row", "prompt", "reference", "scores": {…}, "base", "tuned", …}   the first rows, and those
                                                                on which the edge model lost or failed most
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from edgetune_contract.pipeline import EDGE, is_edge

ANSWERS = "answers.jsonl"
ROW_SCORES = "row_scores.jsonl"
FIRST_ROWS = 16
WORST_ROWS = 48
MOST_BASE_ANSWERS = 2000
"""Rows up to which the answers of the base are kept for later runs with the same base and the same rows."""


def worst_first(scores: Mapping[str, Sequence[float]]) -> list[int]:
    """Numbers of the rows in the order in which a reader wants to see them.

    First those on which an edge model lost most against another model, then those on which it scores lowest, then the
    others in their order.

    Args:
        scores: of each model, one for each row.
    """
    edges = [rows for name, rows in scores.items() if name == EDGE or is_edge(name)] or list(scores.values())

    def key(row: int) -> tuple[float, float, int]:
        lowest = min(rows[row] for rows in edges)
        return lowest - max(rows[row] for rows in scores.values()), lowest, row

    return sorted(range(min(map(len, scores.values()), default=0)), key=key)


def write_row_scores(folder: Path, scores: Mapping[str, Sequence[float]]) -> None:
    """Write row_scores.jsonl: the score of each model on every row."""
    rows = range(min(map(len, scores.values()), default=0))
    _write_lines(
        folder / ROW_SCORES,
        ({"row": row, **{name: round(by_row[row], 4) for name, by_row in scores.items()}} for row in rows),
    )


def write_answers(
    folder: Path,
    prompts: Sequence[str],
    references: Sequence[str],
    answers: Mapping[str, Sequence[str]],
    scores: Mapping[str, Sequence[float]],
) -> None:
    """Write answers.jsonl: the answers of all models on the chosen rows, in the order of the rows."""
    worst = worst_first(scores) if scores else []
    chosen = sorted({*range(min(FIRST_ROWS, len(prompts))), *worst[:WORST_ROWS]}) if answers else []
    _write_lines(
        folder / ANSWERS,
        (
            {
                "row": row,
                "prompt": prompts[row],
                "reference": references[row],
                "scores": {name: round(by_row[row], 4) for name, by_row in scores.items()},
                **{name: by_row[row] for name, by_row in answers.items()},
            }
            for row in chosen
        ),
    )


def write_base_answers(folder: Path, answers: Sequence[str]) -> None:
    """Write the base's answer to each row for later runs, unless there are too many."""
    if len(answers) <= MOST_BASE_ANSWERS:
        _write_lines(folder / ANSWERS, ({"row": row, "answer": answer} for row, answer in enumerate(answers)))


def read_base_answers(folder: Path, rows: int) -> list[str] | None:
    """The base's answers that an earlier run kept; None if it kept none, as older releases did."""
    path = folder / ANSWERS
    if not path.is_file():
        return None
    answers = [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").split("\n") if line]
    return answers if len(answers) == rows else None


def _write_lines(path: Path, lines: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

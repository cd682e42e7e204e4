"""The demo's data set: its generator produces it, and no evaluation row resembles a training row."""

import json
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "sensor-faults"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / name).read_text(encoding="utf-8").splitlines()]


def test_the_committed_rows_are_those_that_the_generator_writes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-I", FOLDER / "generate_data.py", tmp_path], check=True, timeout=60)
    for name in ("train.jsonl", "eval.jsonl"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), f"{name} is stale: run generate_data.py"


def test_there_are_enough_rows_and_equally_many_for_each_fault() -> None:
    for name, least in (("train.jsonl", 600), ("eval.jsonl", 64)):
        counts = Counter(row["response"] for row in rows(name))
        assert counts.total() >= least
        assert len(counts) == 8
        assert max(counts.values()) == min(counts.values())


def test_every_response_contains_its_keywords_and_no_question_does() -> None:
    for row in rows("train.jsonl") + rows("eval.jsonl"):
        assert len(row["expected_keyword"]) == 2
        for keyword in row["expected_keyword"]:
            assert keyword in row["response"]
            assert keyword not in row["instruction"]


@pytest.mark.parametrize(
    ("what", "pattern"),
    [
        ("unit", r"[A-Z]-\d\d"),
        ("site", r"hall \d|line \d+|the (?:cold store|paint shop|\w+ (?:house|plant|dock|room))"),
    ],
)
def test_units_and_sites_of_evaluation_rows_are_not_in_training(what: str, pattern: str) -> None:
    train, evaluation = (
        {match for row in rows(name) for match in re.findall(pattern, row["instruction"])}
        for name in ("train.jsonl", "eval.jsonl")
    )
    assert train
    assert evaluation
    assert not train & evaluation, what


def test_questions_and_symptoms_of_evaluation_rows_are_not_in_training() -> None:
    generator = runpy.run_path(str(FOLDER / "generate_data.py"))
    assert not set(generator["TRAIN_WORDING"].questions) & set(generator["EVAL_WORDING"].questions)
    questions = " | ".join(row["instruction"].lower() for row in rows("train.jsonl"))
    for fault in generator["FAULTS"]:
        assert len(fault.train_symptoms) >= 5
        for symptom in fault.eval_symptoms:
            assert symptom not in questions


def test_the_object_of_the_demo_is_valid_with_absolute_paths() -> None:
    from edgetune_contract.spec import Parameters

    spec = yaml.safe_load((FOLDER / "lora-fine-tune.yaml").read_text(encoding="utf-8"))["spec"]
    for place in (spec["baseModel"], spec["dataset"]["train"], spec["dataset"]["eval"]):
        place["uri"] = (FOLDER / place["uri"]).absolute().as_uri()
    parameters = Parameters.model_validate(spec)
    assert parameters.evaluation.gates.min_score == 0.85

"""`edgetune data check` and a real prepare say the same about rows, whatever is odd about them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from edgetune_cli.__main__ import app
from support.data_rows import instruction_rows
from support.tiny_tokenizer import CHAT_TEMPLATE, make_tokenizer
from support.workplace import Workplace, make_workplace

# As that of some reasoning models: only the last answer has its reasoning.
DROPS_EARLIER_REASONING = CHAT_TEMPLATE.replace(
    "{{ message['content'] }}",
    "{% if loop.last and message['reasoning_content'] %}{{ message['reasoning_content'] }}{% endif %}"
    "{{ message['content'] }}",
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.chdir(tmp_path)
    return make_workplace(tmp_path)


def conversation(number: int, *, system: str = "", **fields: str) -> dict[str, object]:
    messages: list[dict[str, object]] = [{"role": "system", "content": system}] if system else []
    for turn in range(2):
        messages.append({"role": "user", "content": f"question {number} {turn}"})
        messages.append({"role": "assistant", "content": f"answer {turn}", **fields})
    return {"messages": messages}


def instructions(place: Workplace) -> dict[str, Any]:
    place.write("train.jsonl", [*({**row, "site": "hall"} for row in instruction_rows(40)), *instruction_rows(2)])
    return {}


def cut_off(place: Workplace) -> dict[str, Any]:
    long: dict[str, object] = {"instruction": "Explain.", "response": "wear " * 400}
    place.write("train.jsonl", [*instruction_rows(20), long])
    return place.write("eval.jsonl", instruction_rows(5))


def repeated_starts(place: Workplace) -> dict[str, Any]:
    make_tokenizer(adds_bos=True).save_pretrained(place.folder / "base")
    return {"template": "<s>{instruction}\n"}


def systems_differ(place: Workplace) -> dict[str, Any]:
    place.write("train.jsonl", [conversation(each, system=f"You are {each % 2}.") for each in range(30)])
    return {"format": "Chat"}


def fields_of_messages_unused(place: Workplace) -> dict[str, Any]:
    place.write("train.jsonl", [conversation(each, weather="fine") for each in range(30)])
    return {"format": "Chat"}


def earlier_answers_differ(place: Workplace) -> dict[str, Any]:
    make_tokenizer(chat_template=DROPS_EARLIER_REASONING).save_pretrained(place.folder / "base")
    place.write("train.jsonl", [conversation(each, reasoning_content=f"think {each} ") for each in range(30)])
    return {"format": "Chat"}


def too_long_beside_invalid(place: Workplace) -> dict[str, Any]:
    long: dict[str, object] = {"instruction": "Explain. " * 300, "response": "wear"}
    place.write("train.jsonl", [*instruction_rows(5), long, {"instruction": "a", "response": ""}])
    return {}


def tokens_beyond_the_embedding(place: Workplace) -> dict[str, Any]:
    _set(place.folder / "base" / "tokenizer_config.json", pad_token="<pad beyond>")
    tokenizer = make_tokenizer(chat_template=CHAT_TEMPLATE)
    tokenizer.add_tokens([f"word{number}" for number in range(400)])
    tokenizer.save_pretrained(place.folder / "base")
    place.write("train.jsonl", [{"instruction": f"a {each}", "response": "word399"} for each in range(30)])
    return {}


def sequences_beyond_the_positions(place: Workplace) -> dict[str, Any]:
    _set(place.folder / "base" / "config.json", max_position_embeddings=8)
    return {}


def _set(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def check(place: Workplace, dataset: dict[str, Any]) -> dict[str, Any]:
    spec = {
        "baseModel": {"uri": "./base"},
        "dataset": {"train": {"uri": f"file://{place.folder}/train.jsonl"}, **dataset},
        "training": {"maxLength": 256},
    }
    document = {"apiVersion": "edgetune.dev/v1alpha1", "kind": "LoraFineTune", "metadata": {"name": "x"}, "spec": spec}
    Path("object.yaml").write_text(yaml.safe_dump(document))
    done = CliRunner().invoke(app, ["data", "check", "-f", "object.yaml", "-o", "json"], catch_exceptions=False)
    value: dict[str, Any] = json.loads(done.stdout)
    return value


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (instructions, "'site' (40 rows)"),
        (cut_off, "exceed spec.training.maxLength 256"),
        (repeated_starts, "300 examples begin with the same token (BOS)"),
        (systems_differ, "the system messages of the training rows differ"),
        (fields_of_messages_unused, "does not use these fields of messages: 'weather'"),
        (earlier_answers_differ, "each answer is learned in an example of its own"),
    ],
)
def test_warnings_are_those_of_prepare(
    place: Workplace, make: Callable[[Workplace], dict[str, Any]], words: str
) -> None:
    dataset = make(place)
    prepared, _ = place.run(dataset=dataset)

    checked = check(place, dataset)

    assert checked["warnings"] == list(prepared.warnings)
    assert checked["trainRows"] == prepared.metrics["trainRows"] <= prepared.metrics["trainExamples"]
    assert any(words in warning for warning in checked["warnings"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (too_long_beside_invalid, "which leaves no tokens for the response"),
        (tokens_beyond_the_embedding, "tokenizer and weights belong to different models"),
        (sequences_beyond_the_positions, "the base model supports at most 8"),
    ],
)
def test_refusals_are_those_of_prepare(
    place: Workplace, make: Callable[[Workplace], dict[str, Any]], words: str
) -> None:
    dataset = make(place)
    refusal = place.refusal(dataset=dataset)

    checked = check(place, dataset)

    assert (checked["valid"], checked["errors"]) == (False, refusal.splitlines())
    assert words in refusal

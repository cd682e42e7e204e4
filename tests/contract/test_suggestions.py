"""The known name that a user probably meant."""

import pytest

from edgetune_contract.values.suggestions import did_you_mean, missing_path, nearest


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("alfa", ["rank", "alpha"], "alpha"),
        ("learning_rate", ["learningRate", "batchSize"], "learningRate"),
        ("QLORA", ["LoRA", "QLoRA"], "QLoRA"),
        ("GGUF-Q8", ["BitsAndBytesInt8", "GGUF-Q8_0"], "GGUF-Q8_0"),
        ("image", ["merge", "method"], None),
        ("rank", [], None),
        ("", ["rank"], None),
    ],
)
def test_the_most_similar_name_is_suggested_if_one_is_similar(name: str, known: list[str], meant: str | None) -> None:
    assert nearest(name, known) == meant
    assert did_you_mean(name, known) == ("" if meant is None else f"; did you mean {meant!r}?")


@pytest.mark.parametrize("value", [None, 3, ["rank"], {"rank": 1}])
def test_only_a_text_can_be_meant_as_another_one(value: object) -> None:
    assert did_you_mean(value, ["rank"]) == ""


def test_names_of_a_hostile_file_are_not_all_compared() -> None:
    assert nearest("x" * 10**6, ["x" * 10**6]) is None
    assert nearest("rank", [f"field{number}" for number in range(10**5)] + ["rank"]) is None


@pytest.mark.parametrize(
    ("name", "neighbours", "end"),
    [
        ("trian.jsonl", ["eval.jsonl", "train.jsonl"], "; did you mean 'train.jsonl'?"),
        ("train.json", ["train.jsonl"], "; did you mean 'train.jsonl'?"),
        ("bas", ["base", "train.jsonl"], "; did you mean 'base'?"),
        ("train.jsonl", ["eval.jsonl"], "; correct the URI or add the files"),
        ("train.jsonl", [], "; correct the URI or add the files"),
    ],
)
def test_a_path_with_nothing_behind_it_may_be_meant_as_a_neighbour(name: str, neighbours: list[str], end: str) -> None:
    assert missing_path(f"/data/{name}", name, neighbours) == f"/data/{name} does not exist{end}"

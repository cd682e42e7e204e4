"""Objects in YAML files that users write, and the messages for invalid ones."""

import re
from pathlib import Path

import pytest

from edgetune_cli.documents.single import UnusableFile, load_object

VALID = """
apiVersion: edgetune.dev/v1alpha1
kind: LoraFineTune
metadata: {name: sensor-faults}
spec:
  baseModel: {uri: ./base}
  dataset: {train: {uri: ./data/train.jsonl}}
"""


def problems_of(tmp_path: Path, text: str | bytes) -> str:
    file = tmp_path / "object.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UnusableFile) as raised:
        load_object(file)
    return str(raised.value).replace(str(tmp_path), "")


def test_relative_paths_become_file_uris_from_the_folder_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "object.yaml"
    file.write_text(VALID)
    spec = load_object(file)["spec"]
    assert spec["baseModel"]["uri"] == f"file://{tmp_path}/base"
    assert spec["dataset"]["train"]["uri"] == f"file://{tmp_path}/data/train.jsonl"


def test_characters_with_a_meaning_in_uris_are_escaped(tmp_path: Path) -> None:
    file = tmp_path / "object.yaml"
    file.write_text(VALID.replace("./base", "'./50% of a?b #1'"))
    assert load_object(file)["spec"]["baseModel"]["uri"] == f"file://{tmp_path}/50%25%20of%20a%3Fb%20%231"


def test_every_problem_is_reported_with_its_path(tmp_path: Path) -> None:
    text = VALID.replace("kind: LoraFineTune", "kind: LoraFinetune") + "  lora: {rank: 0, alfa: 3}\n  retryLimit: -1\n"
    assert problems_of(tmp_path, text).splitlines() == [
        "/object.yaml: kind: must be LoraFineTune, is 'LoraFinetune'",
        "/object.yaml: spec.lora.rank: input should be greater than or equal to 1, is 0",
        "/object.yaml: spec.lora.alfa: unknown field; did you mean 'alpha'?",
        "/object.yaml: spec.retryLimit: input should be greater than or equal to 0, is -1",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "/object.yaml: has 0 objects; this command takes exactly one"),
        (VALID + "---" + VALID, "/object.yaml: has 2 objects; this command takes exactly one"),
        ("[1, 2]", "/object.yaml: (document): must be a LoraFineTune object"),
        ("just text", "/object.yaml: (document): must be a LoraFineTune object"),
        (b"name: \xff", "/object.yaml: is not valid UTF-8 at byte 6"),
        (VALID.replace("metadata: {name: sensor-faults}", "metadata: {}"), "/object.yaml: metadata.name: is required"),
        (
            VALID.replace("sensor-faults", "../evil"),
            "/object.yaml: metadata.name: must be at most 253 lower-case letters, digits, '-' and '.', is '../evil'",
        ),
        (
            VALID.replace("name: sensor-faults", "name: a, namespace: 7"),
            "/object.yaml: metadata.namespace: must be at most 63 lower-case letters, digits and '-', is 7",
        ),
    ],
)
def test_a_file_without_exactly_one_valid_object_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert problems_of(tmp_path, text) == message


@pytest.mark.parametrize(
    "text", ["a: [", "a: b: c", "\t- x", "a: !!python/object:os.system x", "a: 2026-99-99", "[" * 5000]
)
def test_invalid_yaml_is_reported_in_one_line_without_a_traceback(tmp_path: Path, text: str) -> None:
    message = problems_of(tmp_path, text)
    assert re.match(r"/object\.yaml: (line 1: )?is not valid YAML: ", message)
    assert "\n" not in message


def test_a_duplicate_key_is_refused_with_its_line(tmp_path: Path) -> None:
    message = problems_of(tmp_path, VALID + "  retryLimit: 1\n  retryLimit: 2\n")
    assert "duplicate key 'retryLimit'" in message
    assert "line 9" in message


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UnusableFile, match="No such file or directory"):
        load_object(tmp_path / "missing.yaml")


def test_numbers_and_merge_keys_are_read_as_kubectl_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "object.yaml"
    file.write_text(
        VALID + "  training: &t {learningRate: 2e-4, weightDecay: 1E-2}\n  lora: {<<: {rank: 8}, alpha: 16}\n"
    )
    spec = load_object(file)["spec"]
    assert (spec["training"]["learningRate"], spec["training"]["weightDecay"]) == (0.0002, 0.01)
    assert spec["lora"] == {"rank": 8, "alpha": 16}


def test_an_object_that_refers_to_itself_is_refused(tmp_path: Path) -> None:
    message = problems_of(tmp_path, VALID.replace("spec:", "spec: &s") + "  lora: *s\n")
    assert message == "/object.yaml: refers to itself by an alias"


TOO_MANY = "/object.yaml: has more than 50,000 values, which include those that aliases repeat"
LEVELS = "".join(f"  l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 10))
MERGED = "".join(f"  m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 10)}]}}\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (VALID + "  l0: &l0 [lol, lol]\n" + LEVELS, TOO_MANY),
        (VALID + "  m0: &m0 {a: b}\n" + MERGED, TOO_MANY),
        (VALID + "  list: [" + "1, " * 60_000 + "]\n", TOO_MANY),
        ("---\n[]\n" * 60_000, TOO_MANY),
        (VALID + "  lora: {rank: &r [*r]}\n", "/object.yaml: refers to itself by an alias"),
        (VALID + f"  lora: {{rank: {'1:' * 100}1}}\n", "/object.yaml: has a number of 201 characters"),
        (VALID + f"  lora: {{rank: {'9' * 5_000}}}\n", "/object.yaml: has a number of 5,000 characters"),
        (VALID + "# " + "x" * 2**20, "/object.yaml: has more than 1,048,576 bytes"),
        (VALID + f"  lora: {'[' * 2_000}{']' * 2_000}\n", "/object.yaml: is not valid YAML: maximum recursion depth"),
    ],
    ids=["aliases", "merge keys", "values", "documents", "itself", "base 60", "digits", "bytes", "depth"],
)
def test_a_small_file_that_stands_for_more_than_fits_into_memory_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    assert problems_of(tmp_path, text).startswith(message)


def test_aliases_are_read_as_kubectl_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "object.yaml"
    file.write_text(VALID.replace("{uri: ./data/train.jsonl}", "&d {uri: ./data/train.jsonl}, eval: *d"))

    dataset = load_object(file)["spec"]["dataset"]

    assert dataset["eval"] == dataset["train"] == {"uri": f"file://{tmp_path}/data/train.jsonl"}


def test_a_key_that_is_not_a_string_is_refused(tmp_path: Path) -> None:
    message = problems_of(tmp_path, VALID + "  2024-01-01: x\n")
    assert message == "/object.yaml: key 2024-01-01 is not a string: quote it"


def test_a_misspelled_metadata_field_is_refused(tmp_path: Path) -> None:
    message = problems_of(tmp_path, VALID.replace("name: sensor-faults", "name: a, nmaespace: foo"))
    assert message == "/object.yaml: metadata.nmaespace: unknown field; did you mean 'namespace'?"

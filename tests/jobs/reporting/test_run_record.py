"""What a report reads from a store, also from one that lacks files or has those of another release."""

import json
from collections.abc import Mapping

from edgetune_contract.digest import version_key
from edgetune_contract.version import VersionDocument
from edgetune_jobs.reporting.run_record import LengthBucket, RunRecord, read_run
from edgetune_jobs.store.folder_store import LocalFolderStore
from support.apiserver import REPOSITORY
from support.reported_runs import RESUMED_AT, STEPS

OLDER = REPOSITORY / "tests" / "cli" / "data" / "store-0.1.0" / "store" / "team-a"


def record_with(run: RunRecord, files: Mapping[str, bytes]) -> RunRecord:
    """The run read again from a store that has these files only, by the last part of their keys."""
    return read_run(run.document, run.manifests, lambda key: files.get(key.rpartition("/")[2]))


def test_everything_is_read_and_nothing_is_missing(run: RunRecord) -> None:
    assert run.gaps == ()
    assert [step.attempt for step in run.steps].count(1) == RESUMED_AT - 1
    assert len(run.steps) == STEPS
    assert run.data is not None
    assert sum(bucket.examples for bucket in run.data.train.histogram) == run.data.train.examples == 704
    assert list(run.answers[0].answers) == ["base", "tuned", "merged", "edge", "edge-gguf-q8_0"]
    assert run.answers[9].scores["edge"] == 0.5


def test_each_missing_file_is_named_with_what_it_costs(run: RunRecord) -> None:
    record = record_with(run, {})

    assert record.gaps == (
        "loss, learning rate and gradient norm by step: the store has no metrics.jsonl of the artifact adapter",
        "lengths of the rows: the store has no report.json of the artifact prepared",
        "answers side by side: the store has no answers.jsonl of the artifact evaluation",
    )
    assert (record.steps, record.data, record.answers) == ([], None, [])


def test_a_damaged_file_is_named_with_its_line_and_left_out(run: RunRecord) -> None:
    lines = b'{"step": 1, "loss": 2.5}\n{"step": "two"}\n'
    record = record_with(run, {"metrics.jsonl": lines, "report.json": b"{", "answers.jsonl": b"\xff"})

    steps, data, answers = record.gaps
    assert steps.startswith("loss, learning rate and gradient norm by step: metrics.jsonl, line 2 cannot be read: step")
    assert data.startswith("lengths of the rows: report.json cannot be read: ")
    assert answers.startswith("answers side by side: answers.jsonl, line 1 cannot be read: ")
    assert record.steps == []


def test_fields_of_later_releases_are_ignored(run: RunRecord) -> None:
    line = {"step": 1, "loss": 2.5, "learningRate": 0.1, "gradientNorm": None, "attempt": 1, "entropy": 0.3}
    record = record_with(run, {"metrics.jsonl": json.dumps(line).encode()})

    assert (record.steps[0].learning_rate, record.steps[0].gradient_norm) == (0.1, None)


def test_a_missing_manifest_is_named(run: RunRecord) -> None:
    record = read_run(run.document, {}, lambda _: None)

    assert (
        "duration and warnings of prepare, train, merge, quantize, evaluate: their manifests are not in the store"
        in (record.gaps)
    )


def test_the_store_of_an_older_release_gives_a_record_that_says_what_it_lacks() -> None:
    store = LocalFolderStore(OLDER.as_uri())
    version = next((OLDER / "models/pumps/versions").iterdir()).stem
    content = store.read(version_key("pumps", version))
    assert content is not None

    def read(key: str) -> bytes | None:
        found = store.read(key)
        return found.data if found else None

    record = read_run(VersionDocument.model_validate_json(content.data), {}, read)

    assert [gap.partition(":")[0] for gap in record.gaps] == [
        "loss, learning rate and gradient norm by step",
        "duration and warnings of prepare, train, merge, quantize, evaluate",
        "scores of single rows",
    ]
    assert record.data is not None
    assert all(bucket.lower < bucket.up_to for bucket in record.data.train.histogram)
    assert set(record.answers[0].answers) >= {"base", "edge"}


def test_buckets_of_older_releases_doubled_from_32() -> None:
    bounds = [LengthBucket.model_validate({"upTo": bound, "examples": 1}).lower for bound in (32, 64, 128)]

    assert bounds == [0, 32, 64]

"""The cache of base models in stages' processes over a real S3 server: the base is read once, and never wrongly."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgetune_contract.request import Result
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from support.stage_runs import Ended, StageRuns
from support.versitygw import S3Server

BASE_BYTES = 3_000_000
READERS = (Stage.TRAIN, Stage.MERGE, Stage.EVALUATE)


@pytest.fixture
def runs(s3_server: S3Server, s3_prefix: str, tmp_path: Path) -> StageRuns:
    """A run whose base, data and store are in a bucket."""
    files = {
        "base/config.json": b"{}",
        "base/model.safetensors": bytes(range(250)) * (BASE_BYTES // 250),
        "train.jsonl": b'{"instruction": "a", "response": "b"}\n',
    }
    for path, content in files.items():
        s3_server.client().put_object(Bucket=s3_server.bucket, Key=f"{s3_prefix}-inputs/{path}", Body=content)
    inputs = f"s3://{s3_server.bucket}/{s3_prefix}-inputs"
    parameters = {"baseModel": {"uri": f"{inputs}/base"}, "dataset": {"train": {"uri": f"{inputs}/train.jsonl"}}}
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "AWS_ACCESS_KEY_ID").write_text(s3_server.admin.access_key_id)
    (secret / "AWS_SECRET_ACCESS_KEY").write_text(s3_server.admin.secret_access_key)
    return StageRuns(
        folder=tmp_path,
        store=s3_server.location(f"{s3_prefix}/team-a"),
        parameters=Parameters.model_validate(parameters),
        credentials_folder=secret,
    )


def with_cache(runs: StageRuns, size: int = 10**8) -> Path:
    """Give all stages of the run an empty cache."""
    folder = runs.folder / "cache"
    folder.mkdir()
    runs.environment |= {"EDGETUNE_MODEL_CACHE_DIR": str(folder), "EDGETUNE_MODEL_CACHE_BYTES": str(size)}
    return folder


def run_all(runs: StageRuns) -> dict[Stage, Result]:
    """Run the stages up to evaluate; their results."""
    results = {}
    for stage in list(Stage)[:-1]:
        ended = runs.run(stage)
        assert ended.exit_code == 0, ended.stderr
        results[stage] = ended.result
    return results


def downloaded(results: dict[Stage, Result]) -> float:
    """Bytes that the stages which read the base got from S3."""
    return sum(results[stage].metrics["downloadedBytes"] for stage in READERS)


def about_cache(result: Result) -> list[str]:
    """Warnings about the cache."""
    return [text for text in result.warnings if "model cache" in text]


def other_run(runs: StageRuns, name: str) -> StageRuns:
    """A run of the same base and data in another store, with the same cache."""
    folder = runs.folder / name
    folder.mkdir()
    return replace(runs, folder=folder, store=runs.store.model_copy(update={"uri": f"{runs.store.uri}-{name}"}))


def train_from(runs: StageRuns) -> Ended:
    """Run prepare and train."""
    assert runs.run(Stage.PREPARE).exit_code == 0
    return runs.run(Stage.TRAIN)


def cached_weights(folder: Path) -> Path:
    """The cached file of the weights."""
    (path,) = (path for path in folder.iterdir() if path.stat().st_size == BASE_BYTES)
    return path


def test_without_a_cache_each_stage_reads_the_base(runs: StageRuns) -> None:
    results = run_all(runs)

    assert downloaded(results) > 3 * BASE_BYTES
    assert "cachedBytes" not in results[Stage.TRAIN].metrics


def test_with_a_cache_a_run_reads_the_base_once_and_the_next_run_not_at_all(runs: StageRuns) -> None:
    with_cache(runs)

    first = run_all(runs)
    again = run_all(other_run(runs, "second"))

    assert BASE_BYTES <= downloaded(first) < 1.2 * BASE_BYTES
    assert downloaded(again) < 0.2 * BASE_BYTES
    cached = {stage: first[stage].metrics["cachedBytes"] > BASE_BYTES for stage in READERS}
    assert cached == {Stage.TRAIN: False, Stage.MERGE: True, Stage.EVALUATE: True}
    assert [about_cache(first[stage]) for stage in READERS] == [[], [], []]
    for stage in READERS:
        made, repeated = first[stage].artifacts, again[stage].artifacts
        assert [each.sha256 for each in made] == [each.sha256 for each in repeated]


def test_two_stages_that_start_together_read_the_base_once(runs: StageRuns) -> None:
    with_cache(runs)
    one, other = other_run(runs, "one"), other_run(runs, "other")
    for each in (one, other):
        assert each.run(Stage.PREPARE).exit_code == 0

    started = [each.start(Stage.TRAIN) for each in (one, other)]
    results = [each.wait().result for each in started]

    assert sum(each.metrics["downloadedBytes"] for each in results) < 1.2 * BASE_BYTES
    assert sum(each.metrics["cachedBytes"] for each in results) > BASE_BYTES  # file by file, by either of them


def truncate(folder: Path) -> None:
    path = cached_weights(folder)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:1000])


def flip_a_bit(folder: Path) -> None:
    path = cached_weights(folder)
    content = bytearray(path.read_bytes())
    content[1_000_000] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)


def replace_by_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("no folder")


LOSSES: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "was damaged and is removed"),
    "a flipped bit": (flip_a_bit, "was damaged and is removed"),
    "lost": (shutil.rmtree, "No such file or directory"),
    "not a folder": (replace_by_a_file, "Not a directory"),
}


@pytest.mark.parametrize(("lose", "problem"), LOSSES.values(), ids=LOSSES)
def test_a_lost_or_damaged_cache_is_a_warning_and_never_a_wrong_byte(
    runs: StageRuns, lose: Callable[[Path], None], problem: str
) -> None:
    plain = train_from(other_run(runs, "plain"))
    folder = with_cache(runs)
    assert train_from(runs).exit_code == 0

    lose(folder)
    again = train_from(other_run(runs, "again"))

    assert again.exit_code == 0, again.stderr
    assert again.result.artifacts[0].sha256 == plain.result.artifacts[0].sha256
    assert [problem in text and "read from the store" in text for text in about_cache(again.result)] == [True]
    assert again.result.metrics["downloadedBytes"] > BASE_BYTES


def test_a_damaged_file_is_replaced(runs: StageRuns) -> None:
    folder = with_cache(runs)
    assert train_from(runs).exit_code == 0
    flip_a_bit(folder)
    assert train_from(other_run(runs, "second")).exit_code == 0

    third = train_from(other_run(runs, "third")).result

    assert (about_cache(third), third.metrics["downloadedBytes"] < BASE_BYTES) == ([], True)


def test_a_base_that_is_larger_than_the_cache_is_a_warning(runs: StageRuns) -> None:
    folder = with_cache(runs, size=BASE_BYTES // 2)

    trained = train_from(runs)

    assert trained.exit_code == 0
    assert about_cache(trained.result) == [
        f"the model cache has {BASE_BYTES // 2:,} bytes, but the base model needs {BASE_BYTES:,}; the base model "
        "is read from the store",
    ]
    assert [path for path in folder.iterdir() if path.stat().st_size >= BASE_BYTES] == []


def test_stages_get_copies_and_cached_files_are_read_only(runs: StageRuns) -> None:
    folder = with_cache(runs)

    assert train_from(runs).exit_code == 0

    assert {path.stat().st_mode & 0o777 for path in folder.iterdir() if path.suffix != ".lock"} == {0o440}
    assert [path for path in folder.iterdir() if path.suffix == ".partial"] == []

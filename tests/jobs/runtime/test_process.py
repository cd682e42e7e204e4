"""Stage processes over a local folder: requests, results, failures and signals."""

import hashlib
import json
import signal
from pathlib import Path

import pytest

from edgetune_contract.request import MAX_RESULT_BYTES
from edgetune_contract.stages import Stage
from edgetune_jobs.runtime.inputs import digests_of_run
from support.local_runs import failed, keys, manifest_of, new_runs, parameters, store_of
from support.stage_runs import StageRuns


@pytest.fixture
def runs(tmp_path: Path) -> StageRuns:
    """A run without any finished stage."""
    return new_runs(tmp_path)


def test_a_request_without_the_digests_of_base_and_data_is_refused(runs: StageRuns) -> None:
    runs.run_up_to(Stage.PREPARE)
    request = runs.request(Stage.TRAIN).model_copy(update={"resolved": None})

    message = failed(runs.start(Stage.TRAIN, request=request.encode()).wait(), 10, "InvalidInput")

    assert message == "the request for the stage train lacks `resolved`: copy it from the result of prepare"


def test_prepare_returns_the_resolved_digests_and_its_content_digest(runs: StageRuns) -> None:
    prepare = runs.run(Stage.PREPARE)

    assert prepare.result.resolved is not None
    assert prepare.result.resolved.train == hashlib.sha256((runs.folder / "train.jsonl").read_bytes()).hexdigest()
    assert prepare.result.digest == digests_of_run(runs.request(Stage.TRAIN), prepare.result.resolved)[Stage.PREPARE]
    assert prepare.result.digest != runs.request(Stage.PREPARE).digest


def test_prepare_that_is_already_done_updates_metrics_of_fields_outside_its_digest(runs: StageRuns) -> None:
    assert runs.run(Stage.PREPARE).exit_code == 0
    runs.parameters = parameters(runs.folder, lora={"rank": 8})

    again = runs.run(Stage.PREPARE, EDGETUNE_TEST_BEHAVIOUR="bug")

    assert again.exit_code == 0, again.stderr
    assert again.result.cached
    assert again.result.metrics == {"rows": 3, "weights": 24}


def test_messages_say_what_is_read_and_that_the_libraries_are_imported(runs: StageRuns) -> None:
    """Nothing is fetched from a folder, and the imports take longer than reading."""
    assert runs.run(Stage.PREPARE).exit_code == 0
    train = runs.run(Stage.TRAIN)

    said = [line["say"] for line in train.lines if "say" in line]
    assert said[:3] == ["reading base", "reading prepared", "importing the libraries"]


def test_the_result_has_the_memory_and_the_disk_space_that_the_stage_used(runs: StageRuns) -> None:
    assert runs.run(Stage.PREPARE).exit_code == 0
    train = runs.run(Stage.TRAIN, EDGETUNE_TEST_ARTIFACT_BYTES="3000000")

    assert 10_000_000 < train.result.metrics["usedMemoryBytes"] < 2**30
    assert 3_000_000 < train.result.metrics["usedStorageBytes"] < 3_100_000


def test_the_message_of_prepare_has_no_room_for_what_stages_used(runs: StageRuns) -> None:
    runs.run_up_to(Stage.TRAIN)

    prepare = runs.run(Stage.PREPARE).result

    assert [result.metrics for result in (prepare, *prepare.done)] == [{"rows": 3, "weights": 48}, {"rows": 3}]


def test_changed_data_at_the_same_uri_is_prepared_again(runs: StageRuns) -> None:
    first = runs.run(Stage.PREPARE)
    (runs.folder / "train.jsonl").write_text('{"instruction": "new", "response": "rows"}\n')

    second = runs.run(Stage.PREPARE)

    assert second.exit_code == 0
    assert not second.result.cached
    assert second.result.digest != first.result.digest


def test_data_that_does_not_match_its_pin_is_invalid(runs: StageRuns) -> None:
    pinned = {"train": {"uri": (runs.folder / "train.jsonl").as_uri(), "revision": "0" * 64}}
    runs.parameters = parameters(runs.folder, dataset=pinned)

    message = failed(runs.run(Stage.PREPARE), 10, "InvalidInput")

    found = hashlib.sha256((runs.folder / "train.jsonl").read_bytes()).hexdigest()
    assert message.startswith(f"spec.dataset.train.revision is {'0' * 64}, but the content of file:///")
    assert found in message


def test_a_base_that_does_not_exist_is_named_with_its_field(runs: StageRuns) -> None:
    runs.parameters = parameters(runs.folder, baseModel={"uri": "file:///nowhere/at/all"})

    message = failed(runs.run(Stage.PREPARE), 10, "InvalidInput")

    assert message == "spec.baseModel.uri: file:///nowhere/at/all does not exist; correct the URI or add the files"


def test_all_that_does_not_exist_is_reported_at_once_with_the_names_that_were_probably_meant(runs: StageRuns) -> None:
    (runs.folder / "base").mkdir(exist_ok=True)
    (runs.folder / "eval.jsonl").write_text("{}")
    here = runs.folder.as_uri()
    runs.parameters = parameters(
        runs.folder, baseModel={"uri": f"{here}/bas"}, dataset={"train": {"uri": f"{here}/trian.jsonl"}}
    )

    message = failed(runs.run(Stage.PREPARE), 10, "InvalidInput")

    assert message.splitlines() == [
        f"spec.baseModel.uri: {here}/bas does not exist; did you mean 'base'?",
        f"spec.dataset.train.uri: {here}/trian.jsonl does not exist; did you mean 'train.jsonl'?",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "EDGETUNE_REQUEST is not set"),
        ("{", "EDGETUNE_REQUEST is not a valid request for this image: : Invalid JSON"),
        ('{"contractVersion": 2}', "contractVersion: Input should be 1"),
    ],
)
def test_a_request_that_cannot_be_read_is_invalid(runs: StageRuns, text: str, problem: str) -> None:
    message = failed(runs.start(Stage.PREPARE, request=text).wait(), 10, "InvalidInput")

    assert problem in message


def test_a_request_whose_digest_does_not_match_its_parameters_is_refused(runs: StageRuns) -> None:
    request = runs.request(Stage.PREPARE, digest="0" * 64)

    message = failed(runs.start(Stage.PREPARE, request=request.encode()).wait(), 10, "InvalidInput")

    assert "the operator and this image have different versions" in message


@pytest.mark.parametrize(
    ("behaviour", "exit_code", "reason", "part"),
    [
        ("memory", 14, "TransientError", "ran out of memory; raise its memory"),
        ("disk", 14, "TransientError", "the disk is full: "),
        ("disk_in_a_library", 14, "TransientError", "the disk is full: "),
        ("gpu_memory", 12, "OutOfGpuMemory", "out of GPU memory: CUDA out of memory. Tried to allocate 2 GiB; use a"),
        ("gpu_memory_of_the_stage", 12, "OutOfGpuMemory", "it does not fit"),
        ("bug", 1, "InternalError", "KeyError: "),
        ("too_long", 1, "InternalError", "more than 4096"),
        (
            "other_artifacts",
            1,
            "InternalError",
            "the stage prepare returned the artifacts weights, but the pipeline expects prepared",
        ),
    ],
)
def test_an_error_of_a_body_becomes_an_exit_code_a_reason_and_a_message(
    runs: StageRuns, behaviour: str, exit_code: int, reason: str, part: str
) -> None:
    ended = runs.run(Stage.PREPARE, EDGETUNE_TEST_BEHAVIOUR=behaviour)

    assert part in failed(ended, exit_code, reason)
    assert len(ended.message) <= MAX_RESULT_BYTES
    assert ("Traceback" in ended.stderr) == (exit_code == 1), "only bugs have a traceback"
    assert keys(runs, "stages") == []
    assert runs.leftovers() == []


def test_output_of_libraries_does_not_break_the_json_lines_on_stdout(runs: StageRuns) -> None:
    ended = runs.run(Stage.PREPARE, EDGETUNE_TEST_BEHAVIOUR="prints")

    assert ended.exit_code == 0
    assert {"say": "storing the result"} in ended.lines
    assert "a library's banner" in ended.stderr
    assert "a child of a library" in ended.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_stage_at_once_with_75_and_nothing_in_the_store(runs: StageRuns, number: int) -> None:
    stage = runs.start(Stage.PREPARE, EDGETUNE_TEST_BEHAVIOUR="hang")
    stage.wait_for("hanging")
    stage.process.send_signal(number)

    failed(stage.wait(), 75, "Interrupted")
    assert keys(runs, "stages") == []
    assert runs.leftovers() == []


def test_a_second_signal_does_not_interrupt_the_clean_up_after_the_first(runs: StageRuns) -> None:
    stage = runs.start(Stage.PREPARE, EDGETUNE_TEST_BEHAVIOUR="hang_and_clean_up")
    stage.wait_for("hanging")
    stage.process.send_signal(signal.SIGTERM)
    stage.wait_for("cleaning up")
    stage.process.send_signal(signal.SIGTERM)
    stopped = stage.wait()

    failed(stopped, 75, "Interrupted")
    assert {"say": "cleaned up"} in stopped.lines


def test_a_stopped_training_reports_its_step_and_the_next_attempt_resumes_from_it(runs: StageRuns) -> None:
    runs.run_up_to(Stage.PREPARE)
    first = runs.start(Stage.TRAIN, EDGETUNE_TEST_BEHAVIOUR="train_until_stopped")
    first.wait_for('"done": 1,')
    first.process.send_signal(signal.SIGTERM)
    first.process.send_signal(signal.SIGTERM)
    stopped = first.wait()
    failed(stopped, 75, "Interrupted")
    assert stopped.result.failure is not None
    step = stopped.result.failure.step
    assert step is not None

    second = runs.start(Stage.TRAIN, EDGETUNE_TEST_BEHAVIOUR="train_until_stopped")
    second.wait_for('"progress"')
    second.process.kill()
    second.wait()

    assert json.loads(second.said[-1])["progress"]["done"] == step + 1
    assert runs.run(Stage.TRAIN).exit_code == 0
    assert keys(runs, "checkpoints") == []


def test_a_body_that_ignores_the_signal_does_not_end_with_0(runs: StageRuns) -> None:
    runs.run_up_to(Stage.PREPARE)
    stage = runs.start(Stage.TRAIN, EDGETUNE_TEST_BEHAVIOUR="swallow_the_signal")
    stage.wait_for("hanging")
    stage.process.send_signal(signal.SIGTERM)

    failed(stage.wait(), 75, "Interrupted")
    assert manifest_of(runs, Stage.TRAIN) is None


def test_a_killed_stage_leaves_no_manifest_and_the_next_attempt_completes(runs: StageRuns) -> None:
    stage = runs.start(Stage.PREPARE, EDGETUNE_TEST_BEHAVIOUR="hang")
    stage.wait_for("hanging")
    stage.process.kill()
    killed = stage.wait()

    assert (killed.exit_code, killed.message) == (-signal.SIGKILL, b"")
    assert runs.run(Stage.PREPARE).exit_code == 0


def test_concurrent_attempts_end_with_one_manifest_that_verifies(runs: StageRuns) -> None:
    stages = [runs.start(Stage.PREPARE, EDGETUNE_TEST_ARTIFACT_BYTES="3000000") for _ in range(3)]
    ends = [stage.wait() for stage in stages]

    assert [ended.exit_code for ended in ends] == [0, 0, 0]
    assert len({ended.result.artifacts[0].uri for ended in ends}) == 1
    assert sum(not ended.result.cached for ended in ends) == 1
    runs.resolved = ends[0].result.resolved
    manifest = manifest_of(runs, Stage.PREPARE)
    assert manifest is not None
    folder = f"stages/prepare/{manifest.result.digest}"
    store_of(runs).fetch_folder(folder, manifest.files, runs.folder / "unused")
    assert set(keys(runs, folder)) == {f"{folder}/manifest.json"} | {
        f"{folder}/{entry.path}" for entry in manifest.files
    }


def test_a_work_folder_that_cannot_be_created_is_named(runs: StageRuns) -> None:
    (runs.folder / "work").write_text("a file, not a folder")

    message = failed(runs.run(Stage.PREPARE), 10, "InvalidInput")

    assert message.startswith(f"EDGETUNE_WORK_DIR: cannot write to {runs.folder / 'work'}: ")


def test_a_termination_log_that_cannot_be_written_does_not_change_the_exit_code(runs: StageRuns) -> None:
    ended = runs.run(Stage.PREPARE, EDGETUNE_TERMINATION_LOG="/nowhere/log")

    assert (ended.exit_code, ended.message) == (0, b"")
    assert "cannot write the result to /nowhere/log" in ended.stderr

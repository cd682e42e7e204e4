"""The runtime around a stage's body, as processes over a local folder: a whole run, and everything that ends one."""

import hashlib
import json
import shutil
import signal
from pathlib import Path

import pytest

from edgetune_contract.digest import manifest_key, pointer_key, version_key
from edgetune_contract.request import MAX_RESULT_BYTES, Manifest, StoreLocation
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.folder_store import LocalFolderStore
from edgetune_jobs.inputs import digests_of_run
from edgetune_jobs.publisher import Pointer
from edgetune_jobs.store import read_model, write_model
from edgetune_jobs.versions import Versions
from support.stage_runs import Ended, StageRuns


@pytest.fixture
def runs(tmp_path: Path) -> StageRuns:
    """A run of which nothing is done yet."""
    return new_runs(tmp_path)


@pytest.fixture(scope="module")
def published_once(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    """A run that was done to its end; not to be changed."""
    published = new_runs(tmp_path_factory.mktemp("published"))
    published.environment["EDGETUNE_IMAGE"] = "registry.example/jobs:1"
    published.run_up_to(Stage.PUBLISH)
    return published


@pytest.fixture
def published(runs: StageRuns, published_once: StageRuns) -> StageRuns:
    """A run that was done to its end, in a store of its own: content decides, not where it lies."""
    shutil.copytree(published_once.folder / "store", runs.folder / "store")
    runs.resolved = published_once.resolved
    return runs


def new_runs(folder: Path) -> StageRuns:
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text("{}")
    (folder / "base" / "model.safetensors").write_bytes(b"weights")
    (folder / "train.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
    store = StoreLocation(uri=(folder / "store" / "team-a").as_uri())
    return StageRuns(folder=folder, store=store, parameters=parameters(folder))


def parameters(folder: Path, **fields: object) -> Parameters:
    return Parameters.model_validate(
        {
            "baseModel": {"uri": (folder / "base").as_uri()},
            "dataset": {"train": {"uri": (folder / "train.jsonl").as_uri()}},
            **fields,
        }
    )


def store_of(runs: StageRuns) -> LocalFolderStore:
    return LocalFolderStore(runs.store.uri)


def manifest_of(runs: StageRuns, stage: Stage) -> Manifest | None:
    resolved = runs.resolved
    assert resolved is not None
    request = runs.request(stage)
    return read_model(store_of(runs), manifest_key(stage, digests_of_run(request, resolved)[stage]), Manifest)


def version_at_pointer(runs: StageRuns) -> str:
    version = Pointer(store_of(runs), "sensor-faults").version
    assert version is not None
    return version


def keys(runs: StageRuns, folder: str) -> list[str]:
    return [found.key for found in store_of(runs).list(folder)]


def failed(ended: Ended, exit_code: int, reason: str) -> str:
    """The failure's message, after the exit code and the reason were compared."""
    assert ended.exit_code == exit_code, ended.stderr
    assert ended.result.failure is not None
    assert (ended.result.failure.exit_code, ended.result.failure.reason) == (exit_code, reason)
    return ended.result.failure.message


def test_all_stages_run_one_after_the_other_and_publish(published_once: StageRuns) -> None:
    manifests = {stage: manifest_of(published_once, stage) for stage in Stage}
    for stage, manifest in manifests.items():
        assert manifest is not None, f"{stage} has no manifest"
        assert manifest.result.seconds > 0
        assert manifest.versions["torch"]
        for entry in manifest.files:
            content = store_of(published_once).read(f"stages/{stage}/{manifest.result.digest}/{entry.path}")
            assert content is not None
            assert hashlib.sha256(content.data).hexdigest() == entry.sha256
    pointer = store_of(published_once).read(pointer_key("sensor-faults"))
    publish = manifests[Stage.PUBLISH]
    assert pointer is not None
    assert publish is not None
    document = json.loads(pointer.data)
    assert document["version"] == publish.result.digest
    assert document["scores"]["edge"] == 0.89
    assert document["edge"]["artifact"]["name"] == "edge-bnb-int8"
    assert [entry["path"] for entry in document["edge"]["files"]] == ["deep/origin.txt", "weights.safetensors"]
    assert set(document["provenance"]["stages"]) == {stage.value for stage in Stage} - {"publish"}
    assert publish.result.publication is not None
    assert publish.result.publication.pointer == f"{published_once.store.uri}/models/sensor-faults/latest.json"
    assert keys(published_once, "probe") == []
    assert published_once.leftovers() == []


def test_a_manifest_and_the_version_say_what_they_were_made_of_and_with(published_once: StageRuns) -> None:
    train, publish = manifest_of(published_once, Stage.TRAIN), manifest_of(published_once, Stage.PUBLISH)
    version = Versions(store_of(published_once), "sensor-faults").all()[0].document

    assert train is not None
    assert publish is not None
    assert version is not None
    assert train.resolved == version.provenance.resolved == published_once.resolved
    assert train.parameters["training"]["seed"] == 42
    assert train.parameters == version.provenance.parameters
    assert train.image == version.provenance.stages[Stage.TRAIN].image == "registry.example/jobs:1"
    assert version.provenance.stages[Stage.TRAIN].libraries == train.versions


def test_a_pin_needs_nothing_that_prepare_finds_out_and_moves_the_pointer_back(published: StageRuns) -> None:
    first = version_at_pointer(published)
    published.parameters = parameters(published.folder, evaluation={"gates": {"maxDrop": 0.5}})
    assert published.run(Stage.PUBLISH).exit_code == 0
    second, resolved = version_at_pointer(published), published.resolved

    published.parameters = parameters(published.folder, publish={"pin": first[:12]})
    request = published.request(Stage.PUBLISH).model_copy(update={"resolved": None})
    (published.folder / "base" / "config.json").unlink()
    pinned = published.start(Stage.PUBLISH, request=request.encode()).wait()

    assert pinned.exit_code == 0, pinned.stderr
    publication = pinned.result.publication
    assert publication is not None
    assert (publication.version, publication.pinned) == (first, True)
    assert version_at_pointer(published) == first != second
    assert manifest_of(published, Stage.PUBLISH) is not None
    assert published.resolved == resolved


def test_a_pin_that_is_done_counts_as_done_until_the_pointer_moves_and_then_moves_it_again(
    published: StageRuns,
) -> None:
    first = version_at_pointer(published)
    published.parameters = parameters(published.folder, publish={"pin": first[:12]})
    assert published.run(Stage.PUBLISH).exit_code == 0
    still = published.run(Stage.PREPARE).result.done
    published.parameters = parameters(published.folder, evaluation={"gates": {"maxDrop": 0.5}})
    assert published.run(Stage.PUBLISH).exit_code == 0
    published.parameters = parameters(published.folder, publish={"pin": first[:12]})

    moved = published.run(Stage.PREPARE).result.done
    again = published.run(Stage.PUBLISH)

    assert Stage.PUBLISH in [result.stage for result in still]
    assert Stage.PUBLISH not in [result.stage for result in moved]
    assert again.result.cached
    assert version_at_pointer(published) == first


def test_a_pin_on_no_version_is_invalid_and_leaves_the_pointer(published: StageRuns) -> None:
    before = version_at_pointer(published)
    published.parameters = parameters(published.folder, publish={"pin": "f" * 12})

    message = failed(published.run(Stage.PUBLISH), 10, "InvalidInput")

    assert message.startswith(f"spec.publish.pin: sensor-faults has no version {'f' * 12}; versions, newest first: ")
    assert before[:12] in message
    assert version_at_pointer(published) == before


def test_a_stage_without_what_prepare_resolved_is_refused(runs: StageRuns) -> None:
    runs.run_up_to(Stage.PREPARE)
    request = runs.request(Stage.TRAIN).model_copy(update={"resolved": None})

    message = failed(runs.start(Stage.TRAIN, request=request.encode()).wait(), 10, "InvalidInput")

    assert message == "the request for train lacks `resolved`, which prepare finds out"


def test_the_second_run_answers_from_the_manifest_without_doing_anything(published: StageRuns) -> None:
    prepare, train = published.run(Stage.PREPARE), published.run(Stage.TRAIN, EDGETUNE_TEST_BEHAVIOUR="bug")

    assert (prepare.exit_code, train.exit_code) == (0, 0)
    assert prepare.result.cached
    assert train.result.cached
    assert train.result.warnings == ("few rows",)


def test_prepare_answers_with_what_it_resolved_and_its_content_digest(runs: StageRuns) -> None:
    prepare = runs.run(Stage.PREPARE)

    assert prepare.result.resolved is not None
    assert prepare.result.resolved.train == hashlib.sha256((runs.folder / "train.jsonl").read_bytes()).hexdigest()
    assert prepare.result.digest == digests_of_run(runs.request(Stage.TRAIN), prepare.result.resolved)[Stage.PREPARE]
    assert prepare.result.digest != runs.request(Stage.PREPARE).digest


def test_prepare_that_is_done_looks_again_at_what_its_digest_does_not_cover(runs: StageRuns) -> None:
    assert runs.run(Stage.PREPARE).exit_code == 0
    runs.parameters = parameters(runs.folder, lora={"rank": 8})

    again = runs.run(Stage.PREPARE, EDGETUNE_TEST_BEHAVIOUR="bug")

    assert again.exit_code == 0, again.stderr
    assert again.result.cached
    assert again.result.metrics == {"rows": 3, "weights": 24}


def test_prepare_reports_which_later_stages_are_done(published: StageRuns) -> None:
    prepare = published.run(Stage.PREPARE)

    done = prepare.result.done
    assert [each.stage for each in done] == list(Stage)[1:]
    assert all(each.cached for each in done)
    assert done[0].artifacts[0].name == "adapter"


def test_new_data_behind_the_same_name_is_prepared_anew(runs: StageRuns) -> None:
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

    assert message == "spec.baseModel.uri: file:///nowhere/at/all does not exist"


def test_a_base_that_changed_after_prepare_is_refused(published: StageRuns) -> None:
    published.parameters = parameters(published.folder, lora={"rank": 8})
    (published.folder / "base" / "model.safetensors").write_bytes(b"other weights")

    message = failed(published.run(Stage.TRAIN), 10, "InvalidInput")

    assert "has changed since it was prepared" in message
    assert "pin it by spec.baseModel.revision, or ask for a retry" in message


def test_a_stage_without_the_manifest_before_it_is_told_which_is_missing(published: StageRuns) -> None:
    published.parameters = parameters(published.folder, lora={"rank": 8})

    message = failed(published.run(Stage.MERGE), 10, "InvalidInput")

    assert message.startswith(f"{published.store.uri}/stages/train/")
    assert message.endswith(
        "/manifest.json is missing: ask for a retry (annotation edgetune.dev/retry-requested, "
        "or run the command again), and the stage train runs again"
    )


def test_a_damaged_input_is_not_worked_on(published: StageRuns) -> None:
    manifest = manifest_of(published, Stage.TRAIN)
    assert manifest is not None
    store_of(published).put(f"stages/train/{manifest.result.digest}/{manifest.files[-1].path}", b"0123456789")

    published.parameters = parameters(published.folder, merge={"base": "Original"})
    message = failed(published.run(Stage.MERGE), 14, "TransientFault")

    assert "adapter/weights.safetensors is damaged: 10 bytes with SHA-256" in message


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_what_a_damaged_input_says_to_do_has_it_made_anew(published: StageRuns, damage: str) -> None:
    manifest = manifest_of(published, Stage.TRAIN)
    assert manifest is not None
    folder = f"stages/train/{manifest.result.digest}"
    key = f"{folder}/{manifest.files[-1].path}"
    if damage == "changed":
        store_of(published).put(key, b"0123456789")
    else:
        store_of(published).delete(key)
    published.parameters = parameters(published.folder, merge={"base": "Original"})

    message = failed(published.run(Stage.MERGE), 14, "TransientFault")
    assert message.endswith(
        f"; delete {store_of(published).uri}/{folder}/ and ask for a retry (annotation edgetune.dev/retry-requested, "
        "or run the command again): it is then made anew"
    )

    store_of(published).delete_tree(folder)
    assert Stage.TRAIN not in [result.stage for result in published.run(Stage.PREPARE).result.done]
    assert [published.run(stage).exit_code for stage in (Stage.TRAIN, Stage.MERGE)] == [0, 0]


def test_a_manifest_with_a_path_that_is_no_artifacts_names_the_folder_to_delete(published: StageRuns) -> None:
    manifest = manifest_of(published, Stage.TRAIN)
    assert manifest is not None
    entry = manifest.files[0].model_copy(update={"path": "weights.safetensors"})
    broken = manifest.model_copy(update={"files": (entry,)})
    write_model(store_of(published), manifest_key(Stage.TRAIN, manifest.result.digest), broken)
    published.parameters = parameters(published.folder, merge={"base": "Original"})

    message = failed(published.run(Stage.MERGE), 10, "InvalidInput")

    assert message.startswith("the manifest of the stage train names no artifact adapter: delete ")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "EDGETUNE_REQUEST is not set"),
        ("{", "EDGETUNE_REQUEST is not a request that this image understands: : Invalid JSON"),
        ('{"contractVersion": 2}', "contractVersion: Input should be 1"),
    ],
)
def test_a_request_that_cannot_be_read_is_invalid(runs: StageRuns, text: str, problem: str) -> None:
    message = failed(runs.start(Stage.PREPARE, request=text).wait(), 10, "InvalidInput")

    assert problem in message


def test_a_request_with_a_digest_that_is_not_its_own_is_refused(runs: StageRuns) -> None:
    request = runs.request(Stage.PREPARE, digest="0" * 64)

    message = failed(runs.start(Stage.PREPARE, request=request.encode()).wait(), 10, "InvalidInput")

    assert "the operator and this image are of different versions" in message


@pytest.mark.parametrize(
    ("behaviour", "exit_code", "reason", "part"),
    [
        ("memory", 14, "TransientFault", "ran out of memory; give it more"),
        ("disk", 14, "TransientFault", "the disk is full: "),
        ("disk_in_a_library", 14, "TransientFault", "the disk is full: "),
        ("gpu_memory", 12, "OutOfGpuMemory", "out of GPU memory: CUDA out of memory. Tried to allocate 2 GiB; use a"),
        ("gpu_memory_of_the_stage", 12, "OutOfGpuMemory", "it does not fit"),
        ("bug", 1, "InternalError", "KeyError: "),
        ("too_long", 1, "InternalError", "more than 4096"),
    ],
)
def test_what_ends_a_body_is_told_in_the_words_of_the_contract(
    runs: StageRuns, behaviour: str, exit_code: int, reason: str, part: str
) -> None:
    ended = runs.run(Stage.PREPARE, EDGETUNE_TEST_BEHAVIOUR=behaviour)

    assert part in failed(ended, exit_code, reason)
    assert len(ended.message) <= MAX_RESULT_BYTES
    assert ("Traceback" in ended.stderr) == (exit_code == 1), "a traceback is for bugs"
    assert keys(runs, "stages") == []
    assert runs.leftovers() == []


def test_what_libraries_print_does_not_break_the_lines_of_stdout(runs: StageRuns) -> None:
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


def test_a_second_signal_does_not_disturb_what_the_first_one_began(runs: StageRuns) -> None:
    stage = runs.start(Stage.PREPARE, EDGETUNE_TEST_BEHAVIOUR="hang_and_clean_up")
    stage.wait_for("hanging")
    stage.process.send_signal(signal.SIGTERM)
    stage.wait_for("cleaning up")
    stage.process.send_signal(signal.SIGTERM)
    stopped = stage.wait()

    failed(stopped, 75, "Interrupted")
    assert {"say": "cleaned up"} in stopped.lines


def test_a_training_that_is_stopped_tells_its_step_and_goes_on_from_there(runs: StageRuns) -> None:
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


def test_a_stage_that_was_killed_leaves_no_manifest_and_the_next_one_completes(runs: StageRuns) -> None:
    stage = runs.start(Stage.PREPARE, EDGETUNE_TEST_BEHAVIOUR="hang")
    stage.wait_for("hanging")
    stage.process.kill()
    killed = stage.wait()

    assert (killed.exit_code, killed.message) == (-signal.SIGKILL, b"")
    assert runs.run(Stage.PREPARE).exit_code == 0


def test_two_runtimes_at_once_end_with_one_manifest_that_verifies(runs: StageRuns) -> None:
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


def test_the_base_is_scored_once_for_runs_that_differ_in_the_edge_model_only(published: StageRuns) -> None:
    published.parameters = parameters(published.folder, quantization={"outlierThreshold": 5.0})
    published.run(Stage.QUANTIZE)
    published.run(Stage.EVALUATE)

    manifest = manifest_of(published, Stage.EVALUATE)

    assert manifest is not None
    assert manifest.result.facts["inputs"] == "adapter base base-scores edge-bnb-int8 merged prepared"
    assert len(keys(published, "scores/base")) == 1


def test_gates_that_do_not_hold_refuse_and_leave_the_old_pointer(published: StageRuns) -> None:
    before = store_of(published).read(pointer_key("sensor-faults"))
    published.parameters = parameters(published.folder, evaluation={"gates": {"minScore": 0.95}})

    publish = published.run(Stage.PUBLISH)

    assert publish.exit_code == 0
    assert publish.result.publication is not None
    assert publish.result.publication.refusals == ("minScore: the edge model scores 0.890; the limit is 0.950",)
    assert store_of(published).read(pointer_key("sensor-faults")) == before
    version = store_of(published).read(version_key("sensor-faults", publish.result.digest))
    assert version is not None
    assert json.loads(version.data)["published"] is False


def test_going_back_to_an_earlier_spec_moves_the_pointer_back(published: StageRuns) -> None:
    first_parameters = published.parameters
    first = published.run(Stage.PUBLISH).result.digest
    published.parameters = parameters(published.folder, evaluation={"gates": {"minScore": 0.5}})
    second = published.run(Stage.PUBLISH).result.digest
    pointer = store_of(published).read(pointer_key("sensor-faults"))
    assert pointer is not None
    assert json.loads(pointer.data)["version"] == second

    published.parameters = first_parameters
    done = published.run(Stage.PREPARE).result.done
    again = published.run(Stage.PUBLISH)

    assert Stage.PUBLISH not in [each.stage for each in done], "publish has to run once more"
    assert again.result.cached
    pointer = store_of(published).read(pointer_key("sensor-faults"))
    assert pointer is not None
    assert json.loads(pointer.data)["version"] == first


def test_a_work_folder_that_cannot_be_made_is_named(runs: StageRuns) -> None:
    (runs.folder / "work").write_text("a file, not a folder")

    message = failed(runs.run(Stage.PREPARE), 10, "InvalidInput")

    assert message.startswith(f"EDGETUNE_WORK_DIR {runs.folder / 'work'} cannot be written")


def test_a_termination_log_that_cannot_be_written_does_not_change_the_exit_code(runs: StageRuns) -> None:
    ended = runs.run(Stage.PREPARE, EDGETUNE_TERMINATION_LOG="/nowhere/log")

    assert (ended.exit_code, ended.message) == (0, b"")
    assert "the result cannot be written to /nowhere/log" in ended.stderr

"""Published runs over a local folder: provenance, pins, damaged inputs, and cached results."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from edgetune_contract.digest import manifest_key, pointer_key, version_key
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.publishing.versions import Versions
from edgetune_jobs.store.store import write_model
from support.local_runs import failed, keys, manifest_of, new_runs, parameters, store_of, version_at_pointer
from support.stage_runs import StageRuns


@pytest.fixture(scope="module")
def published_once(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    """A run whose stages are all done. Tests must not change it."""
    published = new_runs(tmp_path_factory.mktemp("published"))
    published.environment["EDGETUNE_IMAGE"] = "registry.example/jobs:1"
    published.run_up_to(Stage.PUBLISH)
    return published


@pytest.fixture
def published(tmp_path: Path, published_once: StageRuns) -> StageRuns:
    """A run whose stages are all done, in a store of its own: digests depend on content, not on location."""
    runs = new_runs(tmp_path)
    shutil.copytree(published_once.folder / "store", runs.folder / "store")
    runs.resolved = published_once.resolved
    return runs


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


def test_manifest_and_version_record_inputs_parameters_image_and_libraries(published_once: StageRuns) -> None:
    train, publish = manifest_of(published_once, Stage.TRAIN), manifest_of(published_once, Stage.PUBLISH)
    version = Versions(store_of(published_once), "sensor-faults").all()[0].document

    assert train is not None
    assert publish is not None
    assert version is not None
    assert train.resolved == version.provenance.resolved == published_once.resolved
    assert Parameters.model_validate(train.parameters).training.seed == 42
    assert train.parameters == version.provenance.parameters
    assert train.image == version.provenance.stages[Stage.TRAIN].image == "registry.example/jobs:1"
    assert version.provenance.stages[Stage.TRAIN].libraries == train.versions


def test_prepare_and_publish_report_what_is_live_also_if_their_output_is_in_the_store(published: StageRuns) -> None:
    version = version_at_pointer(published)

    found = [published.run(stage).result.live for stage in (Stage.PREPARE, Stage.TRAIN, Stage.PUBLISH)]

    prepared, trained, published_again = found
    assert prepared is not None
    assert (prepared.version, trained) == (version, None)
    assert prepared.scores is not None
    assert prepared.scores.edge == 0.89
    assert published_again == prepared


def test_without_a_pointer_nothing_is_live(published: StageRuns) -> None:
    store_of(published).delete(pointer_key("sensor-faults"))

    assert published.run(Stage.PREPARE).result.live is None


def test_a_pin_needs_no_result_of_prepare_and_moves_the_pointer_back(published: StageRuns) -> None:
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


def test_a_finished_pin_counts_as_done_until_the_pointer_moves_and_then_moves_it_again(
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


def test_a_pin_to_an_unknown_version_is_invalid_and_does_not_move_the_pointer(published: StageRuns) -> None:
    before = version_at_pointer(published)
    published.parameters = parameters(published.folder, publish={"pin": "f" * 12})

    message = failed(published.run(Stage.PUBLISH), 10, "InvalidInput")

    assert message.startswith(f"spec.publish.pin: sensor-faults has no version {'f' * 12}; versions, newest first: ")
    assert before[:12] in message
    assert version_at_pointer(published) == before


def test_a_second_run_returns_the_cached_result_without_any_work(published: StageRuns) -> None:
    prepare, train = published.run(Stage.PREPARE), published.run(Stage.TRAIN, EDGETUNE_TEST_BEHAVIOUR="bug")

    assert (prepare.exit_code, train.exit_code) == (0, 0)
    assert prepare.result.cached
    assert train.result.cached
    assert train.result.warnings == ("few rows",)


def test_prepare_reports_which_later_stages_are_done(published: StageRuns) -> None:
    prepare = published.run(Stage.PREPARE)

    done = prepare.result.done
    assert [each.stage for each in done] == list(Stage)[1:]
    assert all(each.cached for each in done)
    assert done[0].artifacts[0].name == "adapter"


def test_a_base_that_changed_after_prepare_is_refused(published: StageRuns) -> None:
    published.parameters = parameters(published.folder, lora={"rank": 8})
    (published.folder / "base" / "model.safetensors").write_bytes(b"other weights")

    message = failed(published.run(Stage.TRAIN), 10, "InvalidInput")

    assert "has changed since prepare" in message
    assert "restore it and pin it with spec.baseModel.revision, or ask for a retry" in message


def test_the_message_about_a_missing_earlier_stage_names_its_manifest(published: StageRuns) -> None:
    published.parameters = parameters(published.folder, lora={"rank": 8})

    message = failed(published.run(Stage.MERGE), 10, "InvalidInput")

    assert message.startswith(f"{published.store.uri}/stages/train/")
    assert message.endswith(
        "/manifest.json is missing: ask for a retry (annotation edgetune.dev/retry-requested, "
        "or run the command again) to run the stage train again"
    )


def test_a_stage_refuses_a_damaged_input(published: StageRuns) -> None:
    manifest = manifest_of(published, Stage.TRAIN)
    assert manifest is not None
    store_of(published).put(f"stages/train/{manifest.result.digest}/{manifest.files[-1].path}", b"0123456789")

    published.parameters = parameters(published.folder, merge={"base": "Original"})
    message = failed(published.run(Stage.MERGE), 14, "TransientError")

    assert "adapter/weights.safetensors is damaged: 10 bytes with SHA-256" in message


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_the_advice_about_a_damaged_input_recreates_it(published: StageRuns, damage: str) -> None:
    manifest = manifest_of(published, Stage.TRAIN)
    assert manifest is not None
    folder = f"stages/train/{manifest.result.digest}"
    key = f"{folder}/{manifest.files[-1].path}"
    if damage == "changed":
        store_of(published).put(key, b"0123456789")
    else:
        store_of(published).delete(key)
    published.parameters = parameters(published.folder, merge={"base": "Original"})

    message = failed(published.run(Stage.MERGE), 14, "TransientError")
    assert message.endswith(
        f"; delete {store_of(published).uri}/{folder}/ and ask for a retry (annotation edgetune.dev/retry-requested, "
        "or run the command again) to create it again"
    )

    store_of(published).delete_tree(folder)
    assert Stage.TRAIN not in [result.stage for result in published.run(Stage.PREPARE).result.done]
    assert [published.run(stage).exit_code for stage in (Stage.TRAIN, Stage.MERGE)] == [0, 0]


def test_the_message_about_a_manifest_without_an_artifact_names_the_folder_to_delete(published: StageRuns) -> None:
    manifest = manifest_of(published, Stage.TRAIN)
    assert manifest is not None
    entry = manifest.files[0].model_copy(update={"path": "weights.safetensors"})
    broken = manifest.model_copy(update={"files": (entry,)})
    write_model(store_of(published), manifest_key(Stage.TRAIN, manifest.result.digest), broken)
    published.parameters = parameters(published.folder, merge={"base": "Original"})

    message = failed(published.run(Stage.MERGE), 10, "InvalidInput")

    manifest_uri = f"{store_of(published).uri}/{manifest_key(Stage.TRAIN, manifest.result.digest)}"
    assert message.startswith(f"{manifest_uri} has no artifact 'adapter': delete ")


def test_the_base_is_scored_once_for_runs_that_differ_only_in_the_edge_model(published: StageRuns) -> None:
    published.parameters = parameters(published.folder, quantization={"outlierThreshold": 5.0})
    published.run(Stage.QUANTIZE)
    published.run(Stage.EVALUATE)

    manifest = manifest_of(published, Stage.EVALUATE)

    assert manifest is not None
    assert manifest.result.facts["inputs"] == "adapter base base-scores edge-bnb-int8 merged prepared"
    scores, answers = sorted(keys(published, "scores/base"), key=len)
    assert answers == scores.replace(".json", ".answers.jsonl")
    assert manifest.result.facts["baseAnswers"] == '{"row": 0, "answer": "a"}'


def test_failed_gates_refuse_the_model_and_do_not_move_the_pointer(published: StageRuns) -> None:
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

    assert Stage.PUBLISH not in [each.stage for each in done], "publish has to run again"
    assert again.result.cached
    pointer = store_of(published).read(pointer_key("sensor-faults"))
    assert pointer is not None
    assert json.loads(pointer.data)["version"] == first

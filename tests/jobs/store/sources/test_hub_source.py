"""Base models from the hub: prepare copies them to the store, so that all later stages work without the hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetune_contract.request import StoreLocation
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.sources.hub_source import HubSource
from support.fake_hub import FakeHub, running_hub
from support.stage_runs import StageRuns

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    ".gitattributes": b"*.safetensors filter=lfs",
    "README.md": b"a model",
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": b"weights" * 1000,
    "pytorch_model.bin": b"a pickle",
    "modeling_custom.py": b"import os",
    "onnx/model.onnx": b"another format",
    "tokenizer.json": b"{}",
}
RETRY = "ask for a retry (annotation edgetune.dev/retry-requested, or run the command again)"
MIRRORED = ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with running_hub("acme/tiny", COMMIT, FILES) as hub:
        yield hub


@pytest.fixture
def runs(hub: FakeHub, tmp_path: Path) -> StageRuns:
    (tmp_path / "train.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
    (tmp_path / "secret").mkdir()
    parameters = {
        "baseModel": {"uri": "hf://acme/tiny", "revision": COMMIT},
        "dataset": {"train": {"uri": (tmp_path / "train.jsonl").as_uri()}},
    }
    return StageRuns(
        folder=tmp_path,
        store=StoreLocation(uri=(tmp_path / "store").as_uri()),
        parameters=Parameters.model_validate(parameters),
        credentials_folder=tmp_path / "secret",
        # The hub's client raises warnings; pytest's filter for them does not apply to the process.
        environment={"HF_ENDPOINT": hub.endpoint, "PYTHONWARNINGS": "default"},
    )


def test_prepare_mirrors_the_safe_files_and_train_needs_no_hub(runs: StageRuns, hub: FakeHub) -> None:
    prepare = runs.run(Stage.PREPARE)
    assert prepare.exit_code == 0, prepare.stderr
    hub.error = (503, "")
    train = runs.run(Stage.TRAIN)

    assert train.exit_code == 0, train.stderr
    assert sorted(set(hub.fetched)) == MIRRORED
    assert prepare.result.resolved is not None
    store = LocalFolderStore(runs.store.uri)
    folder = f"sources/{prepare.result.resolved.base}"
    mirrored = [found.key.split("/")[3] for found in store.list(folder) if not found.key.endswith("manifest.json")]
    assert mirrored == MIRRORED


def test_a_model_that_is_already_mirrored_is_not_fetched_again(runs: StageRuns, hub: FakeHub) -> None:
    assert runs.run(Stage.PREPARE).exit_code == 0
    hub.fetched.clear()
    (runs.folder / "train.jsonl").write_text('{"instruction": "c", "response": "d"}\n')

    again = runs.run(Stage.PREPARE)

    assert (again.exit_code, again.result.cached) == (0, False)
    assert hub.fetched == []


def test_prepare_that_is_already_done_reads_the_mirror_instead_of_the_hub(runs: StageRuns, hub: FakeHub) -> None:
    assert runs.run(Stage.PREPARE).exit_code == 0
    hub.fetched.clear()

    again = runs.run(Stage.PREPARE)

    assert again.exit_code == 0, again.stderr
    assert (again.result.cached, again.result.metrics["weights"]) == (True, 48)
    assert hub.fetched == []


def test_a_deleted_mirror_is_named_and_a_retry_copies_the_model_again(runs: StageRuns) -> None:
    assert runs.run(Stage.PREPARE).exit_code == 0
    LocalFolderStore(runs.store.uri).delete_tree("sources")

    train = runs.run(Stage.TRAIN)

    assert train.exit_code == 10
    assert train.failure.startswith("spec.baseModel.uri: the copy of hf://acme/tiny is missing from file://")
    assert train.failure.endswith(f"; {RETRY}")
    assert runs.run(Stage.PREPARE).result.cached
    assert runs.run(Stage.TRAIN).exit_code == 0


def test_the_message_about_a_damaged_mirror_names_the_folder_to_delete(runs: StageRuns) -> None:
    prepare = runs.run(Stage.PREPARE)
    assert prepare.result.resolved is not None
    store = LocalFolderStore(runs.store.uri)
    folder = f"sources/{prepare.result.resolved.base}"
    store.put(next(found.key for found in store.list(folder) if found.key.endswith("config.json")), b"changed")

    train = runs.run(Stage.TRAIN)

    assert train.exit_code == 14
    assert train.failure.endswith(f"; delete {store.uri}/{folder}/ and {RETRY} to create it again")


def test_the_message_about_a_gated_model_says_where_to_accept_its_licence(runs: StageRuns, hub: FakeHub) -> None:
    hub.needs_token = "hf_secret"

    refused = runs.run(Stage.PREPARE)
    (runs.folder / "secret" / "HF_TOKEN").write_text("hf_secret\n")
    accepted = runs.run(Stage.PREPARE)

    assert refused.exit_code == 11
    assert f"the model is gated; accept its licence at {hub.endpoint}/acme/tiny" in refused.failure
    assert "hf_secret" not in refused.stderr
    assert accepted.exit_code == 0, accepted.stderr


@pytest.mark.parametrize(
    ("error", "exit_code", "part"),
    [
        ((401, "RepoNotFound"), 11, "the model does not exist, or it is private or needs its licence accepted at"),
        ((403, ""), 11, "the hub answered 403"),
        ((404, "RepoNotFound"), 10, "there is no such model, or no such file in it; see"),
        ((404, "RevisionNotFound"), 10, "there is no such commit; see"),
        ((500, ""), 14, "the hub answered 500"),
    ],
)
def test_an_error_of_the_hub_becomes_an_exit_code_and_a_message(
    runs: StageRuns, hub: FakeHub, error: tuple[int, str], exit_code: int, part: str
) -> None:
    hub.error = error

    ended = runs.run(Stage.PREPARE)

    assert ended.exit_code == exit_code, ended.stderr
    assert ended.failure.startswith(f"spec.baseModel: hf://acme/tiny at {COMMIT}: ")
    assert part in ended.failure


@pytest.mark.parametrize("name", ["-a/b..c", "a/b--c", "a/b.git", "a/b."])
def test_a_name_that_is_not_valid_on_the_hub_is_refused(name: str, tmp_path: Path) -> None:
    source = HubSource(f"hf://{name}", COMMIT, "spec.baseModel", None, tmp_path)

    with pytest.raises(InvalidInput, match=rf"^spec\.baseModel\.uri: hf://{name} is not a valid model name of the hub"):
        _ = source.files


def test_an_unreachable_hub_is_a_transient_error(runs: StageRuns) -> None:
    runs.environment["HF_ENDPOINT"] = "http://127.0.0.1:1"

    ended = runs.run(Stage.PREPARE)

    assert ended.exit_code == 14, ended.stderr
    assert f"spec.baseModel: hf://acme/tiny at {COMMIT}: cannot reach the hub: " in ended.failure


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_does_not_match_the_hubs_checksum_is_not_mirrored(runs: StageRuns, hub: FakeHub, name: str) -> None:
    hub.altered[name] = FILES[name][:-1] + b"!"

    ended = runs.run(Stage.PREPARE)

    assert ended.exit_code == 14, ended.stderr
    assert f"{name} of hf://acme/tiny was damaged in transfer" in ended.failure
    assert [found.key for found in LocalFolderStore(runs.store.uri).list("stages")] == []

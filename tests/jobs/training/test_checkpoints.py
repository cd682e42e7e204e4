"""Training checkpoints: only complete ones are restored, newest first, and manifests are never wrong."""

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgetune_jobs.stage import StepSize
from edgetune_jobs.store.s3.store import S3Store
from edgetune_jobs.store.store import FileList, Store, read_model
from edgetune_jobs.training.checkpoints import StoreCheckpoints
from support.fault_proxy import Fault, FaultProxy
from support.versitygw import S3Server

DIGEST = "d" * 64
FOLDER = f"checkpoints/{DIGEST}"


@pytest.fixture
def checkpoints(store: Store) -> StoreCheckpoints:
    return StoreCheckpoints(store, DIGEST, keep=2)


def checkpoint_folder(tmp_path: Path, step: int, mark: str = "") -> Path:
    folder = tmp_path / f"local-{step}{mark}"
    (folder / "adapter").mkdir(parents=True)
    (folder / "trainer_state.json").write_text(f'{{"step": {step}}}')
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(f"weights {step} {mark}".encode())
    return folder


def contents(folder: Path) -> Mapping[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps_in(store: Store) -> list[str]:
    return sorted({found.key.split("/")[2] for found in store.list(FOLDER)})


def manifest_of(store: Store, step: int) -> FileList:
    manifest = read_model(store, f"{FOLDER}/step-{step}/manifest.json", FileList)
    assert manifest is not None
    return manifest


def test_without_a_checkpoint_there_is_nothing_to_restore(checkpoints: StoreCheckpoints, tmp_path: Path) -> None:
    assert checkpoints.restore_latest(tmp_path / "restored") is None


def test_the_newest_checkpoint_is_restored_unchanged(checkpoints: StoreCheckpoints, tmp_path: Path) -> None:
    for step in (100, 9, 20):
        checkpoints.save(step, checkpoint_folder(tmp_path, step))
    (tmp_path / "restored").mkdir()

    assert checkpoints.restore_latest(tmp_path / "restored") == 100
    assert contents(tmp_path / "restored") == contents(tmp_path / "local-100")


def test_only_the_newest_are_kept(checkpoints: StoreCheckpoints, store: Store, tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        checkpoints.save(step, checkpoint_folder(tmp_path, step))

    assert steps_in(store) == ["step-30", "step-40"]


def test_changing_restored_files_does_not_change_the_store(checkpoints: StoreCheckpoints, tmp_path: Path) -> None:
    checkpoints.save(10, checkpoint_folder(tmp_path, 10))
    checkpoints.restore_latest(tmp_path / "first")
    (tmp_path / "first" / "trainer_state.json").write_text("overwritten by the trainer")

    assert checkpoints.restore_latest(tmp_path / "second") == 10
    assert contents(tmp_path / "second") == contents(tmp_path / "local-10")


def test_a_checkpoint_without_a_manifest_is_not_restored(
    checkpoints: StoreCheckpoints, store: Store, tmp_path: Path
) -> None:
    checkpoints.save(10, checkpoint_folder(tmp_path, 10))
    store.put(f"{FOLDER}/step-20/0123456789abcdef/trainer_state.json", b"half")

    assert checkpoints.restore_latest(tmp_path / "restored") == 10


@pytest.mark.parametrize("damage", ["changed", "missing", "manifest"])
def test_a_damaged_checkpoint_is_logged_and_the_one_before_it_is_restored(
    checkpoints: StoreCheckpoints, store: Store, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 20):
        checkpoints.save(step, checkpoint_folder(tmp_path, step))
    key = f"{FOLDER}/step-20/{manifest_of(store, 20).files[-1].path}"
    if damage == "changed":
        store.put(key, b"{'step': 99}")
    elif damage == "missing":
        store.delete(key)
    else:
        store.put(f"{FOLDER}/step-20/manifest.json", b"{")

    with caplog.at_level(logging.WARNING):
        assert checkpoints.restore_latest(tmp_path / "restored") == 10

    assert "cannot restore checkpoint 20, trying the one before it" in caplog.text
    assert contents(tmp_path / "restored") == contents(tmp_path / "local-10")


def test_a_damaged_checkpoint_can_be_saved_again(checkpoints: StoreCheckpoints, store: Store, tmp_path: Path) -> None:
    checkpoints.save(20, checkpoint_folder(tmp_path, 20))
    store.delete(f"{FOLDER}/step-20/{manifest_of(store, 20).files[0].path}")
    assert checkpoints.restore_latest(tmp_path / "restored") is None

    checkpoints.save(20, checkpoint_folder(tmp_path, 20, "again"))

    assert checkpoints.restore_latest(tmp_path / "restored") == 20
    assert contents(tmp_path / "restored") == contents(tmp_path / "local-20again")


def test_the_checkpoint_of_one_of_several_concurrent_writers_is_restored(
    checkpoints: StoreCheckpoints, store: Store, tmp_path: Path
) -> None:
    folders = [checkpoint_folder(tmp_path, 10, f"writer{number}") for number in range(6)]
    threads = [threading.Thread(target=checkpoints.save, args=(10, folder)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert checkpoints.restore_latest(tmp_path / "restored") == 10
    assert contents(tmp_path / "restored") in [contents(folder) for folder in folders]
    named = {f"{FOLDER}/step-10/{entry.path}" for entry in manifest_of(store, 10).files}
    assert {found.key for found in store.list(FOLDER)} == named | {f"{FOLDER}/step-10/manifest.json"}


def test_deleting_an_old_checkpoint_keeps_the_files_of_an_active_writer(
    checkpoints: StoreCheckpoints, store: Store, tmp_path: Path
) -> None:
    checkpoints.save(10, checkpoint_folder(tmp_path, 10))
    slow_writer = f"{FOLDER}/step-10/fedcba9876543210/trainer_state.json"
    store.put(slow_writer, b"its manifest follows")

    for step in (20, 30):
        checkpoints.save(step, checkpoint_folder(tmp_path, step))

    assert [found.key for found in store.list(f"{FOLDER}/step-10")] == [slow_writer]


def test_the_step_size_is_stored_for_the_next_attempt(checkpoints: StoreCheckpoints, store: Store) -> None:
    assert checkpoints.read_step_size() is None

    checkpoints.write_step_size(StepSize(micro_batch_size=4, recompute=0))
    checkpoints.write_step_size(StepSize(micro_batch_size=4, recompute=1))

    left = StoreCheckpoints(store, DIGEST, keep=1).read_step_size()
    assert left == StepSize(micro_batch_size=4, recompute=1)
    assert StoreCheckpoints(store, "e" * 64, keep=1).read_step_size() is None


def test_all_checkpoints_are_deleted_when_the_training_is_finished(
    checkpoints: StoreCheckpoints, store: Store, tmp_path: Path
) -> None:
    checkpoints.save(10, checkpoint_folder(tmp_path, 10))
    checkpoints.write_step_size(StepSize(micro_batch_size=2, recompute=0))
    store.put(f"checkpoints/{'e' * 64}/step-1/manifest.json", b"another training's")

    checkpoints.delete_all()

    assert [found.key for found in store.list("checkpoints")] == [f"checkpoints/{'e' * 64}/step-1/manifest.json"]


def test_a_checkpoint_keeps_its_files_if_the_response_to_its_manifest_is_lost(
    s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, tmp_path: Path
) -> None:
    store = S3Store(s3_server.location(s3_prefix).uri, s3_server.client(s3_proxy.endpoint))
    checkpoints = StoreCheckpoints(store, DIGEST, keep=2)
    s3_proxy.faults.append(Fault("PUT", "manifest.json", times=1, loses_answer=True))

    checkpoints.save(10, checkpoint_folder(tmp_path, 10))

    assert checkpoints.restore_latest(tmp_path / "restored") == 10
    assert contents(tmp_path / "restored") == contents(tmp_path / "local-10")

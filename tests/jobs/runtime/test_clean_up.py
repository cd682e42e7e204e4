"""Clean-up of one object's artifacts, in a folder and in a real bucket."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from edgetune_contract.clean_up import CleanUpRequest, CleanUpResult
from edgetune_contract.digest import manifest_key, stage_key, use_key
from edgetune_contract.request import StoreLocation
from edgetune_contract.stages import Stage
from edgetune_jobs.runtime.clean_up import clean_up
from edgetune_jobs.store.artifact_uses import Use, Uses
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.s3.store import S3Store
from edgetune_jobs.store.store import Store
from support.used_stages import FIRST, MERGED, PREPARED, SECOND, SHARED, TRAINED, keys, make_model
from support.versitygw import S3Server


def test_everything_of_an_object_is_removed_and_counted(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST, SECOND)
    sizes = {found.key: found.bytes for folder in ("stages", "checkpoints", "models") for found in store.list(folder)}

    result = clean_up(store, "sensor-faults")

    assert keys(store) == set()
    assert result == CleanUpResult(removed_objects=len(sizes), removed_bytes=sum(sizes.values()))


def test_shared_stages_are_kept_until_the_last_object_that_uses_them_is_cleaned_up(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST)
    make_model(store, "pump-faults", SECOND)
    keys_of_other = {key for key in keys(store) if FIRST not in key and "sensor-faults" not in key}

    first = clean_up(store, "sensor-faults")

    assert first.shared_stages == len(SHARED)
    assert keys(store) == keys_of_other
    assert clean_up(store, "pump-faults").shared_stages == 0
    assert keys(store) == set()


def test_a_deleted_object_whose_artifacts_were_retained_keeps_the_stages_that_it_used(store: Store) -> None:
    Uses(store, "gone-but-retained").mark(Use(Stage.TRAIN, TRAINED))
    make_model(store, "sensor-faults", FIRST)

    clean_up(store, "sensor-faults")

    assert store.read(manifest_key(Stage.TRAIN, TRAINED)) is not None
    assert store.read(manifest_key(Stage.MERGE, MERGED)) is None
    assert {key for key in keys(store) if key.startswith("checkpoints/")} != set()


def test_base_scores_and_copies_of_hub_models_are_kept(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST)
    common = {f"scores/base/{PREPARED}.json", f"sources/{PREPARED}/89ab/model.safetensors"}
    for key in common:
        store.put(key, b"{}")

    clean_up(store, "sensor-faults")

    assert keys(store) == common


def test_an_object_whose_name_has_the_same_prefix_is_not_touched(store: Store) -> None:
    make_model(store, "sensor", FIRST)
    make_model(store, "sensor-faults", SECOND)
    before = {key for key in keys(store) if FIRST not in key and not key.endswith("/sensor") and "/sensor/" not in key}

    clean_up(store, "sensor")

    assert keys(store) == before


def test_a_clean_up_of_an_object_without_output_does_nothing(store: Store) -> None:
    assert clean_up(store, "sensor-faults") == CleanUpResult()


def test_a_second_clean_up_does_nothing(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST)
    make_model(store, "pump-faults", SECOND)
    clean_up(store, "sensor-faults")
    before = keys(store)

    assert clean_up(store, "sensor-faults") == CleanUpResult()
    assert keys(store) == before


def test_files_of_unfinished_attempts_are_removed_too(store: Store) -> None:
    uses = Uses(store, "sensor-faults")
    uses.mark(Use(Stage.MERGE, MERGED))
    store.put(f"{stage_key(Stage.MERGE, MERGED)}/dead/merged/part.safetensors", b"half a model")

    clean_up(store, "sensor-faults")

    assert keys(store) == set()


def test_parts_of_a_killed_upload_are_removed_too(s3_server: S3Server, s3_prefix: str) -> None:
    client = s3_server.client()
    store = S3Store(s3_server.location(s3_prefix).uri, client)
    Uses(store, "sensor-faults").mark(Use(Stage.MERGE, MERGED))
    key = f"{s3_prefix}/{stage_key(Stage.MERGE, MERGED)}/dead/merged/part.safetensors"
    upload = client.create_multipart_upload(Bucket=s3_server.bucket, Key=key)
    client.upload_part(Bucket=s3_server.bucket, Key=key, PartNumber=1, UploadId=upload["UploadId"], Body=b"a part")

    clean_up(store, "sensor-faults")

    found = client.list_multipart_uploads(Bucket=s3_server.bucket, Prefix=s3_prefix)
    assert found.get("Uploads", []) == []


def test_a_folder_store_keeps_no_empty_folders_and_no_partial_files(tmp_path: Path) -> None:
    store = LocalFolderStore((tmp_path / "store").as_uri())
    make_model(store, "sensor-faults", FIRST)
    half = tmp_path / "store" / stage_key(Stage.MERGE, MERGED) / "dead" / f".{'0' * 16}.tmp"
    half.parent.mkdir()
    half.write_bytes(b"half a file")

    clean_up(store, "sensor-faults")

    assert list((tmp_path / "store" / "stages" / "merge").iterdir()) == []
    assert list((tmp_path / "store" / "checkpoints").iterdir()) == []


def test_a_stage_that_runs_again_after_an_aborted_clean_up_is_in_use_again(store: Store) -> None:
    make_model(store, "sensor-faults", FIRST)
    make_model(store, "pump-faults", SECOND)
    Uses(store, "sensor-faults").leave(Use(Stage.TRAIN, TRAINED))
    Uses(store, "sensor-faults").mark(Use(Stage.TRAIN, TRAINED))

    clean_up(store, "pump-faults")

    assert store.read(manifest_key(Stage.TRAIN, TRAINED)) is not None


def test_keys_that_are_not_marks_are_ignored(store: Store) -> None:
    for key in ("uses/train/short/sensor-faults", f"uses/unknown/{TRAINED}/sensor-faults"):
        store.put(key, b"{}")

    assert clean_up(store, "sensor-faults") == CleanUpResult()
    assert len(keys(store)) == 2


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../b", "A", "a/", "-a"])
def test_a_request_with_an_invalid_object_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        CleanUpRequest(namespace="team-a", name=name, store=StoreLocation(uri="s3://bucket/team-a"))


def test_a_mark_has_the_key_that_the_contract_defines(store: Store) -> None:
    Uses(store, "sensor-faults").mark(Use(Stage.TRAIN, TRAINED))

    assert store.read(f"uses/train/{TRAINED}/sensor-faults") is not None
    assert use_key(Stage.TRAIN, TRAINED, "sensor-faults") == f"uses/train/{TRAINED}/sensor-faults"

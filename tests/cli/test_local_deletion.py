"""`edgetune delete`: the same decisions as in a cluster, and a real clean-up process on this machine."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgetune_cli.local.objects import ObjectFolder
from edgetune_contract.digest import manifest_key, pointer_key
from edgetune_contract.stages import Stage
from edgetune_jobs.store.artifact_uses import Use, Uses
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_operator.api import names
from edgetune_operator.api.names import Key

KEY = Key("default", "sensor-faults")
TRAINED = "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> LocalFolderStore:
    """The store of local runs, with the artifacts of one run."""
    store = LocalFolderStore((tmp_path / "home" / "store" / "default").as_uri())
    Uses(store, KEY.name).mark(Use(Stage.TRAIN, TRAINED))
    store.put(manifest_key(Stage.TRAIN, TRAINED), b"{}")
    store.put(pointer_key(KEY.name), b"{}")
    return store


def objects(folder: Path) -> ObjectFolder:
    return ObjectFolder(folder / "home" / "objects")


def delete(folder: Path, **spec: Any) -> "subprocess.CompletedProcess[str]":
    document: dict[str, Any] = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": KEY.name},
        "spec": {
            "baseModel": {"uri": "s3://models/base"},
            "dataset": {"train": {"uri": "s3://datasets/train.jsonl"}},
            **spec,
        },
    }
    (folder / "object.yaml").write_text(yaml.safe_dump(document))
    objects(folder).apply(KEY, document["spec"], retry="")
    command = [sys.executable, "-m", "edgetune_cli", "delete", "-f", "object.yaml", "--workdir", "home"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_with_delete_the_artifacts_are_removed_before_the_object(tmp_path: Path, store: LocalFolderStore) -> None:
    ended = delete(tmp_path, deletionPolicy="Delete")

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "sensor-faults is deleted: removed 2 objects (4 bytes)\n"
    assert [found.key for folder in ("stages", "models", "uses") for found in store.list(folder)] == []
    assert objects(tmp_path).read(KEY) is None


def test_with_retain_the_object_is_removed_and_the_artifacts_stay(tmp_path: Path, store: LocalFolderStore) -> None:
    ended = delete(tmp_path)

    assert ended.returncode == 0
    assert ended.stdout.startswith("sensor-faults is deleted; its artifacts stay in the store")
    assert store.read(manifest_key(Stage.TRAIN, TRAINED)) is not None
    assert objects(tmp_path).read(KEY) is None


def test_a_clean_up_that_cannot_start_is_reported_and_the_object_removed(
    tmp_path: Path, store: LocalFolderStore
) -> None:
    ended = delete(tmp_path, deletionPolicy="Delete", profile="of-the-cluster")

    assert ended.returncode == 1
    assert "sensor-faults is deleted, but the status lists no artifacts." in ended.stderr
    assert "profile 'of-the-cluster' not found" in ended.stderr
    assert store.read(pointer_key(KEY.name)) is not None
    assert objects(tmp_path).read(KEY) is None


def test_applying_the_object_again_cancels_an_interrupted_deletion(tmp_path: Path) -> None:
    folder = objects(tmp_path)
    first = folder.apply(KEY, {}, retry="")
    folder.delete(KEY, [names.FINALIZER])
    interrupted = folder.read(KEY)
    assert interrupted is not None
    assert interrupted["metadata"]["deletionTimestamp"]

    again = folder.apply(KEY, {}, retry="")

    assert "deletionTimestamp" not in again["metadata"]
    assert again["metadata"]["uid"] != first["metadata"]["uid"]

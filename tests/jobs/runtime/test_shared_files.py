"""Files that the artifacts of several objects share: written once, found by all, removed with none of them."""

from pathlib import Path

import pytest

from edgetune_contract.digest import MANIFEST, shared_key
from edgetune_contract.request import FileEntry, Manifest, Result
from edgetune_contract.stages import Stage
from edgetune_jobs.runtime.clean_up import clean_up
from edgetune_jobs.runtime.outputs import StageUpload
from edgetune_jobs.stage import StageOutput
from edgetune_jobs.store.artifact_uses import Use, Uses
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.manifests import find_artifact, require_manifest, write_manifest_once
from edgetune_jobs.store.store import DamagedObject, FileList, Store, read_model

SHARED = "5" * 64
CONTENT = b"the base"
PATH = "edge/base.gguf"


def share(upload: StageUpload, content: bytes = CONTENT) -> FileEntry:
    """Make a shared file a file of the artifact, as a stage does."""
    found = upload.find_shared(PATH, SHARED)
    if found is None:
        with upload.create_shared(PATH, SHARED, len(content)) as file:
            file.write(content)
        found = upload.find_shared(PATH, SHARED)
    assert found is not None
    return found


def finish(store: Store, digest: str, folder: Path, upload: StageUpload | None = None) -> Manifest:
    """Write the output of a quantize stage: the shared file and one of its own."""
    upload = upload or StageUpload(store, Stage.QUANTIZE, digest)
    share(upload)
    (folder / digest / "edge").mkdir(parents=True)
    (folder / digest / "edge" / "adapter").write_text(digest)
    artifacts, files = upload.add_artifacts(StageOutput(artifacts=("edge",)), folder / digest)
    result = Result(stage=Stage.QUANTIZE, digest=digest, artifacts=artifacts)
    return write_manifest_once(store, Stage.QUANTIZE, digest, Manifest(result=result, files=files, created_at="now"))


def keys(store: Store, folder: str) -> list[str]:
    return [found.key for found in store.list(folder)]


def test_the_first_stage_writes_the_file_and_others_find_it(store: Store, tmp_path: Path) -> None:
    first, second = (finish(store, digit * 64, tmp_path) for digit in "12")

    assert keys(store, "shared") == [f"shared/{SHARED}/base.gguf", f"shared/{SHARED}/{MANIFEST}"]
    for manifest in (first, second):
        found = find_artifact(manifest, "edge")
        assert found is not None
        by_path = {entry.path: entry for entry in found.files}
        assert by_path["base.gguf"].key == f"shared/{SHARED}/base.gguf"
        assert by_path["adapter"].key is None
        (artifact,) = manifest.result.artifacts
        assert artifact.bytes == len(CONTENT) + 64


def test_a_fetched_artifact_has_the_shared_file_beside_its_own(store: Store, tmp_path: Path) -> None:
    manifest = finish(store, "1" * 64, tmp_path / "local")
    found = find_artifact(manifest, "edge")
    assert found is not None

    folder = store.fetch_folder(f"stages/quantize/{'1' * 64}/{found.folder}", found.files, tmp_path / "fetched")

    assert (folder / "base.gguf").read_bytes() == CONTENT
    assert (folder / "adapter").read_text() == "1" * 64


def test_in_a_folder_the_file_is_also_beside_those_of_the_artifact_without_taking_space(tmp_path: Path) -> None:
    store = LocalFolderStore((tmp_path / "store").as_uri())
    Uses(store, "sensor-faults").mark(Use(Stage.QUANTIZE, "1" * 64))
    finish(store, "1" * 64, tmp_path / "local")

    (beside,) = (tmp_path / "store" / "stages").rglob("base.gguf")
    shared = tmp_path / "store" / "shared" / SHARED / "base.gguf"
    assert beside.samefile(shared)
    clean_up(store, "sensor-faults")
    assert not beside.exists()
    assert shared.read_bytes() == CONTENT


@pytest.mark.parametrize("content", [None, b"another."])
def test_a_missing_or_changed_shared_file_is_named(store: Store, tmp_path: Path, content: bytes | None) -> None:
    manifest = finish(store, "1" * 64, tmp_path / "local")
    found = find_artifact(manifest, "edge")
    assert found is not None
    key = f"shared/{SHARED}/base.gguf"
    if content is None:
        store.delete(key)
    else:
        store.put(key, content)

    with pytest.raises(DamagedObject, match=key):
        store.fetch_folder(f"stages/quantize/{'1' * 64}/{found.folder}", found.files, tmp_path / "fetched")


def test_of_two_stages_that_write_it_at_the_same_time_the_first_one_stays(store: Store) -> None:
    slow, fast = (StageUpload(store, Stage.QUANTIZE, digit * 64) for digit in "12")

    with slow.create_shared(PATH, SHARED, 3) as file:
        file.write(b"two")
        share(fast)

    found = share(slow)
    content = store.read(f"shared/{SHARED}/base.gguf")
    assert content is not None
    assert content.data == CONTENT
    assert found.bytes == len(CONTENT)


def test_a_stage_that_stops_while_writing_leaves_nothing(store: Store) -> None:
    upload = StageUpload(store, Stage.QUANTIZE, "1" * 64)

    with pytest.raises(KeyboardInterrupt), upload.create_shared(PATH, SHARED, 8):
        raise KeyboardInterrupt

    assert upload.find_shared(PATH, SHARED) is None
    assert keys(store, "shared") == []


def test_no_clean_up_removes_it(store: Store, tmp_path: Path) -> None:
    for name, digit in (("sensor-faults", "1"), ("pump-faults", "2")):
        Uses(store, name).mark(Use(Stage.QUANTIZE, digit * 64))
        finish(store, digit * 64, tmp_path)

    removed = clean_up(store, "sensor-faults")

    assert removed.removed_objects == (3 if store.uri.startswith("file://") else 2)
    assert require_manifest(store, Stage.QUANTIZE, "2" * 64)
    clean_up(store, "pump-faults")
    assert keys(store, "stages") == []
    assert read_model(store, f"{shared_key(SHARED)}/{MANIFEST}", FileList) is not None
    assert store.read(f"shared/{SHARED}/base.gguf") is not None

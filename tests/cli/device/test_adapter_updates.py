"""Updates by adapter: the base is downloaded once, then only adapters; an adapter for another base is refused."""

import json
from pathlib import Path

import pytest

from edgetune_contract.digest import pointer_key
from edgetune_contract.request import FileEntry
from edgetune_jobs.models.quantization.gguf_loading import ADAPTER_FILE, BASE_FILE
from edgetune_jobs.store.files import file_list_digest, fingerprint
from edgetune_jobs.store.folder_store import LocalFolderStore
from support.devices import address, is_version, publish_and_pull, pull, refused
from support.gguf_adapters import BASE_BYTES, PublishedAdapters
from support.published import MODEL


@pytest.fixture
def model(tmp_path: Path) -> PublishedAdapters:
    """A model whose versions are adapters."""
    return PublishedAdapters(LocalFolderStore((tmp_path / "store").as_uri()), tmp_path / "work")


def test_an_update_downloads_only_the_adapter(model: PublishedAdapters, device: Path) -> None:
    first = publish_and_pull(model, device)
    assert {path.name for path in (device / "current").iterdir()} == {BASE_FILE, ADAPTER_FILE, "config.json"}
    base = (device / "current" / BASE_FILE).stat()
    second = model.publish()
    adapter = next(each.bytes for each in second.edge.files if each.path == ADAPTER_FILE)
    assert adapter < 0.03 * BASE_BYTES

    said = pull(address(model), device)

    assert f"{adapter / 1000:.1f} kB of " in said
    assert is_version(device, second)
    assert is_version(device, first, "previous")
    assert (device / "current" / BASE_FILE).stat().st_ino == base.st_ino  # also the page cache's


def test_an_update_needs_nothing_of_the_base_but_its_digest(
    model: PublishedAdapters, device: Path, tmp_path: Path
) -> None:
    publish_and_pull(model, device)
    second = model.publish()
    (shared,) = (tmp_path / "store" / "shared").glob(f"*/{BASE_FILE}")
    shared.unlink()

    pull(address(model), device)

    assert is_version(device, second)


def test_a_new_base_is_downloaded_with_its_adapter(model: PublishedAdapters, device: Path, tmp_path: Path) -> None:
    publish_and_pull(model, device)
    other = PublishedAdapters(
        LocalFolderStore((tmp_path / "other").as_uri()), tmp_path / "other-work", base=model.base + b"2", made=7
    )
    document = other.publish()

    pull(address(other), device)

    assert is_version(device, document)


def test_an_adapter_for_another_base_is_refused(model: PublishedAdapters, device: Path, tmp_path: Path) -> None:
    first = publish_and_pull(model, device)
    document = model.publish()
    base = next(each for each in document.edge.files if each.path == BASE_FILE)
    place = tmp_path / "store" / str(base.key)
    place.write_bytes(model.base.replace(b"the", b"not"))
    changed = fingerprint(place)
    files = tuple(
        FileEntry(path=BASE_FILE, bytes=changed.bytes, sha256=changed.sha256, key=base.key) if each == base else each
        for each in document.edge.files
    )
    artifact = document.edge.artifact.model_copy(update={"sha256": file_list_digest(files)})
    edge = document.edge.model_copy(update={"files": files, "artifact": artifact})
    pointer = tmp_path / "store" / pointer_key(MODEL)
    pointer.write_text(document.model_copy(update={"edge": edge}).model_dump_json(exclude_none=True))

    said = refused(address(model), device)

    assert f"adapter.gguf is for another base, with SHA-256 {base.sha256}: base.gguf has {changed.sha256}" in said
    assert is_version(device, first)


@pytest.mark.parametrize("key", ["../../secret", "shared/../secret", "stages/x", f"shared/{'a' * 64}/../x"])
def test_a_shared_file_outside_of_its_folder_is_refused(
    key: str, model: PublishedAdapters, device: Path, tmp_path: Path
) -> None:
    document = json.loads(model.publish().model_dump_json(exclude_none=True))
    next(each for each in document["edge"]["files"] if each["path"] == BASE_FILE)["key"] = key
    (tmp_path / "store" / pointer_key(MODEL)).write_text(json.dumps(document))

    assert "is damaged: edge.files." in refused(address(model), device)

"""Versions whose base is a shared file: verified, fetched, pinned and promoted with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgetune_contract.digest import base_gguf_digest, shared_key
from edgetune_contract.stages import Stage
from edgetune_contract.version import VersionDocument
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.quantization.gguf_loading import ADAPTER_FILE, BASE_FILE
from edgetune_jobs.publishing.addresses import ModelAddress
from edgetune_jobs.publishing.fetched_models import fetch_model
from edgetune_jobs.publishing.promotion import Promotion, Stores, promote
from edgetune_jobs.publishing.verification import verify
from edgetune_jobs.runtime.outputs import StageUpload
from edgetune_jobs.store.files import HashingWriter
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.store import DamagedObject, Store
from support.gguf_adapters import LORA, PublishedAdapters
from support.published import MODEL, RESOLVED

BASE_KEY = f"{shared_key(base_gguf_digest(RESOLVED.base))}/{BASE_FILE}"


@pytest.fixture
def model(store: Store, tmp_path: Path) -> PublishedAdapters:
    return PublishedAdapters(store, tmp_path / "local")


@pytest.fixture
def document(model: PublishedAdapters) -> VersionDocument:
    return model.publish()


def latest(store: Store) -> ModelAddress:
    return ModelAddress(store.uri, MODEL, None)


def test_the_document_names_the_base_by_its_digest_and_its_place(document: VersionDocument) -> None:
    base = next(each for each in document.edge.files if each.path == BASE_FILE)

    assert base.key == BASE_KEY
    assert document.edge.artifact.bytes == sum(each.bytes for each in document.edge.files)


def test_an_unchanged_version_has_no_problems(store: Store, document: VersionDocument) -> None:
    found = verify(store, latest(store))

    assert found.problems == ()
    assert found.version == document
    (artifact,) = found.artifacts
    assert [each.path for each in artifact.files] == [BASE_FILE, ADAPTER_FILE, "config.json"]


@pytest.mark.usefixtures("document")
@pytest.mark.parametrize(("content", "problem"), [(None, "is missing"), (b"x", "has 1 bytes instead of 100,008")])
def test_a_damaged_base_is_reported(store: Store, content: bytes | None, problem: str) -> None:
    if content is None:
        store.delete(BASE_KEY)
    else:
        store.put(BASE_KEY, content)

    assert verify(store, latest(store)).problems == (f"{LORA}/{BASE_FILE}: {problem}",)


def test_an_adapter_for_another_base_is_refused(store: Store, tmp_path: Path) -> None:
    PublishedAdapters(store, tmp_path / "local", named_base="9" * 64).publish()

    (problem,) = verify(store, latest(store)).problems
    assert problem.startswith(f"{LORA}/{ADAPTER_FILE}: {ADAPTER_FILE} is for another base, with SHA-256 {'9' * 64}: ")
    with pytest.raises(DamagedObject, match="is for another base"):
        fetch_model(store, latest(store), tmp_path / "cache")


def test_a_fetched_model_has_base_and_adapter(store: Store, model: PublishedAdapters, tmp_path: Path) -> None:
    model.publish()

    for _ in range(2):
        folder = fetch_model(store, latest(store), tmp_path / "cache")

    assert (folder / BASE_FILE).read_bytes() == model.base
    assert (folder / ADAPTER_FILE).is_file()


def test_the_pointer_does_not_move_to_a_version_without_its_base(store: Store, model: PublishedAdapters) -> None:
    first = model.publish()
    model.publish()
    store.delete(BASE_KEY)

    with pytest.raises(InvalidInput, match=f"{BASE_KEY} is missing; restore it, or pin another version"):
        model.publisher.pin(first.version)


def test_a_promotion_copies_the_base_once(model: PublishedAdapters, tmp_path: Path) -> None:
    target = LocalFolderStore((tmp_path / "prod").as_uri())
    (tmp_path / "scratch").mkdir()

    def promoted() -> Promotion:
        document = model.publish()
        done = promote(Stores(model.store, target, MODEL, tmp_path / "scratch"), None, True, lambda _: None)
        found = verify(target, latest(target))
        assert found.problems == ()
        assert found.version == document
        return done

    first, second = promoted(), promoted()

    assert first.copied_bytes > len(model.base) > second.copied_bytes
    assert (first.found_files, second.found_files) == (0, 1)
    upload = StageUpload(target, Stage.QUANTIZE, "1" * 64)
    assert upload.find_shared(f"{LORA}/{BASE_FILE}", base_gguf_digest(RESOLVED.base)) is not None


class _BusyStore(LocalFolderStore):
    """A store in which a run publishes an adapter and another base while the base is written."""

    run: PublishedAdapters | None = None

    @contextmanager
    def create_file(self, key: str, size: int) -> Iterator[HashingWriter]:
        with super().create_file(key, size) as file:
            if self.run is not None and key == BASE_KEY:
                run, self.run = self.run, None
                run.publish()
            yield file


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_promotion_never_replaces_the_base_of_the_targets_own_adapters(
    model: PublishedAdapters, tmp_path: Path, when: str
) -> None:
    model.publish()
    target = _BusyStore((tmp_path / "prod").as_uri())
    own = PublishedAdapters(target, tmp_path / "prod-local", name="pump-faults", base=model.base + b"2")
    if when == "before":
        own.publish()
    else:
        target.run = own

    with pytest.raises(InvalidInput, match=f"the target has another {BASE_FILE}, .*; promote to another namespace"):
        promote(Stores(model.store, target, MODEL, tmp_path), None, True, lambda _: None)

    assert verify(target, ModelAddress(target.uri, "pump-faults", None)).problems == ()
    assert list(target.list(f"models/{MODEL}")) == []
    if when == "before":
        assert list(target.list(f"uses/{MODEL}")) == []


@pytest.mark.parametrize("content", [None, b"x"])
def test_a_promotion_restores_the_damaged_base_of_the_target(
    model: PublishedAdapters, tmp_path: Path, content: bytes | None
) -> None:
    target = LocalFolderStore((tmp_path / "prod").as_uri())
    for _ in range(2):
        model.publish()
        promote(Stores(model.store, target, MODEL, tmp_path), None, True, lambda _: None)
        target.delete(BASE_KEY)
        if content is not None:
            target.put(BASE_KEY, content)

    promote(Stores(model.store, target, MODEL, tmp_path), None, True, lambda _: None)

    assert verify(target, latest(target)).problems == ()

"""Models that `edgetune generate` fetches as verified local folders, from local folders and a real S3 server."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from edgetune_cli.store.commands import _model_folder
from edgetune_contract.digest import pointer_key
from edgetune_contract.request import FileEntry
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.version import VersionDocument
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.addresses import ModelAddress, StageAddress, parse_address
from edgetune_jobs.publishing.fetched_models import fetch_model
from edgetune_jobs.publishing.publisher import encode
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.s3.store import S3Store
from edgetune_jobs.store.store import DamagedObject, uri_of
from support.fault_proxy import FaultProxy
from support.published import ATTEMPT, EDGE, MODEL, PublishedModel
from support.versitygw import S3Server

WEIGHTS = "model.safetensors"


def contents(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_model_on_this_machine_is_used_in_place(tmp_path: Path) -> None:
    store = LocalFolderStore((tmp_path / "store").as_uri())
    document = PublishedModel(store, tmp_path / "local").publish()
    edge = tmp_path / "store" / document.edge.key

    for model in (
        str(edge),
        edge.as_uri(),
        f"{store.uri}/models/{MODEL}",
        str(tmp_path / f"store/models/{MODEL}/latest.json"),
    ):
        assert _model_folder(model, {}, tmp_path / "cache") == edge, model
    assert not (tmp_path / "cache").exists()


def test_a_model_outside_of_a_store_is_used_in_place_too(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "edgetune.json").write_text("{}")

    assert _model_folder(str(tmp_path / "mine"), {}, tmp_path / "cache") == tmp_path / "mine"


@pytest.fixture
def remote(s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str) -> S3Store:
    """A store behind a proxy that counts requests."""
    return S3Store(s3_server.location(s3_prefix).uri, s3_server.client(s3_proxy.endpoint))


@pytest.fixture
def document(remote: S3Store, tmp_path: Path) -> VersionDocument:
    return PublishedModel(remote, tmp_path / "local").publish()


def downloads(proxy: FaultProxy) -> int:
    return sum(method == "GET" and path.endswith(WEIGHTS) for method, path in proxy.requests)


def test_a_model_in_a_bucket_is_downloaded_once_and_found_by_each_of_its_addresses(
    remote: S3Store, document: VersionDocument, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    addresses = [
        ModelAddress(remote.uri, MODEL, None),
        ModelAddress(remote.uri, MODEL, document.version),
        parse_address(uri_of(remote, document.edge.key)),
        parse_address(uri_of(remote, document.edge.key).removesuffix(f"/{ATTEMPT}/{EDGE}")),
    ]

    folders = {fetch_model(remote, address, tmp_path / "cache") for address in addresses}

    assert folders == {tmp_path / "cache" / document.edge.artifact.sha256}
    assert contents(folders.pop()) == {"config.json", "edgetune.json", WEIGHTS}
    assert contents(tmp_path / "cache") == {document.edge.artifact.sha256}
    assert downloads(s3_proxy) == 1


def test_a_model_that_another_process_downloads_at_the_same_time_is_used(
    remote: S3Store, document: VersionDocument, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, fetch_folder = tmp_path / "cache" / document.edge.artifact.sha256, remote.fetch_folder

    def fetch_with_another(folder: str, files: Sequence[FileEntry], target: Path) -> Path:
        fetch_folder(folder, files, kept)
        return fetch_folder(folder, files, target)

    monkeypatch.setattr(remote, "fetch_folder", fetch_with_another)

    assert fetch_model(remote, ModelAddress(remote.uri, MODEL, None), tmp_path / "cache") == kept
    assert contents(tmp_path / "cache") == {document.edge.artifact.sha256}


@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_a_damaged_copy_is_downloaded_again(
    remote: S3Store, document: VersionDocument, s3_proxy: FaultProxy, tmp_path: Path, damage: str
) -> None:
    address = ModelAddress(remote.uri, MODEL, None)
    kept = fetch_model(remote, address, tmp_path / "cache")
    match damage:
        case "changed":
            (kept / "config.json").write_text("{}")
        case "missing":
            (kept / "config.json").unlink()
        case "added":
            (kept / "adapter_config.json").write_text("{}")

    again = fetch_model(remote, address, tmp_path / "cache")

    assert contents(again) == {entry.path for entry in document.edge.files}
    assert (again / "config.json").stat().st_size == document.edge.files[0].bytes
    assert downloads(s3_proxy) == 2


def test_a_model_that_is_damaged_in_the_bucket_is_refused_and_leaves_no_copy(
    remote: S3Store, document: VersionDocument, tmp_path: Path
) -> None:
    remote.put(f"{document.edge.key}/config.json", b"{}")

    with pytest.raises(DamagedObject, match=r"config\.json is damaged: 2 bytes instead of"):
        fetch_model(remote, ModelAddress(remote.uri, MODEL, None), tmp_path / "cache")
    assert contents(tmp_path / "cache") == set()


def test_a_changed_list_of_files_is_refused(remote: S3Store, document: VersionDocument, tmp_path: Path) -> None:
    edge = document.edge.model_copy(update={"files": document.edge.files[:-1]})
    remote.put(pointer_key(MODEL), encode(document.model_copy(update={"edge": edge})))

    with pytest.raises(InvalidInput, match="its list of files was changed; run `edgetune verify`"):
        fetch_model(remote, ModelAddress(remote.uri, MODEL, None), tmp_path / "cache")


def test_a_format_selects_among_the_models_of_a_version(
    remote: S3Store, document: VersionDocument, tmp_path: Path
) -> None:
    key = document.edge.key.replace(EDGE, EdgeFormat.GGUF_Q8_0.artifact)
    artifact = document.edge.artifact.model_copy(update={"name": EdgeFormat.GGUF_Q8_0.artifact, "key": key})
    gguf = document.edge.model_copy(update={"artifact": artifact})
    for entry in gguf.files:
        content = remote.read(f"{document.edge.key}/{entry.path}")
        assert content is not None
        remote.put(f"{gguf.key}/{entry.path}", content.data)
    remote.delete_tree(document.edge.key)
    remote.put(pointer_key(MODEL), encode(document.model_copy(update={"further_edges": (gguf,)})))
    address, cache = ModelAddress(remote.uri, MODEL, None), tmp_path / "cache"

    folder = fetch_model(remote, address, cache, EdgeFormat.GGUF_Q8_0)

    assert contents(folder) == {"config.json", "edgetune.json", WEIGHTS}
    with pytest.raises(InvalidInput, match="has no model edge-ct-w8a8; it has edge-bnb-int8, edge-gguf-q8_0"):
        fetch_model(remote, address, cache, EdgeFormat.COMPRESSED_TENSORS_W8A8)


def test_an_artifact_that_is_not_a_model_is_refused(remote: S3Store, document: VersionDocument, tmp_path: Path) -> None:
    address = parse_address(uri_of(remote, document.edge.key))
    assert isinstance(address, StageAddress)
    other = StageAddress(address.root, address.stage, address.digest, f"{ATTEMPT}/other")

    with pytest.raises(InvalidInput, match=f"has no merged or edge model at {ATTEMPT}/other: use the address of one"):
        fetch_model(remote, other, tmp_path / "cache")

"""The store's protocol: each test runs against a local folder and against a real S3 server."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from edgetune_contract.request import FileEntry
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.store.files import Fingerprint
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.s3.store import S3Store
from edgetune_jobs.store.store import (
    DamagedObject,
    FileList,
    PreconditionFailed,
    Store,
    read_model,
    upload_folder,
    write_model,
)
from support.threads import run_concurrently
from support.versitygw import S3Server

PART_BYTES = 5 * 2**20


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, s3_prefix: str) -> Store:
    if request.param == "folder":
        return LocalFolderStore((tmp_path / "store").as_uri())
    server: S3Server = request.getfixturevalue("s3_server")
    return S3Store(server.location(s3_prefix).uri, server.client(), part_bytes=PART_BYTES)


@pytest.fixture
def damage(store: Store, request: pytest.FixtureRequest, tmp_path: Path, s3_prefix: str) -> Callable[[str], None]:
    """Changes one byte of an object without the store."""

    def change(key: str) -> None:
        if isinstance(store, LocalFolderStore):
            path = tmp_path / "store" / key
        else:
            server: S3Server = request.getfixturevalue("s3_server")
            path = server.object_path(f"{s3_prefix}/{key}")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    return change


def test_an_object_is_read_back_with_its_etag(store: Store) -> None:
    etag = store.put("models/m/latest.json", b"one")

    content = store.read("models/m/latest.json")

    assert content is not None
    assert (content.data, content.etag) == (b"one", etag)


def test_a_key_that_was_never_written_reads_as_none(store: Store) -> None:
    assert store.read("models/nobody/latest.json") is None


def test_put_if_none_match_refuses_an_existing_key_and_keeps_its_content(store: Store) -> None:
    store.put("manifest.json", b"first", if_none_match=True)

    with pytest.raises(PreconditionFailed):
        store.put("manifest.json", b"second", if_none_match=True)

    content = store.read("manifest.json")
    assert content is not None
    assert content.data == b"first"


def test_put_if_match_accepts_the_current_etag_and_refuses_an_old_one(store: Store) -> None:
    old = store.put("latest.json", b"1")
    store.put("latest.json", b"2", if_match=old)

    with pytest.raises(PreconditionFailed):
        store.put("latest.json", b"3", if_match=old)

    content = store.read("latest.json")
    assert content is not None
    assert content.data == b"2"


def test_put_if_match_on_a_deleted_key_is_a_conflict(store: Store) -> None:
    etag = store.put("latest.json", b"1")
    store.delete("latest.json")

    with pytest.raises(PreconditionFailed):
        store.put("latest.json", b"2", if_match=etag)


@pytest.mark.parametrize("condition", ["if_none_match", "if_match"])
def test_of_sixteen_concurrent_writers_exactly_one_wins(store: Store, condition: str) -> None:
    etag = store.put("race.json", b"start")
    if condition == "if_none_match":
        store.delete("race.json")
    barrier = threading.Barrier(16)
    winners: list[bytes] = []

    def write(data: bytes) -> None:
        barrier.wait()
        try:
            if condition == "if_none_match":
                store.put("race.json", data, if_none_match=True)
            else:
                store.put("race.json", data, if_match=etag)
        except PreconditionFailed:
            return
        winners.append(data)

    run_concurrently(write, [f"writer {number}".encode() for number in range(16)])

    content = store.read("race.json")
    assert content is not None
    assert winners == [content.data]


def test_a_listing_has_only_keys_below_the_folder(store: Store) -> None:
    for key in ("a/1.bin", "a/b/2.bin", "ab/3.bin", "c.bin"):
        store.put(key, b"12")

    found = [(each.key, each.bytes) for each in store.list("a")]

    assert found == [("a/1.bin", 2), ("a/b/2.bin", 2)]
    assert list(store.list("nothing-here")) == []


@pytest.mark.parametrize("size", [0, 1, PART_BYTES - 1, PART_BYTES, 2 * PART_BYTES + 3])
def test_a_file_of_any_size_is_downloaded_unchanged(store: Store, tmp_path: Path, size: int) -> None:
    content = hashlib.shake_128(b"seed").digest(size)
    (tmp_path / "file").write_bytes(content)

    sent = store.upload_file(tmp_path / "file", "files/file")
    store.download_file("files/file", tmp_path / "back", sent)

    assert sent == Fingerprint(size, hashlib.sha256(content).hexdigest())
    assert (tmp_path / "back").read_bytes() == content


class ListSink:
    """Keeps all chunks."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.chunks.append(data)

    def restart(self) -> None:
        self.chunks.clear()


def test_an_object_is_streamed_in_chunks_with_its_fingerprint(store: Store, tmp_path: Path) -> None:
    content = hashlib.shake_128(b"stream").digest(2 * PART_BYTES + 3)
    (tmp_path / "file").write_bytes(content)
    store.upload_file(tmp_path / "file", "files/file")
    sink = ListSink()

    found = store.stream("files/file", sink)

    assert found == Fingerprint(len(content), hashlib.sha256(content).hexdigest())
    assert b"".join(sink.chunks) == content
    assert len(sink.chunks) > 1
    with pytest.raises(DamagedObject, match=rf"{store.uri}/files/gone is missing"):
        store.stream("files/gone", sink)


def test_a_folder_is_uploaded_with_paths_relative_to_its_manifest(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.json").write_bytes(b"{}")
    (folder / "deep" / "b.txt").write_bytes(b"b")

    files = upload_folder(store, folder, "stages/train/d/attempt/adapter", relative_to="stages/train/d")
    fetched = store.fetch_folder("stages/train/d", files, tmp_path / "target")

    assert [entry.path for entry in files] == ["attempt/adapter/a.json", "attempt/adapter/deep/b.txt"]
    assert (fetched / "attempt/adapter/deep/b.txt").read_bytes() == b"b"


def test_a_damaged_file_is_refused(store: Store, tmp_path: Path, damage: Callable[[str], None]) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    sent = store.upload_file(tmp_path / "file", "folder/weights.safetensors")
    damage("folder/weights.safetensors")
    entry = FileEntry(path="weights.safetensors", bytes=sent.bytes, sha256=sent.sha256)

    with pytest.raises(DamagedObject, match=r"folder/weights\.safetensors is damaged: 10 bytes with SHA-256"):
        store.download_file("folder/weights.safetensors", tmp_path / "back", sent)
    with pytest.raises(DamagedObject, match=r"folder/weights\.safetensors is damaged"):
        store.fetch_folder("folder", [entry], tmp_path / "target")


def test_a_missing_file_is_reported_with_its_uri(store: Store, tmp_path: Path) -> None:
    entry = FileEntry(path="gone.bin", bytes=1, sha256="0" * 64)

    with pytest.raises(DamagedObject, match=rf"{store.uri}/folder/gone\.bin is missing"):
        store.fetch_folder("folder", [entry], tmp_path / "target")
    with pytest.raises(DamagedObject, match=r"gone\.bin is missing"):
        store.download_file("folder/gone.bin", tmp_path / "back", Fingerprint(1, "0" * 64))


def test_a_manifest_cannot_name_files_outside_of_its_folder(store: Store, tmp_path: Path) -> None:
    entry = FileEntry(path="../../etc/passwd", bytes=1, sha256="0" * 64)

    with pytest.raises(InvalidInput, match=r"invalid file name '\.\./\.\./etc/passwd': it leaves its folder"):
        store.fetch_folder("folder", [entry], tmp_path / "target")


def test_deleting_a_folder_keeps_the_given_keys_and_its_neighbours(store: Store) -> None:
    for key in ("s/d/manifest.json", "s/d/mine/f", "s/d/other/f", "s/d/mine2/f", "s/d2/f"):
        store.put(key, b"")

    store.delete_tree("s/d", keep=("s/d/manifest.json", "s/d/mine"))

    assert [found.key for found in store.list("s")] == ["s/d/manifest.json", "s/d/mine/f", "s/d2/f"]


def test_deleting_a_missing_key_is_no_error(store: Store) -> None:
    store.delete("nothing")
    store.delete_tree("nothing")


def test_an_invalid_json_object_is_reported_with_its_uri(store: Store) -> None:
    store.put("sources/x/manifest.json", b"{ half a manif")

    with pytest.raises(InvalidInput, match=rf"{store.uri}/sources/x/manifest\.json is damaged: .*; delete it"):
        read_model(store, "sources/x/manifest.json", FileList)


def test_a_model_is_read_back_equal(store: Store) -> None:
    files = FileList(files=(FileEntry(path="a", bytes=1, sha256="0" * 64),))

    write_model(store, "list.json", files)

    assert read_model(store, "list.json", FileList) == files
    assert read_model(store, "other.json", FileList) is None

"""The store in a local folder: atomic writes, reads in place, concurrent processes, full disks."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from edgetune_contract.request import FileEntry
from edgetune_jobs.errors import AccessDenied, TransientError
from edgetune_jobs.store.folder_store import LocalFolderStore, path_of_uri
from edgetune_jobs.store.store import PreconditionFailed
from support.threads import run_concurrently

RACER = """
import sys
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.store import PreconditionFailed
store, me = LocalFolderStore(sys.argv[1]), sys.argv[2].encode()
sys.stdin.readline()
for number in range(20):
    try:
        store.put(f"race/{number}.json", me, if_none_match=True)
        print(number)
    except PreconditionFailed:
        pass
"""


@pytest.fixture
def store(tmp_path: Path) -> LocalFolderStore:
    return LocalFolderStore((tmp_path / "store").as_uri())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that this user cannot write; for root, this takes a read-only mount."""
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o500)
    if os.geteuid() != 0:
        yield folder
        return
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True)
    if mount.returncode != 0:
        pytest.skip(f"root can write every folder, and mounts are not possible here: {mount.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_fetched_folder_is_the_stores_own(store: LocalFolderStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    sent = store.upload_file(tmp_path / "file", "a/b/file")
    entry = FileEntry(path="file", bytes=sent.bytes, sha256=sent.sha256)

    fetched = store.fetch_folder("a/b", [entry], tmp_path / "target")

    assert fetched == tmp_path / "store" / "a" / "b"
    assert not (tmp_path / "target").exists()


def test_of_several_processes_exactly_one_writes_each_key(store: LocalFolderStore) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, store.uri, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    won = {str(number): racer.communicate(timeout=60)[0].split() for number, racer in enumerate(racers)}

    assert sorted(int(number) for numbers in won.values() for number in numbers) == list(range(20))
    for me, numbers in won.items():
        for number in numbers:
            content = store.read(f"race/{number}.json")
            assert content is not None
            assert content.data == me.encode()


class RacingStore(LocalFolderStore):
    """A writer that has read the current state waits a moment for another one to read it too."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self._barrier = threading.Barrier(2)

    def _etag(self, key: str) -> str | None:
        etag = super()._etag(key)
        with suppress(threading.BrokenBarrierError):
            self._barrier.wait(timeout=0.3)
        return etag


@pytest.mark.parametrize("exists", [False, True])
def test_conditional_writes_of_two_threads_are_serialized(tmp_path: Path, exists: bool) -> None:
    store = RacingStore(tmp_path.as_uri())
    etag = store.put("race.json", b"start") if exists else None
    winners: list[bytes] = []

    def write(data: bytes) -> None:
        with suppress(PreconditionFailed):
            store.put("race.json", data, if_none_match=not exists, if_match=etag)
            winners.append(data)

    run_concurrently(write, (b"one", b"two"))

    content = store.read("race.json")
    assert content is not None
    assert winners == [content.data]


def test_a_full_disk_is_a_transient_error_with_free_and_needed_bytes_and_leaves_nothing(
    small_disk: Path, tmp_path: Path
) -> None:
    store = LocalFolderStore(small_disk.as_uri())
    (tmp_path / "large").write_bytes(bytes(2 * 2**20))

    with pytest.raises(TransientError, match=r"disk is full: [\d,]+ bytes are free at .*, but 2,097,152 are needed"):
        store.upload_file(tmp_path / "large", "stages/merge/model.safetensors")

    assert [path for path in small_disk.rglob("*") if path.is_file()] == []


def test_a_download_to_a_full_disk_is_a_transient_error(
    store: LocalFolderStore, small_disk: Path, tmp_path: Path
) -> None:
    (tmp_path / "large").write_bytes(bytes(2 * 2**20))
    sent = store.upload_file(tmp_path / "large", "large")

    with pytest.raises(TransientError, match="the disk is full"):
        store.download_file("large", small_disk / "large", sent)


def test_a_write_to_a_read_only_folder_is_access_denied(read_only_folder: Path) -> None:
    store = LocalFolderStore(read_only_folder.as_uri())

    with pytest.raises(AccessDenied, match=f"cannot write {store.uri}/a: "):
        store.put("a", b"")


def test_an_interrupted_write_leaves_no_file_behind(
    store: LocalFolderStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"abc")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.upload_file(tmp_path / "file", "a/file")

    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_files_of_a_killed_writer_are_not_listed_and_are_deleted_with_their_folder(
    store: LocalFolderStore, tmp_path: Path
) -> None:
    store.put("a/kept/file", b"")
    left = tmp_path / "store" / "a" / "dead" / ".0123456789abcdef.tmp"
    left.parent.mkdir()
    left.write_bytes(b"half")

    assert [found.key for found in store.list("a")] == ["a/kept/file"]
    store.delete_tree("a", keep=("a/kept",))

    assert not left.parent.exists()


@pytest.mark.parametrize("size", [0, 3])
def test_a_file_that_is_removed_while_it_is_written_is_a_transient_error(
    store: LocalFolderStore, tmp_path: Path, size: int
) -> None:
    def lose() -> None:
        with store.create_file("stages/merge/d/lost/model.safetensors", size) as file:
            file.write(b"abc"[:size])
            store.delete_tree("stages/merge/d", keep=("stages/merge/d/won",))

    with pytest.raises(TransientError, match=r"lost/model\.safetensors was removed while it was written"):
        lose()
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_an_error_inside_the_writers_block_is_raised_unchanged(store: LocalFolderStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), store.create_file("a", 3) as file:
        file.write((tmp_path / "nothing").read_bytes())


def test_a_uri_with_escapes_is_decoded_to_its_path(tmp_path: Path) -> None:
    path = tmp_path / "with space & ümlaut"

    assert path_of_uri(path.as_uri()) == path
    assert path_of_uri(f"file://{path}") == path

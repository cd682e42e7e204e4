"""The cache of base models: what it removes, what it refuses, and reading by range from it."""

import errno
import logging
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetune_jobs.store.s3.source import S3Source
from edgetune_jobs.store.sources.cached_source import CachedSource
from edgetune_jobs.store.sources.model_cache import ModelCache
from edgetune_jobs.store.sources.source import SourceKind
from support.versitygw import S3Server

MEGABYTE = 10**6
KEYS = [letter * 64 for letter in "abcd"]


def local_file(folder: Path, name: str, size: int = MEGABYTE) -> Path:
    path = folder / name
    path.write_bytes(os.urandom(size))
    return path


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    """A cache for three files of a megabyte."""
    folder = tmp_path / "cache"
    folder.mkdir()
    return ModelCache(folder, 3 * MEGABYTE)


def test_the_files_that_were_not_used_for_the_longest_time_are_removed_first(cache: ModelCache, tmp_path: Path) -> None:
    for time, key in enumerate(KEYS[:3]):
        cache.add_copy(key, local_file(tmp_path, key))
        os.utime(next(cache.folder.glob(f"{key}.*")), (time, time))
    assert cache.copy(KEYS[0], tmp_path / "copy", MEGABYTE)  # it is used, so the second file is the oldest

    assert cache.make_room(MEGABYTE)

    assert [cache.copy(key, tmp_path / "copy", MEGABYTE) for key in KEYS[:3]] == [True, False, True]
    assert cache.warnings == ()


def test_what_a_killed_stage_left_is_removed_after_a_day(cache: ModelCache) -> None:
    old, new = cache.folder / f"{KEYS[0]}.1.partial", cache.folder / f"{KEYS[0]}.2.partial"
    for path in (old, new):
        path.write_bytes(b"a part")
    os.utime(old, (0, 0))

    assert cache.make_room(1)

    assert [path.exists() for path in (old, new)] == [False, True]


def test_an_open_file_stays_readable_when_it_is_removed(cache: ModelCache, tmp_path: Path) -> None:
    source = local_file(tmp_path, "file")
    cache.add_copy(KEYS[0], source)

    descriptor = cache.open(KEYS[0], MEGABYTE)
    assert cache.make_room(3 * MEGABYTE)

    assert descriptor is not None
    assert os.pread(descriptor, MEGABYTE, 0) == source.read_bytes()
    os.close(descriptor)
    assert cache.open(KEYS[0], MEGABYTE) is None


def test_a_writer_that_fails_leaves_nothing(cache: ModelCache, tmp_path: Path) -> None:
    cache.add_copy(KEYS[0], tmp_path / "gone")

    assert list(cache.folder.iterdir()) == []
    assert cache.warnings == ("the model cache: No such file or directory; the base model is read from the store",)


def test_a_stage_that_waits_for_another_one_says_so_once(cache: ModelCache, caplog: pytest.LogCaptureFixture) -> None:
    """The lock's file has the name of the machine that holds it: that of the Pod."""
    said, ended = threading.Event(), threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:  # noqa: ARG002 - it sees no other record
            said.set()

    def wait() -> None:
        with cache.lock("base"):
            ended.set()

    caplog.set_level(logging.INFO, "edgetune_jobs.store.sources.model_cache")
    logging.getLogger("edgetune_jobs.store.sources.model_cache").addHandler(listener := Listener())
    with cache.lock("base"):
        assert not said.is_set()
        waiting = threading.Thread(target=wait)
        waiting.start()
        assert said.wait(60)
        assert not ended.is_set()
    waiting.join()
    logging.getLogger("edgetune_jobs.store.sources.model_cache").removeHandler(listener)

    assert caplog.messages == [f"waiting for {socket.gethostname()}, which fetches the base model into the cache"]


@pytest.fixture
def small_volume(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "volume"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this user cannot mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_volume_is_a_warning_and_keeps_what_it_has(small_volume: Path, tmp_path: Path) -> None:
    cache = ModelCache(small_volume, 100 * MEGABYTE)  # more than there is
    cache.add_copy(KEYS[0], local_file(tmp_path, "first"))

    cache.add_copy(KEYS[1], local_file(tmp_path, "second", 5 * MEGABYTE))

    assert cache.warnings == ("the model cache: No space left on device; the base model is read from the store",)
    assert cache.copy(KEYS[0], tmp_path / "copy", MEGABYTE)
    assert len(list(small_volume.iterdir())) == 1


@pytest.fixture
def base(s3_server: S3Server, s3_prefix: str) -> bytes:
    """The weights of a base model in the bucket."""
    content = os.urandom(MEGABYTE)
    s3_server.client().put_object(Bucket=s3_server.bucket, Key=f"{s3_prefix}/base/model.safetensors", Body=content)
    return content


def cached_source(server: S3Server, prefix: str, cache: ModelCache, target: Path) -> CachedSource:
    uri = f"s3://{server.bucket}/{prefix}/base"
    source = S3Source(uri, "spec.baseModel", SourceKind.MODEL, server.client(), target)
    return CachedSource(source, cache, server.endpoint, target)


def read(source: CachedSource, start: int, count: int) -> bytes:
    buffer = bytearray(count)
    arrived = source.read_into("model.safetensors", start, memoryview(buffer))
    return bytes(buffer[:arrived])


def test_ranges_come_from_the_cache(
    base: bytes, s3_server: S3Server, s3_prefix: str, cache: ModelCache, tmp_path: Path
) -> None:
    cached_source(s3_server, s3_prefix, cache, tmp_path / "one").open(["model.safetensors"])
    again = cached_source(s3_server, s3_prefix, cache, tmp_path / "two")

    again.open(["model.safetensors"])
    s3_server.object_path(f"{s3_prefix}/base/model.safetensors").unlink()

    assert read(again, 1000, 500) == base[1000:1500]
    assert read(again, MEGABYTE - 10, 500) == base[-10:]
    assert cache.bytes_read == MEGABYTE


def test_a_base_with_other_content_is_another_file(
    base: bytes, s3_server: S3Server, s3_prefix: str, cache: ModelCache, tmp_path: Path
) -> None:
    key = f"{s3_prefix}/base/model.safetensors"
    cached_source(s3_server, s3_prefix, cache, tmp_path / "one").open(["model.safetensors"])
    changed = base[::-1]
    s3_server.client().put_object(Bucket=s3_server.bucket, Key=key, Body=changed)

    source = cached_source(s3_server, s3_prefix, cache, tmp_path / "two")
    source.open(["model.safetensors"])

    assert read(source, 0, MEGABYTE) == changed


def test_without_a_usable_cache_ranges_come_from_s3(
    base: bytes, s3_server: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    cache = ModelCache(tmp_path / "lost", 3 * MEGABYTE)
    source = cached_source(s3_server, s3_prefix, cache, tmp_path / "one")

    source.open(["model.safetensors"])

    assert read(source, 5, 100) == base[5:105]
    assert cache.warnings == ("the model cache: No such file or directory; the base model is read from the store",)


def test_a_volume_that_is_lost_while_it_is_read_is_a_warning(
    base: bytes, s3_server: S3Server, s3_prefix: str, cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = cached_source(s3_server, s3_prefix, cache, tmp_path / "one")
    source.open(["model.safetensors"])

    def lost(*_: object) -> int:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "preadv", lost)

    assert [read(source, start, 100) for start in (5, 500)] == [base[5:105], base[500:600]]
    assert cache.warnings == ("the model cache: Stale file handle; the base model is read from the store",)


def test_a_file_that_was_fetched_stays_when_it_is_fetched_again_without_a_usable_cache(
    base: bytes, s3_server: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    source = cached_source(s3_server, s3_prefix, ModelCache(tmp_path / "lost", 3 * MEGABYTE), tmp_path / "one")

    folders = [source.fetch(["model.safetensors"]) for _ in range(2)]

    assert [(folder / "model.safetensors").read_bytes() for folder in folders] == [base, base]

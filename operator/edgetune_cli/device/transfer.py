"""One file from an origin to the device: continued where it was cut, kept only if it has the expected SHA-256."""

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from edgetune_cli.device.origins import Damaged, Disturbed, Origin, PullError
from edgetune_contract.request import FileEntry
from edgetune_contract.values.units import format_bytes
from edgetune_jobs.store.files import fingerprint, is_disk_full, sync

# In a row, without a new byte.
_ATTEMPTS = 5
_FIRST_PAUSE_SECONDS = 0.5


def fetch(origin: Origin, key: str, expected: FileEntry, target: Path, pause: Callable[[float], None]) -> int:
    """Download an object to `target`, which may have its first bytes from an earlier call.

    Args:
        origin: where the object is.
        key: the object's key.
        expected: its size and SHA-256.
        target: a file for this content only; on return, it is whole, verified and on the disk.
        pause: waits for so many seconds before another request.

    Returns:
        Bytes received.

    Raises:
        Disturbed: the origin failed again and again. `target` keeps what has arrived.
        Damaged: it has other content. Then `target` is removed.
        PullError: there is no such object, it may not be read, or the disk is full, for which `target` is removed.
    """
    kept = target.stat().st_size if target.exists() else 0
    try:
        received = _download(origin, key, expected, target, pause)
        problem = _difference(target, expected)
        if problem and kept:  # the bytes of the earlier call may be the wrong ones
            target.unlink()
            received += _download(origin, key, expected, target, pause)
            problem = _difference(target, expected)
        if problem:
            raise Damaged(f"{origin.uri}/{key} is damaged: {problem}; run `edgetune verify` on it")
        sync(target)
    except Damaged:
        target.unlink(missing_ok=True)
        raise
    except OSError as error:
        if not is_disk_full(error):
            raise
        target.unlink(missing_ok=True)
        raise disk_full(target.parent, expected.bytes) from error
    return received


def _download(origin: Origin, key: str, expected: FileEntry, target: Path, pause: Callable[[float], None]) -> int:
    """Append what is missing in `target`, also over several connections; the bytes received."""
    received = failures = 0
    with target.open("ab") as file:
        furthest = file.tell()
        while file.tell() < expected.bytes:
            problem = f"{origin.uri}/{key}: the connection was cut"
            try:
                with closing(origin.chunks(key, file.tell())) as chunks:
                    for position, chunk in chunks:
                        if position != file.tell():
                            file.truncate(position)
                            file.seek(position)
                        file.write(chunk)
                        received += len(chunk)
                        if file.tell() > expected.bytes:  # damaged, and possibly endless
                            break
            except Disturbed as error:
                problem = str(error)
            failures = 1 if file.tell() > furthest else failures + 1
            furthest = max(furthest, file.tell())
            if file.tell() < expected.bytes:
                if failures >= _ATTEMPTS:
                    raise Disturbed(f"{problem}, {_ATTEMPTS} times in a row")
                pause(_FIRST_PAUSE_SECONDS * 2 ** (failures - 1))
    return received


def _difference(file: Path, expected: FileEntry) -> str:
    """What is wrong with a file; empty if it has the expected content."""
    size = file.stat().st_size
    if size != expected.bytes:
        return f"it has {size:,} bytes or more instead of {expected.bytes:,}"
    found = fingerprint(file).sha256
    return "" if found == expected.sha256 else f"its SHA-256 is {found} instead of {expected.sha256}"


def require_space(folder: Path, needed: int) -> None:
    """Check that a folder's file system has so many free bytes.

    Raises:
        PullError: it has not.
    """
    if shutil.disk_usage(folder).free < needed:
        raise disk_full(folder, needed)


def disk_full(folder: Path, needed: int) -> PullError:
    """The error of a full disk."""
    free = format_bytes(shutil.disk_usage(folder).free)
    return PullError(f"the disk of {folder} is full: {free} are free, and {format_bytes(needed)} are needed; make room")

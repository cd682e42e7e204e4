"""One cluster at a time: all clones on a machine share the images' tags and the folder of the cluster."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.folders import REPOSITORY, cache_folder


class Busy(RuntimeError):
    """Another process is using the cluster; the message says which."""


@contextmanager
def exclusive(*, wait: bool, report: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of this machine's cluster; the system releases it when this process ends, however it ends.

    Args:
        wait: whether to wait for another process that holds it, which is reported.

    Raises:
        Busy: another process holds it, and `wait` is false.
    """
    path = cache_folder() / "cluster.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(path)
            if not wait:
                raise Busy(f"the cluster is in use by {holder}: wait until it has ended, or stop it") from None
            report(f"waiting for {holder}, which uses the cluster of this machine")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} of {REPOSITORY}")
        file.flush()
        yield


def _holder(path: Path) -> str:
    return path.read_text(encoding="utf-8") or "another process"

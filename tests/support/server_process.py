"""Programs that serve HTTP, started for tests."""

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

START_LIMIT_SECONDS = 30


def free_port() -> int:
    """A TCP port of 127.0.0.1 on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def running(command: Sequence[str], url: str, log: Path, limit_seconds: float = START_LIMIT_SECONDS) -> Iterator[None]:
    """Run a server until the block ends, which begins when it answers.

    Args:
        command: starts the server.
        url: a URL that it answers, even if it refuses a request without credentials.
        log: file for what it prints.
        limit_seconds: it must answer within this time.

    Raises:
        RuntimeError: it ended; with its log.
        TimeoutError: it did not answer in time; with its log.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until_it_answers(process, url, log, limit_seconds)
        yield
    finally:
        process.kill()  # after SIGTERM, some wait for clients that keep their connections
        process.wait()


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", url: str, log: Path, limit_seconds: float) -> None:
    deadline = time.monotonic() + limit_seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended with {process.returncode}:\n{log.read_text()}")
        try:
            urllib.request.urlopen(url, timeout=1)  # noqa: S310 - the URL is this server's own
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError(f"{url} did not answer within {limit_seconds:g} s:\n{log.read_text()}")

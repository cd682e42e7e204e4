"""Bytes that a run moves to and from S3, without and with a cache of base models, and for a second run of the base.

    python tests/bench/bench_bytes_moved.py [--megabytes N]

The stages' processes are real, with the small bodies of the tests: they read all their inputs and write outputs of a
few bytes. The S3 server is versitygw on this machine, behind a relay that counts every byte that stages get from it.
The floor reads the base once.
"""

import argparse
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.report import print_table
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from support.stage_runs import StageRuns
from support.versitygw import S3Server, running_server

_CHUNK = 2**16


@dataclass
class Relay:
    """A running relay in front of a server."""

    endpoint: str
    received: int = 0
    """Bytes that the server has sent."""


@contextmanager
def running_relay(endpoint: str) -> Iterator[Relay]:
    """A relay in front of a server, until the block ends."""
    server = urlsplit(endpoint)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        relay = Relay(f"http://127.0.0.1:{listener.getsockname()[1]}")

        def forward(source: socket.socket, target: socket.socket, *, counts: bool) -> None:
            with suppress(OSError):
                while chunk := source.recv(_CHUNK):
                    target.sendall(chunk)
                    # One thread for each connection counts: the stages run one after another.
                    relay.received += len(chunk) if counts else 0
            with suppress(OSError):
                target.shutdown(socket.SHUT_WR)

        def accept() -> None:
            with suppress(OSError):  # the listener is closed
                while True:
                    client, _ = listener.accept()
                    behind = socket.create_connection((server.hostname, server.port))
                    for ends, counts in (((client, behind), False), ((behind, client), True)):
                        threading.Thread(target=forward, args=ends, kwargs={"counts": counts}, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield relay


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="size of the base's weights (200)")
    size = parser.parse_args().megabytes * 10**6
    with (
        tempfile.TemporaryDirectory() as name,
        running_server(Path(name) / "server") as server,
        running_relay(server.endpoint) as relay,
    ):
        folder = Path(name)
        (folder / "cache").mkdir()
        plain = _prepared(folder, server, relay, size)
        cache = {
            "EDGETUNE_MODEL_CACHE_DIR": str(folder / "cache"),
            "EDGETUNE_MODEL_CACHE_BYTES": str(2 * size),
        }
        runs = {
            "without a cache": plain,
            "with a cache": _other(plain, "cached", cache),
            "the next run": _other(plain, "next", cache),
        }
        figures = {title: _run(run, relay) for title, run in runs.items()}
    rows = [
        [title, *(f"{stages[stage] / 1e6:,.0f}" for stage in Stage), f"{sum(stages.values()) / size:.2f}"]
        for title, stages in figures.items()
    ]
    print_table(
        f"Bytes from S3 for a base of {size / 1e6:,.0f} MB (MB)",
        ["", *Stage, "x base"],
        rows,
        ["The last column has what all stages together got from S3, divided by the size of the base."],
    )


def _prepared(folder: Path, server: S3Server, relay: Relay, size: int) -> StageRuns:
    """A run whose base and data are in the bucket."""
    files = {
        "base/config.json": b"{}",
        "base/model.safetensors": os.urandom(size),
        "train.jsonl": b'{"instruction": "a", "response": "b"}\n',
    }
    for path, content in files.items():
        server.client().put_object(Bucket=server.bucket, Key=f"inputs/{path}", Body=content)
    secret = folder / "secret"
    secret.mkdir()
    (secret / "AWS_ACCESS_KEY_ID").write_text(server.admin.access_key_id)
    (secret / "AWS_SECRET_ACCESS_KEY").write_text(server.admin.secret_access_key)
    inputs = f"s3://{server.bucket}/inputs"
    parameters = {"baseModel": {"uri": f"{inputs}/base"}, "dataset": {"train": {"uri": f"{inputs}/train.jsonl"}}}
    return StageRuns(folder, server.location("plain", relay.endpoint), Parameters.model_validate(parameters), secret)


def _other(run: StageRuns, name: str, environment: Mapping[str, str]) -> StageRuns:
    folder = run.folder / name
    folder.mkdir()
    store = run.store.model_copy(update={"uri": run.store.uri.replace("plain", name)})
    return replace(run, folder=folder, store=store, environment=dict(environment))


def _run(run: StageRuns, relay: Relay) -> dict[Stage, int]:
    """Bytes that each stage got from S3."""
    moved = {}
    for stage in Stage:
        before = relay.received
        ended = run.run(stage)
        if ended.exit_code != 0:
            raise RuntimeError(f"{stage} failed: {ended.stderr}")
        moved[stage] = relay.received - before
    return moved


if __name__ == "__main__":
    main()

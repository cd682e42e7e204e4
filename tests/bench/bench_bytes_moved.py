"""Bytes that a run moves to and from S3, without and with a cache of base models, and for a second run of the base.

    python tests/bench/bench_bytes_moved.py [--megabytes N]

The stages' processes are real, with the small bodies of the tests: they read all their inputs and write outputs of a
few bytes. The S3 server is versitygw on this machine. The floor reads the base once.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.report import print_table
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from support.stage_runs import StageRuns
from support.versitygw import S3Server, running_server

# prepare, which reads no weights, does not report what it moved; publish moves documents.
_STAGES = tuple(list(Stage)[1:-1])
_READERS = (Stage.TRAIN, Stage.MERGE, Stage.EVALUATE)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200, help="size of the base's weights (200)")
    size = parser.parse_args().megabytes * 10**6
    with tempfile.TemporaryDirectory() as name, running_server(Path(name) / "server") as server:
        folder = Path(name)
        (folder / "cache").mkdir()
        plain = _prepared(folder, server, size)
        cache = {
            "EDGETUNE_MODEL_CACHE_DIR": str(folder / "cache"),
            "EDGETUNE_MODEL_CACHE_BYTES": str(2 * size),
        }
        runs = {
            "without a cache": plain,
            "with a cache": _other(plain, "cached", cache),
            "the next run": _other(plain, "next", cache),
        }
        figures = {title: _run(run) for title, run in runs.items()}
    rows = [
        [title, *(f"{stages[stage] / 1e6:,.0f}" for stage in _STAGES), f"{_by_readers(stages) / size:.2f}"]
        for title, stages in figures.items()
    ]
    print_table(
        f"Bytes from S3 for a base of {size / 1e6:,.0f} MB (MB)",
        ["", *_STAGES, "base x floor"],
        rows,
        ["The last column has what train, merge and evaluate downloaded, divided by the size of the base."],
    )


def _prepared(folder: Path, server: S3Server, size: int) -> StageRuns:
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
    return StageRuns(folder, server.location("plain"), Parameters.model_validate(parameters), secret)


def _other(run: StageRuns, name: str, environment: Mapping[str, str]) -> StageRuns:
    folder = run.folder / name
    folder.mkdir()
    store = run.store.model_copy(update={"uri": run.store.uri.replace("plain", name)})
    return replace(run, folder=folder, store=store, environment=dict(environment))


def _run(run: StageRuns) -> dict[Stage, float]:
    """Bytes that each stage got from S3."""
    moved = {}
    for stage in (Stage.PREPARE, *_STAGES):
        ended = run.run(stage)
        if ended.exit_code != 0:
            raise RuntimeError(f"{stage} failed: {ended.stderr}")
        moved[stage] = ended.result.metrics.get("downloadedBytes", 0)
    return moved


def _by_readers(stages: Mapping[Stage, float]) -> float:
    """Bytes of the base: the outputs of the small bodies have only a few bytes."""
    return sum(stages[stage] for stage in _READERS)


if __name__ == "__main__":
    main()

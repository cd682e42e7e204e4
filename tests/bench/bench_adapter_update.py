"""Bytes and time of an update by adapter (GGUF-LoRA) compared with that of the whole model (GGUF-Q8_0), on a device.

    python tests/bench/bench_adapter_update.py [--base FOLDER] [--rank N] [--threads N]

Both models are published twice from the demo's base with random adapters for `Standard` (q, k, v, o), and pulled from a
real S3 server on this machine by `edgetune pull`. Each model then runs in llama.cpp, which
`python -m support.llama_cpp` builds once into the cache. Goal: an update by adapter has at most 3 % of the bytes.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.report import print_table
from edgetune_contract.request import Manifest, Result
from edgetune_contract.results.measurement import ModelSpeed
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage
from edgetune_contract.version import VersionDocument
from edgetune_jobs.evaluation.edge import measuring
from edgetune_jobs.evaluation.edge.process import MeasurementRequest
from edgetune_jobs.evaluation.edge.runtimes import AS_STORED, Runtime
from edgetune_jobs.runtime.outputs import StageUpload
from edgetune_jobs.stages import quantize
from edgetune_jobs.store.files import fingerprint
from edgetune_jobs.store.manifests import write_manifest_once
from edgetune_jobs.store.s3.store import S3Store
from support.apiserver import REPOSITORY
from support.devices import address, pull
from support.gguf_adapters import make_adapter
from support.llama_cpp import packages_of_llama_cpp
from support.published import PublishedModel
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters
from support.versitygw import S3Server, running_server

_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
_FORMATS = (EdgeFormat.GGUF_Q8_0, EdgeFormat.GGUF_LORA)
_GOAL = 0.03
_MEGABIT = 125_000
_PROMPT, _NEW_TOKENS = tuple(range(100, 148)), 32


@dataclass
class _TunedModel(PublishedModel):
    """A model in one format, whose versions differ in their adapters."""

    base: Path = Path()
    adapters: list[Path] = field(default_factory=list)
    edge_format: EdgeFormat = EdgeFormat.GGUF_Q8_0

    def _quantized(self, digest: str) -> Manifest:
        """The real stage's output for the next adapter."""
        parameters = tiny_parameters(quantization={"formats": [str(self.edge_format)]}, merge={"keep": False})
        inputs = {"base": self.base, "adapter": self.adapters[self.made - 1]}
        upload = StageUpload(self.store, Stage.QUANTIZE, digest)
        context = stage_context(Stage.QUANTIZE, parameters, self.folder / digest, inputs)
        output = quantize.run(replace(context, streams=upload))
        artifacts, files = upload.add_artifacts(output, context.output)
        result = Result(stage=Stage.QUANTIZE, digest=digest, artifacts=artifacts)
        manifest = Manifest(result=result, files=files, created_at="2026-11-24T08:00:00+00:00")
        return write_manifest_once(self.store, Stage.QUANTIZE, digest, manifest)


@dataclass(frozen=True)
class _Pull:
    """One pull of a version."""

    bytes: int
    seconds: float


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=REPOSITORY / "examples/sensor-faults/base", help="a model folder")
    parser.add_argument("--rank", type=int, default=16, help="of the adapters")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of llama.cpp (all cores)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running_server(Path(name) / "server") as server:
        folder = Path(name)
        adapters = [
            make_adapter(
                folder / f"adapter-{alpha}", options.base, target_modules=_TARGETS, r=options.rank, lora_alpha=alpha
            )
            for alpha in (16, 32)
        ]
        _print(options, {each: _measure(each, options, adapters, server, folder) for each in _FORMATS})


def _measure(
    edge_format: EdgeFormat, options: argparse.Namespace, adapters: list[Path], server: S3Server, folder: Path
) -> tuple[tuple[_Pull, ...], ModelSpeed]:
    """The first pull of a model, one that resumes a half, the pull of an update; and the speed of the model."""
    store = S3Store(server.location("bench/team-a").uri, server.client())
    name = edge_format.artifact
    model = _TunedModel(
        store, folder / name, f"model-{name}", base=options.base, adapters=adapters, edge_format=edge_format
    )
    credentials = {
        "AWS_ENDPOINT_URL": server.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": server.reader.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.reader.secret_access_key,
    }
    device = folder / f"device-{name}"
    with patch.dict(os.environ, credentials):
        first, update = (_timed_pull(model, device) for _ in adapters)
        resumed = _resumed_pull(model, device, folder / f"resuming-{name}")
    request = MeasurementRequest(
        Runtime.LLAMA_CPP, device / "current", AS_STORED, _PROMPT, _NEW_TOKENS, options.threads, os.getpid()
    )
    with patch.dict(os.environ, {"PYTHONPATH": str(packages_of_llama_cpp())}):
        return (first, resumed, update), measuring.measure(request, folder, threading.Event(), None)


def _timed_pull(model: _TunedModel, device: Path) -> _Pull:
    """Publish the next version, and pull it."""
    document = model.publish()
    known = {path.resolve().stat().st_ino for path in device.glob("current/*")}
    began = time.monotonic()
    pull(address(model), device)
    seconds = time.monotonic() - began
    return _Pull(_new_bytes(document, device, known), seconds)


def _resumed_pull(model: _TunedModel, device: Path, other: Path) -> _Pull:
    """Pull the version of a device to another one, which has the first half of each file from a pull that was cut."""
    incoming = other / "incoming"
    incoming.mkdir(parents=True)
    kept = 0
    for path in (device / "current").iterdir():
        content = path.read_bytes()
        half = incoming / fingerprint(path).sha256
        half.write_bytes(content[: len(content) // 2])
        kept += half.stat().st_size
    began = time.monotonic()
    pull(address(model), other)
    seconds = time.monotonic() - began
    return _Pull(sum(path.stat().st_size for path in (other / "current").iterdir()) - kept, seconds)


def _new_bytes(document: VersionDocument, device: Path, known: set[int]) -> int:
    """Bytes of the files that were not linked from the version before."""
    files = ((device / "current" / each.path).stat() for each in document.edge.files)
    return sum(status.st_size for status in files if status.st_ino not in known)


def _print(options: argparse.Namespace, measured: dict[EdgeFormat, tuple[tuple[_Pull, ...], ModelSpeed]]) -> None:
    whole = measured[EdgeFormat.GGUF_Q8_0][0][-1].bytes
    rows = [
        [
            str(edge_format),
            what,
            f"{each.bytes / 1e6:,.1f}",
            f"{each.bytes / whole:.1%}",
            f"{each.seconds:.2f}",
            f"{each.bytes / (10 * _MEGABIT):,.0f}",
            f"{speed.prompt_tokens_per_second or 0:,.1f}",
            f"{speed.generation_tokens_per_second or 0:,.1f}",
        ]
        for edge_format, (pulls, speed) in measured.items()
        for what, each in zip(("first pull", "resumed after half", "update"), pulls, strict=True)
    ]
    share = measured[EdgeFormat.GGUF_LORA][0][-1].bytes / whole
    goal = f"Goal: an update by adapter has at most {_GOAL:.0%} of the bytes: {share:.1%}"
    print_table(
        f"Pulls of {options.base.name} with adapters of rank {options.rank}, and speed on {options.threads} threads",
        ["", "", "MB", "of an update", "seconds", "s at 10 Mbit/s", "prompt tokens/s", "new tokens/s"],
        rows,
        [f"{goal}, {'met' if share <= _GOAL else 'MISSED'}"],
    )


if __name__ == "__main__":
    main()

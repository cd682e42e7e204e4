"""Merge and quantize, streamed and with the libraries, compared with reading and writing the same bytes once.

    python tests/bench/bench_merge_quantize.py [--layers N] [--runs N] [--without-library]

The model is a random Llama in bfloat16 that is created on the fly: 20 layers are 2.0 GB. Each task runs in its own
process. Its floor reads as many bytes as its inputs have and writes as many as its output has, in the same run. All
wait until their output is on the disk. Seconds do not include the start of Python and the imports.

Memory is the process's anonymous memory, without pages of mapped files, which the system can reclaim. The bound is a
quarter of the model or four times the largest tensor.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.report import print_table
from edgetune_contract.spec import Method
from edgetune_contract.stages import Stage
from edgetune_operator.decisions.manifests.stage_needs import ModelShape, need_of
from support.large_model import make_large_adapter, make_large_model
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters

_CHUNK_BYTES = 8 * 2**20
_LARGEST_TENSOR_BYTES = 32_000 * 2048 * 2
_LARGEST_LINEAR_BYTES = 5632 * 2048 * 2


@dataclass(frozen=True)
class Work:
    """One task: it turns input folders into the folder with its name."""

    name: str
    stage: Stage
    inputs: tuple[str, ...]
    merge: dict[str, Any]

    @property
    def output(self) -> str:
        return self.name.replace(" ", "-")


@dataclass(frozen=True)
class Figures:
    """Time and resources of a process."""

    seconds: float
    cpu_seconds: float
    memory: int
    """Peak anonymous memory, in bytes."""

    read: int
    written: int
    """Bytes that it read and wrote with system calls."""


WORK = (
    Work("merge", Stage.MERGE, ("base", "adapter"), {"base": "Original"}),
    Work("merge as trained", Stage.MERGE, ("base", "adapter"), {"base": "AsTrained"}),
    Work("quantize", Stage.QUANTIZE, ("merged",), {}),
    Work("merge and quantize", Stage.QUANTIZE, ("base", "adapter"), {"base": "Original", "keep": False}),
)


def main() -> None:
    """Measure and print; with --child, run one task and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=20, help="size of the model (20)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (3)")
    parser.add_argument("--without-library", action="store_true", help="do not measure the libraries")
    parser.add_argument("--folder", type=Path, help="where the files are made and removed (the temporary folder)")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "WORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, work = options.child
        _work(way, work, options.folder)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_large_model(folder / "base", options.layers)
        make_large_adapter(folder / "adapter", options.layers, Method.QLORA)
        _measure(folder, options.runs, ["streaming"] if options.without_library else ["streaming", "library"])


def _measure(folder: Path, runs: int, ways: list[str]) -> None:
    rows = []
    for work in WORK:
        figures: dict[str, list[Figures]] = {way: [] for way in ("floor", *ways)}
        for _ in range(runs):
            for way in reversed(figures):  # the floor needs the stage's output
                figures[way].append(_run_child(way, work, folder))
        floor = statistics.median(each.seconds for each in figures["floor"])
        moved = figures["floor"][0].read + figures["floor"][0].written
        rows += [_row(work, way, figures[way], floor, moved) for way in figures]
        if work.name == "merge":
            (folder / work.output / "merged").rename(folder / "merged")
        shutil.rmtree(folder / work.output)
        shutil.rmtree(folder / "floor")
    size = sum(path.stat().st_size for path in (folder / "base").iterdir())
    bound = max(size // 4, 4 * _LARGEST_TENSOR_BYTES)
    print_table(
        f"Merge and quantize a model of {size / 1e9:.2f} GB (medians of {runs} runs)",
        ["", "", "seconds", "lowest", "x floor", "CPU s", "memory (MB)", "moved (MB)", "x floor"],
        rows,
        [
            f"The memory bound is {bound / 1e6:,.0f} MB. Python, torch and numpy take about 300 MB of it.",
            f"Jobs of merge and quantize request {_requested(size) / 1e6:,.0f} MB of memory for this model.",
            "The libraries map their input, which does not count as moved. `merge as trained` rounds to NF4.",
        ],
    )


def _requested(size: int) -> int:
    """Memory in bytes that a Job requests for the streamed model."""
    shape = ModelShape(
        bytes=size,
        parameters=size // 2,
        largest_tensor=_LARGEST_TENSOR_BYTES,
        largest_linear=_LARGEST_LINEAR_BYTES,
        cache_per_token=0,
        vocabulary=32_000,
        streamed=1,
        adapter_parameters=0,
        training_bytes=0,
        train_tokens=0,
        longest=0,
    )
    need = need_of(Stage.MERGE, shape, tiny_parameters(), gpus=0)
    return need.memory if need is not None else 0


def _row(work: Work, way: str, figures: list[Figures], floor: float, floor_moved: int) -> list[str]:
    seconds = statistics.median(each.seconds for each in figures)
    moved = statistics.median(each.read + each.written for each in figures)
    return [
        work.name,
        way,
        f"{seconds:.2f}",
        f"{min(each.seconds for each in figures):.2f}",
        f"{seconds / floor:.2f}",
        f"{statistics.median(each.cpu_seconds for each in figures):.2f}",
        f"{max(each.memory for each in figures) / 1e6:,.0f}",
        f"{moved / 1e6:,.0f}",
        f"{moved / floor_moved:.2f}",
    ]


def _run_child(way: str, work: Work, folder: Path) -> Figures:
    """Run one task, whose output is in the folder with its name, and return its figures."""
    command = [sys.executable, __file__, "--child", way, work.name, "--folder", str(folder)]
    answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    return Figures(**answer)


def _work(way: str, name: str, folder: Path) -> None:
    work = next(work for work in WORK if work.name == name)
    body = _floor if way == "floor" else _stage(way)
    began, cpu, moved = time.monotonic(), time.process_time(), _moved()
    with _watched_memory() as memory:
        body(work, folder)
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu
    read, written = (after - before for after, before in zip(_moved(), moved, strict=True))
    figures = Figures(seconds, cpu_seconds, max(memory), read, written)
    print(json.dumps(vars(figures)))


def _floor(work: Work, folder: Path) -> None:
    """Read all inputs, and write as many bytes as the output has."""
    shutil.rmtree(folder / "floor", ignore_errors=True)
    (folder / "floor").mkdir()
    left = _size(folder / work.output)
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with (folder / "floor" / "copy").open("wb", buffering=0) as target:
        for path in (path for name in work.inputs for path in (folder / name).iterdir()):
            with path.open("rb", buffering=0) as source:
                while count := source.readinto(buffer):
                    left -= target.write(buffer[: min(count, left)])
        os.fsync(target.fileno())


def _stage(way: str) -> Callable[[Work, Path], None]:
    """The stage's body, after all its imports."""
    from edgetune_jobs.models.libraries import prepare_libraries, prepare_torch
    from edgetune_jobs.stages import merge, quantize
    from edgetune_jobs.tensors.families import CannotStream

    # Imported here, so that imports do not count as the stages' time.
    if way == "library":
        prepare_libraries()
        import bitsandbytes  # noqa: F401
        import peft  # noqa: F401
        from transformers import AutoModelForCausalLM  # noqa: F401

        reason = CannotStream("the benchmark measures the libraries")
        patch("edgetune_jobs.tensors.streamed_model.find_layout", side_effect=reason).start()
    else:
        prepare_torch()

    def run(work: Work, folder: Path) -> None:
        shutil.rmtree(folder / work.output, ignore_errors=True)
        inputs = {name: folder / name for name in work.inputs}
        body = {Stage.MERGE: merge.run, Stage.QUANTIZE: quantize.run}[work.stage]
        scratch = Path(tempfile.mkdtemp(dir=folder))
        context = stage_context(work.stage, tiny_parameters(merge=work.merge), scratch, inputs)
        body(context)
        for path in context.output.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        context.output.rename(folder / work.output)
        shutil.rmtree(scratch)

    return run


@contextmanager
def _watched_memory() -> Iterator[list[int]]:
    """Samples of this process's anonymous memory in bytes, taken inside the context."""
    found, ended = [_own_memory()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            found.append(_own_memory())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def _own_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


def _moved() -> tuple[int, int]:
    """Bytes that this process has read and written so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"]), int(fields["wchar"])


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()

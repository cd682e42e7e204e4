"""Seconds and peak memory of merge and quantize, against a plain copy of the same bytes; each in a process of its own.

    python tests/bench/bench_merge_quantize.py [--base FOLDER] [--runs N]

Without --base the model is a random one of about 100 million parameters in bfloat16. The copy reads and writes the
merged model's files. All wait until what they wrote is on the disk. Seconds leave out the start of Python and the
imports.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.report import print_table
from edgetune_contract.stages import Stage
from edgetune_jobs.models import peak_resident_bytes
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters


def main() -> None:
    """Measure and print; or with --child, do one piece of work and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, help="folder of a base model")
    parser.add_argument("--runs", type=int, default=3, help="runs of each (3)")
    parser.add_argument("--child", choices=list(_WORK), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _work(options.child, options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make_inputs(folder, options.base)
        _measure(folder, options.runs)


def _make_inputs(folder: Path, base: Path | None) -> None:
    from edgetune_jobs import models
    from edgetune_jobs.libraries import prepare_libraries
    from support import tiny_data
    from support.tiny_model import make_tiny_base
    from support.tiny_runs import train

    prepare_libraries()
    if base is None:
        make_tiny_base(folder / "base", pretrain_steps=0, dtype="bfloat16", hidden=1024, layers=8)
    else:
        shutil.copytree(base, folder / "base")
    rows = tiny_data.write_prepared(
        folder / "prepared", models.load_tokenizer(folder / "base"), tiny_data.training_examples(2), []
    )
    parameters = tiny_parameters(
        training={"maxSteps": 1, "batchSize": 1, "microBatchSize": 1, "precision": "BF16", "warmupRatio": 0}
    )
    train(folder / "train", parameters, folder / "base", rows).adapter.rename(folder / "adapter")
    shutil.rmtree(folder / "train")


def _measure(folder: Path, runs: int) -> None:
    figures: dict[str, list[tuple[float, int]]] = {name: [] for name in _WORK}
    for _ in range(runs):
        for name, values in figures.items():
            values.append(_run_child(name, folder))
    rows = []
    for name, values in figures.items():
        seconds = [each[0] for each in values]
        size = sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file())
        rows.append(
            [
                name.replace("-", " "),
                f"{statistics.median(seconds):.2f}",
                f"{min(seconds):.2f}",
                f"{max(each[1] for each in values) / 1e6:,.0f}",
                f"{size / 1e6:,.0f}",
            ]
        )
    print_table(
        f"Merge and quantize against a file copy ({runs} runs each)",
        ["", "seconds (median)", "seconds (lowest)", "peak memory (MB)", "written (MB)"],
        rows,
        ["Peak memory is the process's largest resident set, with Python and torch (about 500 MB) in it."],
    )


def _run_child(name: str, folder: Path) -> tuple[float, int]:
    """Seconds and peak resident bytes of one piece of work; what it wrote lies in the folder of its name."""
    shutil.rmtree(folder / name, ignore_errors=True)
    command = [sys.executable, __file__, "--child", name, "--folder", str(folder)]
    answer = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.splitlines()[-1])
    return answer["seconds"], answer["peakBytes"]


def _work(name: str, folder: Path) -> None:
    prepare, work = _WORK[name]
    prepare()
    began = time.monotonic()
    work(folder)
    seconds = time.monotonic() - began
    print(json.dumps({"seconds": seconds, "peakBytes": peak_resident_bytes()}))


def _import_stages() -> None:
    from edgetune_jobs.libraries import prepare_libraries

    prepare_libraries()
    # Only loaded: what importing takes is not the stages' time.
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM  # noqa: F401

    from edgetune_jobs.stages import merge, quantize  # noqa: F401


def _copy(folder: Path) -> None:
    target = folder / "copy"
    shutil.copytree(folder / "merge", target)
    for path in target.rglob("*"):
        if path.is_file():
            _wait_for_disk(path)


def _merge(folder: Path) -> None:
    from edgetune_jobs.stages import merge

    _run_stage(Stage.MERGE, merge.run, folder, {"base": folder / "base", "adapter": folder / "adapter"}, "merge")


def _quantize(folder: Path) -> None:
    from edgetune_jobs.stages import quantize

    _run_stage(Stage.QUANTIZE, quantize.run, folder, {"merged": folder / "merge/merged"}, "quantize")


def _quantize_on_the_fly(folder: Path) -> None:
    from edgetune_jobs.stages import quantize

    inputs = {"base": folder / "base", "adapter": folder / "adapter"}
    _run_stage(Stage.QUANTIZE, quantize.run, folder, inputs, "merge-and-quantize")


def _run_stage(stage: Stage, run: Callable[..., object], folder: Path, inputs: Mapping[str, Path], name: str) -> None:
    work = Path(tempfile.mkdtemp(dir=folder))
    context = stage_context(stage, tiny_parameters(), work, inputs)
    run(context)
    for path in context.output.rglob("*"):
        if path.is_file():
            _wait_for_disk(path)
    context.output.rename(folder / name)
    shutil.rmtree(work)


def _wait_for_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _nothing() -> None:
    """The copy needs no imports."""


# In this order: quantize and copy read what merge wrote.
_WORK: dict[str, tuple[Callable[[], None], Callable[[Path], None]]] = {
    "merge": (_import_stages, _merge),
    "quantize": (_import_stages, _quantize),
    "merge-and-quantize": (_import_stages, _quantize_on_the_fly),
    "copy": (_nothing, _copy),
}


if __name__ == "__main__":
    main()

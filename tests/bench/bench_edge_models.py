"""Size, speed and memory of the demo's model in each edge format, as `spec.evaluation.edge` measures them.

    python tests/bench/bench_edge_models.py [--threads N] [--base FOLDER]

All formats are made from the base itself in one pass, because training changes none of these figures. The base in its
own 16 bits is the reference. Each model runs in its own process: GGUF in llama.cpp, which `python -m support.llama_cpp`
builds once into the cache, and all others in transformers.
"""

import argparse
import os
import sys
import tempfile
import threading
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.report import print_table
from edgetune_contract.measurement import ModelSpeed
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage
from edgetune_jobs.evaluation.edge import measuring
from edgetune_jobs.evaluation.edge.process import MeasurementRequest
from edgetune_jobs.evaluation.edge.runtimes import AS_STORED, Runtime
from edgetune_jobs.stages import quantize
from edgetune_jobs.store.files import list_files
from support.apiserver import REPOSITORY
from support.llama_cpp import packages_of_llama_cpp
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters

_PROMPT_TOKENS = 48
_NEW_TOKENS = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each model (all cores)")
    parser.add_argument("--base", type=Path, default=REPOSITORY / "examples/sensor-faults/base", help="a model folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {"base": options.base, **_quantized(options.base, folder)}
        rows = [_row(model, path, _measure(model, path, options.threads, folder)) for model, path in models.items()]
    print_table(
        f"Edge models on {options.threads} threads, {_PROMPT_TOKENS} prompt tokens and {_NEW_TOKENS} new tokens",
        ["", "size (MB)", "prompt/s", "new tokens/s", "first token (ms)", "memory (MB)", "without model", "by"],
        rows,
    )


def _quantized(base: Path, folder: Path) -> dict[str, Path]:
    """The model in each format, by the format's name."""
    parameters = tiny_parameters(quantization={"formats": [str(each) for each in EdgeFormat]})
    context = stage_context(Stage.QUANTIZE, parameters, folder / "quantize", {"merged": base})
    quantize.run(context)
    return {str(each): context.output / each.artifact for each in EdgeFormat}


def _measure(model: str, path: Path, threads: int, scratch: Path) -> ModelSpeed:
    runtime = Runtime.LLAMA_CPP if model == EdgeFormat.GGUF_Q8_0 else Runtime.TRANSFORMERS
    prompt = tuple(range(100, 100 + _PROMPT_TOKENS))
    request = MeasurementRequest(runtime, path, AS_STORED, prompt, _NEW_TOKENS, threads, os.getpid())
    packages = {"PYTHONPATH": str(packages_of_llama_cpp())} if runtime is Runtime.LLAMA_CPP else {}
    with patch.dict(os.environ, packages):
        return measuring.measure(request, scratch, threading.Event(), None)


def _row(model: str, path: Path, speed: ModelSpeed) -> list[str]:
    figures = (speed.prompt_tokens_per_second, speed.generation_tokens_per_second)
    return [
        model,
        f"{sum((path / name).stat().st_size for name in list_files(path)) / 1e6:,.0f}",
        *(f"{figure or 0:,.1f}" for figure in figures),
        f"{1000 * (speed.time_to_first_token_seconds or 0):,.0f}",
        f"{speed.peak_memory_bytes / 1e6:,.0f}",
        f"{(speed.baseline_memory_bytes or 0) / 1e6:,.0f}",
        speed.runtime,
    ]


if __name__ == "__main__":
    main()

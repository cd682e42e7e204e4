"""Size, score, speed and memory of the demo's model in each edge format, as `spec.evaluation.edge` measures them.

    python tests/bench/bench_edge_models.py [--threads N] [--run FOLDER] [--importance-matrix] [--model FOLDER]

FOLDER of --run is the local run with the demo's models; without one, the demo runs first in a temporary folder (some
minutes). All formats are made from the merged model in one pass; it is the reference in its own 16 bits. --model makes
them from any model folder instead, without scores, because training changes none of the other figures. Each model is
measured in its own process: GGUF in llama.cpp, which `python -m support.llama_cpp` builds once into the cache, and all
others in transformers.
"""

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.demo_run import demo_inputs, demo_parameters, run_demo
from bench.report import print_table
from edgetune_contract.pipeline import EDGE, MERGED
from edgetune_contract.request import ModelScores
from edgetune_contract.results.measurement import ModelSpeed
from edgetune_contract.spec import EdgeFormat, Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.evaluation.edge import measuring
from edgetune_jobs.evaluation.edge.process import MeasurementRequest
from edgetune_jobs.evaluation.edge.runtimes import AS_STORED, Runtime
from edgetune_jobs.models.quantization import llama_cpp
from edgetune_jobs.stages import evaluate, quantize
from edgetune_jobs.store.files import list_files
from support.llama_cpp import packages_of_llama_cpp
from support.stage_context import stage_context

# bench_adapter_update.py measures the other one, with an adapter.
_FORMATS = tuple(each for each in EdgeFormat if each is not EdgeFormat.GGUF_LORA)
_PROMPT_TOKENS = 48
_NEW_TOKENS = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each model (all cores)")
    parser.add_argument("--run", type=Path, help="folder of a finished local run of the demo: its .edgetune")
    parser.add_argument("--importance-matrix", action="store_true", help="for K-quants, from the demo's training rows")
    parser.add_argument("--model", type=Path, help="a model folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, _llama_cpp():
        folder = Path(name)
        run = None if options.model else demo_inputs((options.run or run_demo(folder / "demo")).absolute())
        inputs = {MERGED: options.model.absolute()} if run is None else run
        parameters = _parameters(importance_matrix=options.importance_matrix)
        models = {MERGED: inputs[MERGED], **_quantized(parameters, inputs, folder)}
        scores = {} if run is None else _scores(parameters, inputs, models, folder)
        rows = [
            _row(model, path, scores.get(model), _measure(model, path, options.threads, folder))
            for model, path in models.items()
        ]
    print_table(
        f"Edge models on {options.threads} threads, {_PROMPT_TOKENS} prompt tokens and {_NEW_TOKENS} new tokens",
        [
            "",
            "size (MB)",
            "keyword recall",
            "loss",
            "prompt/s",
            "new tokens/s",
            "first token (ms)",
            "memory (MB)",
            "by",
        ],
        rows,
    )


@contextmanager
def _llama_cpp() -> Iterator[None]:
    """llama.cpp in the processes that stages start."""
    packages = {"PYTHONPATH": str(packages_of_llama_cpp())}
    with patch.dict(os.environ, packages), patch.object(llama_cpp, "is_installed", return_value=True):
        yield


def _parameters(*, importance_matrix: bool) -> Parameters:
    """Those of the demo with these formats."""
    demo = demo_parameters().model_dump(by_alias=True, exclude_none=True)
    quantization: dict[str, Any] = {"formats": [str(each) for each in _FORMATS]}
    quantization |= {"importanceMatrix": True} if importance_matrix else {}
    evaluation = {**demo["evaluation"], "models": ["Merged", "Edge"], "gates": {}}
    return Parameters.model_validate({**demo, "quantization": quantization, "evaluation": evaluation})


def _quantized(parameters: Parameters, inputs: Mapping[str, Path], folder: Path) -> dict[str, Path]:
    """The model in each format, by the format's name."""
    context = stage_context(Stage.QUANTIZE, parameters, folder / "quantize", inputs)
    quantize.run(context)
    return {str(each): context.output / each.artifact for each in parameters.quantization.formats}


def _scores(
    parameters: Parameters, inputs: Mapping[str, Path], models: Mapping[str, Path], folder: Path
) -> dict[str, ModelScores]:
    """Scores of the models on the demo's evaluation rows."""
    formats = parameters.quantization.formats
    edges = {each.artifact: models[each] for each in formats}
    context = stage_context(Stage.EVALUATE, parameters, folder / "evaluate", {**inputs, **edges})
    found = evaluate.run(context).scores
    assert found is not None
    names = {EDGE: formats[0], MERGED: MERGED, **{each.artifact: each for each in formats[1:]}}
    return {str(names[name]): details for name, details in found.details.items()}


def _measure(model: str, path: Path, threads: int, scratch: Path) -> ModelSpeed:
    is_gguf = model != MERGED and EdgeFormat(model).file_type is not None
    runtime = Runtime.LLAMA_CPP if is_gguf else Runtime.TRANSFORMERS
    prompt = tuple(range(100, 100 + _PROMPT_TOKENS))
    request = MeasurementRequest(runtime, path, AS_STORED, prompt, _NEW_TOKENS, threads, os.getpid())
    return measuring.measure(request, scratch, threading.Event(), None)


def _row(model: str, path: Path, scores: ModelScores | None, speed: ModelSpeed) -> list[str]:
    recall, loss = (None, None) if scores is None else (scores.keyword_recall, scores.loss)
    figures = (speed.prompt_tokens_per_second, speed.generation_tokens_per_second)
    return [
        model,
        f"{sum((path / name).stat().st_size for name in list_files(path)) / 1e6:,.0f}",
        "" if recall is None else f"{recall:.1%}",
        "" if loss is None else f"{loss:.4f}",
        *(f"{figure or 0:,.1f}" for figure in figures),
        f"{1000 * (speed.time_to_first_token_seconds or 0):,.0f}",
        f"{speed.peak_memory_bytes / 1e6:,.0f}",
        speed.runtime,
    ]


if __name__ == "__main__":
    main()

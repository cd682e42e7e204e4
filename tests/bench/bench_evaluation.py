"""Time of the demo's evaluation, model by model, and of the same scores by plain calls of transformers.

    python tests/bench/bench_evaluation.py [--run FOLDER]

FOLDER is the local run with the demo's models; without one, the demo runs first in a temporary folder (some minutes).
The plain calls take the same batches of 32 rows of similar length: `generate` for the answers, and a forward pass for
the loss. With llama.cpp in the environment, evaluate scores GGUF with it, as its column says.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.demo_run import demo_inputs, demo_parameters, run_demo
from bench.report import print_table
from edgetune_contract.pipeline import ADAPTER, BASE, EDGE, MERGED, PREPARED, TUNED
from edgetune_contract.spec import MergeBase, Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.evaluation import decoding, inference
from edgetune_jobs.models import loading
from edgetune_jobs.models.tuned_model import load_tuned
from edgetune_jobs.stages import evaluate
from support.stage_context import stage_context

_ROWS = 32


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished local run of the demo: its .edgetune")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run = options.run or run_demo(Path(name) / "demo")
        parameters, inputs = demo_parameters(), demo_inputs(run)
        context = stage_context(Stage.EVALUATE, parameters, Path(name) / "evaluate", inputs)
        cpu, whole = _timed(lambda: evaluate.run(context))
        scores = whole.scores
        assert scores is not None
        plain_cpu, plain = _timed(lambda: _plain(inputs, parameters))
    rows = [
        [model, f"{whole.metrics[f'{model}Seconds']:.1f}", f"{plain[model]:.1f}", details.runtime or ""]
        for model, details in scores.details.items()
    ]
    total = sum(whole.metrics[f"{model}Seconds"] for model in scores.details)
    rows.append(["all", f"{total:.1f}", f"{sum(plain.values()):.1f}", ""])
    print_table(
        f"Evaluation of the demo's models on {scores.examples} rows, in seconds",
        ["", "evaluate", "plain calls", "scored by"],
        rows,
        [
            f"evaluate / plain calls: {total / sum(plain.values()):.2f}, by time of the process on the CPU "
            f"{cpu / plain_cpu:.2f} ({cpu:.0f} s / {plain_cpu:.0f} s, which other work on the same cores changes less)"
        ],
    )


def _plain(inputs: dict[str, Path], parameters: Parameters) -> dict[str, float]:
    """Seconds that plain calls of transformers take for each model."""
    import pyarrow.parquet
    import torch

    columns = pyarrow.parquet.read_table(inputs[PREPARED] / "eval.parquet").to_pydict()
    prompts, completions = columns["prompt_ids"], columns["completion_ids"]
    device = torch.device("cpu")
    first, *further = (each.artifact for each in parameters.quantization.formats)
    folders = {BASE: inputs[BASE], TUNED: inputs[BASE], MERGED: inputs[MERGED], EDGE: inputs[first]}
    seconds = {}
    for model, folder in {**folders, **{name: inputs[name] for name in further}}.items():
        began = time.monotonic()
        loaded = (
            load_tuned(folder, inputs[ADAPTER], MergeBase.AS_TRAINED, device)
            if model == TUNED
            else loading.load_stored(folder, device)
        )
        _score_plainly(loaded, loading.load_tokenizer(folder), prompts, completions, parameters)
        seconds[model] = time.monotonic() - began
        del loaded
        loading.free_memory()
    return seconds


def _score_plainly(
    model: Any, tokenizer: Any, prompts: Sequence[Any], completions: Sequence[Any], parameters: Parameters
) -> None:
    import torch

    pad = tokenizer.pad_token_id
    settings = decoding.greedy_settings(model, tokenizer, parameters.evaluation.max_new_tokens)

    def generate(rows: Sequence[int]) -> None:
        ids, mask = inference.pad_left([prompts[row] for row in rows], pad, model.device)
        with torch.inference_mode():
            model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)

    for _ in inference.in_batches(generate, [len(prompt) for prompt in prompts], _ROWS):
        pass
    inference.teacher_forced(model, prompts, completions, pad_token_id=pad, batch_size=_ROWS)


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of processor time of this process for some work, and its result."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    done = work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done


if __name__ == "__main__":
    main()

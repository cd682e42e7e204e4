"""Evaluation of edge formats on the device and on the CPU: the loss must be the same, and the GPU faster."""

import random
import time
from typing import TYPE_CHECKING

import bench.gpu_check.inputs as shared
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage
from support.stage_context import stage_context
from support.tiny_model import make_tiny_base
from support.tiny_runs import tiny_parameters

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bench.gpu_check.runner import Figures

_FORMATS = (EdgeFormat.BITSANDBYTES_INT8, EdgeFormat.GGUF_Q8_0)
_ROWS, _PROMPT, _COMPLETION = 32, 96, 32


def evaluation(inputs: "shared.Inputs") -> "Figures":
    """Loss and seconds of 32 rows in each format, on the device and on the CPU."""
    import torch

    from edgetune_jobs.models import loading
    from edgetune_jobs.stages import quantize

    hidden, layers = max(128, 1024 // inputs.scale // 64 * 64), max(2, 12 // inputs.scale)
    model = make_tiny_base(inputs.folder / "merged", hidden=hidden, layers=layers, pretrain_steps=0, dtype="bfloat16")
    parameters = tiny_parameters(quantization={"formats": list(_FORMATS)}, merge={"keep": True})
    context = stage_context(Stage.QUANTIZE, parameters, inputs.folder / "quantize", {"merged": model})
    quantize.run(context)
    figures: Figures = {}
    for edge_format in _FORMATS:
        losses = []
        for device in (inputs.device, torch.device("cpu")):
            inputs.synchronize()
            loaded = loading.load_stored(context.output / edge_format.artifact, device)
            loss, seconds = _score(loaded)
            losses.append(loss)
            figures[f"{edge_format} {device.type} s"] = round(seconds, 3)
            del loaded
            loading.free_memory()
        figures[f"{edge_format} loss"] = losses[0]
        figures[f"{edge_format} lossDifference"] = abs(losses[0] - losses[1])
    return figures


def _score(model: "PreTrainedModel") -> tuple[float, float]:
    """Mean loss of random rows, and the seconds of the second of two passes."""
    from edgetune_jobs.evaluation.inference import teacher_forced

    generator = random.Random(3)
    rows = [[generator.randrange(3, 300) for _ in range(_PROMPT + _COMPLETION)] for _ in range(_ROWS)]
    prompts, completions = [row[:_PROMPT] for row in rows], [row[_PROMPT:] for row in rows]
    for _ in range(2):
        began = time.monotonic()
        found = teacher_forced(model, prompts, completions, pad_token_id=0, batch_size=_ROWS)
    return found.loss or 0.0, time.monotonic() - began

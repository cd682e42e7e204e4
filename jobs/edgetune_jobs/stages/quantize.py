"""quantize: the edge model, linear layers in INT8 by bitsandbytes (LLM.int8), as from_pretrained reads it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_jobs import merging, models
from edgetune_jobs.errors import Interrupted, InvalidInput
from edgetune_jobs.stage import StageContext, StageOutput

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ARTIFACT = "edge-bnb-int8"
_FLOAT16_MAX = 65504.0


def run(context: StageContext) -> StageOutput:
    """Quantize input merged, or base and adapter merged in memory; artifact `edge-bnb-int8`.

    Raises:
        InvalidInput: weights are not finite or beyond float16, from which LLM.int8 starts; or the inputs do not fit.
        Interrupted: `context.stop` was set.
    """
    parameters = context.request.parameters
    device = models.choose_device()
    context.progress.say("quantizing to INT8 (bitsandbytes)")
    model, source = _load_merged(context, device)
    layers = _check_range(model)
    if context.stop.is_set():
        raise Interrupted("stopped by SIGTERM before the edge model was written")
    edge = _quantize(model, parameters.quantization.outlier_threshold, device)
    del model
    folder = context.output / ARTIFACT
    merging.save_model(edge, folder, source, parameters.dataset)
    metrics = {
        "edgeBytes": merging.folder_bytes(folder),
        "quantizedLayers": layers,
        "peakMemoryBytes": models.peak_memory_bytes(device),
    }
    facts = {"device": models.describe_device(device), "format": parameters.quantization.formats[0].value}
    return StageOutput({ARTIFACT: ARTIFACT}, metrics, facts)


def _load_merged(context: StageContext, device: "torch.device") -> "tuple[PreTrainedModel, Path]":
    """The merged model, and the folder that its tokenizer comes from."""
    merged = context.inputs.get("merged")
    if merged is not None:
        return models.load_stored(merged, device), merged
    base, adapter = context.inputs["base"], context.inputs["adapter"]
    return merging.merge(base, adapter, context.request.parameters.merge.base, device), base


def _check_range(model: "PreTrainedModel") -> int:
    """Number of layers that will be quantized, each within float16."""
    count = 0
    for name, module in models.quantizable_linears(model):
        largest = module.weight.detach().abs().max().item()
        if not largest <= _FLOAT16_MAX:
            raise InvalidInput(
                f"{name}.weight holds {largest:g}, beyond the largest float16 ({_FLOAT16_MAX:g}), from which LLM.int8 "
                "starts: train with a lower spec.training.learningRate or spec.lora.alpha"
            )
        count += 1
    return count


def _quantize(model: "PreTrainedModel", outlier_threshold: float, device: "torch.device") -> "PreTrainedModel":
    """The model with its linear layers in INT8, made of the weights in memory as from_pretrained does it with files."""
    from transformers import BitsAndBytesConfig

    options: dict[str, Any] = {
        "config": model.config,
        "state_dict": model.state_dict(),
        "quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=outlier_threshold),
        "dtype": model.dtype,
        "device_map": {"": device},
    }
    return type(model).from_pretrained(None, **options).eval()

"""quantize: the edge model, linear layers in INT8 by bitsandbytes (LLM.int8), as from_pretrained reads it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_jobs import merging, models, streaming
from edgetune_jobs.connect import BASE_FIELD
from edgetune_jobs.errors import Interrupted, InvalidInput
from edgetune_jobs.formats.bnb_int8 import FLOAT16_MAX, Int8Encoder, plan_int8, quantization_config
from edgetune_jobs.stage import StageContext, StageOutput
from edgetune_jobs.streaming import StreamedModel
from edgetune_jobs.tensors.families import NotUnderstood
from edgetune_jobs.tensors.plan import plan_files
from edgetune_jobs.tensors.safetensors_writer import SafetensorsWriter

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ARTIFACT = "edge-bnb-int8"


def run(context: StageContext) -> StageOutput:
    """Quantize input merged, or base and adapter merged on the way; artifact `edge-bnb-int8`.

    Raises:
        InvalidInput: weights are not finite or beyond float16, from which LLM.int8 starts; or the inputs do not fit.
        Interrupted: `context.stop` was set.
    """
    context.progress.say("quantizing to INT8 (bitsandbytes)")
    warnings = []
    try:
        model = _open_model(context)
    except NotUnderstood as reason:
        path = streaming.LIBRARY
        warnings.append(streaming.library_warning(reason))
        layers, written = _quantize_by_library(context)
    else:
        path = streaming.STREAMING
        layers, written = _quantize_in_stream(context, model)
    metrics = {"edgeBytes": written, "quantizedLayers": layers, "peakMemoryBytes": models.peak_resident_bytes()}
    facts = {"path": path, "format": context.request.parameters.quantization.formats[0].value}
    return StageOutput({ARTIFACT: ARTIFACT}, metrics, facts, warnings)


def _open_model(context: StageContext) -> StreamedModel:
    """The merged model, tensor by tensor.

    Raises:
        NotUnderstood: only the libraries can read or merge it.
    """
    if context.request.parameters.merge.keep:
        return streaming.stored_model(streaming.model_input(context, "merged", "the merged model"))
    base = streaming.model_input(context, "base", BASE_FIELD)
    return streaming.merged_model(base, context.inputs["adapter"], context.request.parameters.merge.base)


def _quantize_in_stream(context: StageContext, model: StreamedModel) -> tuple[int, int]:
    """Quantize tensor by tensor; the number of layers that were, and the bytes written."""
    parameters = context.request.parameters
    linears = model.layout.linears
    files = plan_files(plan_int8(model.weights.tensors, linears, model.weights.dtype))
    with SafetensorsWriter(files, context.streams, ARTIFACT) as writer:
        streaming.stream(model, [Int8Encoder(writer, linears)], context.progress, context.stop)
        writer.finish()
    folder = context.output / ARTIFACT
    config = quantization_config(parameters.quantization.outlier_threshold)
    streaming.write_companions(model, folder, parameters.dataset, quantization_config=config)
    return len(linears), writer.total_bytes + streaming.companion_bytes(folder)


def _quantize_by_library(context: StageContext) -> tuple[int, int]:
    """Quantize in memory; the number of layers that were, and the bytes written."""
    parameters = context.request.parameters
    device = models.choose_device()
    model, source = _load_merged(context, device)
    layers = _check_range(model)
    if context.stop.is_set():
        raise Interrupted("stopped by SIGTERM before the edge model was written")
    edge = quantize_by_library(model, parameters.quantization.outlier_threshold)
    del model
    folder = context.output / ARTIFACT
    merging.save_model(edge, folder, source, parameters.dataset)
    return layers, merging.folder_bytes(folder)


def _load_merged(context: StageContext, device: "torch.device") -> "tuple[PreTrainedModel, Path]":
    """The merged model, and the folder that its tokenizer comes from."""
    merge = context.request.parameters.merge
    source = streaming.model_input(context, "merged" if merge.keep else "base", "the merged model")
    folder = source.fetch(list(source.sizes))
    if merge.keep:
        return models.load_stored(folder, device), folder
    return merging.merge(folder, context.inputs["adapter"], merge.base, device), folder


def _check_range(model: "PreTrainedModel") -> int:
    """Number of layers that will be quantized, each within float16."""
    count = 0
    for name, module in models.quantizable_linears(model):
        largest = module.weight.detach().abs().max().item()
        if not largest <= FLOAT16_MAX:
            raise InvalidInput(
                f"{name}.weight holds {largest:g}, beyond the largest float16 ({FLOAT16_MAX:g}), from which LLM.int8 "
                "starts: train with a lower spec.training.learningRate or spec.lora.alpha"
            )
        count += 1
    return count


def quantize_by_library(model: "PreTrainedModel", outlier_threshold: float) -> "PreTrainedModel":
    """The model with its linear layers in INT8, made of the weights in memory as from_pretrained does it with files."""
    from transformers import BitsAndBytesConfig

    options: dict[str, Any] = {
        "config": model.config,
        "state_dict": model.state_dict(),
        "quantization_config": BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=outlier_threshold),
        "dtype": model.dtype,
        "device_map": {"": model.device},
    }
    return type(model).from_pretrained(None, **options).eval()

"""quantize: write the edge model in each format of the spec, in one pass if weights can be streamed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_contract.pipeline import ADAPTER, BASE, MERGED
from edgetune_contract.spec import EdgeFormat
from edgetune_jobs.errors import Interrupted
from edgetune_jobs.models import loading
from edgetune_jobs.models.folder import LocalModelFolder, ModelFolder
from edgetune_jobs.models.quantization.coverage import int8_coverage, int8_linears, int8_skipped
from edgetune_jobs.models.saving import folder_bytes, save_model, write_chat_template
from edgetune_jobs.models.tuned_model import merge_adapter
from edgetune_jobs.models.weights import read_tensors, used_files
from edgetune_jobs.stage import StageContext, StageOutput
from edgetune_jobs.tensors import streamed_model
from edgetune_jobs.tensors.families import CannotStream
from edgetune_jobs.tensors.formats.bitsandbytes_int8 import ADDED
from edgetune_jobs.tensors.formats.errors import Unsupported
from edgetune_jobs.tensors.formats.gguf.lora import WrittenAdapter, write_gguf_lora
from edgetune_jobs.tensors.formats.int8_arithmetic import FLOAT16_MAX, beyond_float16
from edgetune_jobs.tensors.formats.suitability import check_quantizer, check_some, refusing
from edgetune_jobs.tensors.formats.writers import open_writers
from edgetune_jobs.tensors.streamed_model import StreamedModel
from edgetune_jobs.wording import some

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class _Written:
    """Figures of the edge models."""

    bytes: dict[EdgeFormat, int]
    layers: int
    """Number of quantized linear layers."""

    shares: dict[EdgeFormat, float]
    """Shares of the weights' bytes before quantization that are quantized, 0 to 1."""

    warnings: tuple[str, ...] = ()

    def with_adapter(self, adapter: WrittenAdapter) -> "_Written":
        """These figures, with those of the adapter in GGUF-LoRA."""
        return _Written(
            {**self.bytes, EdgeFormat.GGUF_LORA: adapter.bytes},
            self.layers or adapter.layers,
            {**self.shares, EdgeFormat.GGUF_LORA: adapter.share},
            self.warnings + adapter.warnings,
        )


def run(context: StageContext) -> StageOutput:
    """Quantize input merged, or merge base and adapter and quantize them; one artifact for each format.

    Raises:
        InvalidInput: weights are not finite or too large for a format, the model cannot be written in a format, or the
            inputs do not fit each other.
        Interrupted: `context.stop` was set.
    """
    formats = context.request.formats
    check_quantizer(context.request.parameters)
    context.progress.say(f"quantizing to {', '.join(formats)}")
    path, written = _write_merged(context, [each for each in formats if each is not EdgeFormat.GGUF_LORA])
    update: dict[str, float] = {}
    if EdgeFormat.GGUF_LORA in formats:
        adapter = write_gguf_lora(context)
        written, update = written.with_adapter(adapter), {"updateBytes": adapter.update_bytes}
    metrics = {
        **update,
        "edgeBytes": written.bytes[formats[0]],
        "quantizedLayers": written.layers,
        "quantizedShare": round(written.shares[formats[0]], 4),
        "peakMemoryBytes": loading.peak_resident_bytes(),
    }
    # The status shows the first one.
    artifacts = tuple(edge_format.artifact for edge_format in formats)
    shares = ", ".join(f"{each} {written.shares[each]:.1%}" for each in formats)
    facts = {"path": path, "formats": " ".join(formats), "quantizedShares": shares}
    return StageOutput(artifacts, metrics, facts, written.warnings)


def _write_merged(context: StageContext, formats: Sequence[EdgeFormat]) -> tuple[str, _Written]:
    """Write these formats of the merged model; the path that its weights took."""
    if not formats:
        return streamed_model.STREAMING, _Written({}, 0, {})
    try:
        model = _open_model(context)
    except CannotStream as reason:
        return streamed_model.LIBRARY, _write_by_library(context, formats, reason)
    return streamed_model.STREAMING, _write_in_stream(context, model, formats)


def _open_model(context: StageContext) -> StreamedModel:
    """The merged model as a stream of tensors.

    Raises:
        CannotStream: only the libraries can read or merge it.
    """
    if streamed_model.has_model(context, MERGED):
        return streamed_model.stored_model(streamed_model.model_input(context, MERGED))
    base = streamed_model.model_input(context, BASE)
    return streamed_model.merged_model(base, context.inputs[ADAPTER], context.request.parameters.merge.base)


def _write_in_stream(context: StageContext, model: StreamedModel, formats: Sequence[EdgeFormat]) -> _Written:
    """Write these formats in one pass over the weights."""
    with open_writers(formats, model, context) as writers:
        encoders = list(dict.fromkeys(writer.encoder for writer in writers.values()))
        about_merge = streamed_model.stream(model, encoders, context.progress, context.stop)
        written = {each: writer.finish() for each, writer in writers.items()}
    warnings = about_merge + tuple(warning for writer in writers.values() for warning in writer.warnings)
    shares = {each: writer.quantized_share for each, writer in writers.items()}
    return _Written(written, len(model.layout.linears), shares, warnings)


def _write_by_library(context: StageContext, formats: Sequence[EdgeFormat], reason: CannotStream) -> _Written:
    """Write bitsandbytes INT8 from memory, and stream the model that the library merged to all other formats."""
    device = loading.choose_device()
    model, source = _load_merged(context, device)
    others = [each for each in formats if each is not EdgeFormat.BITSANDBYTES_INT8]
    written = _write_others(context, model, source, others) if others else _Written({}, 0, {})
    sizes, layers, shares, warnings = dict(written.bytes), written.layers, dict(written.shares), written.warnings
    if EdgeFormat.BITSANDBYTES_INT8 in formats:
        layers, left = _check_range(model), int8_coverage(model).left
        if context.stop.is_set():
            raise Interrupted("stopped by SIGTERM before the edge model was written")
        edge = _quantize(model, context.request.parameters.quantization.outlier_threshold, device)
        del model
        folder = context.output / EdgeFormat.BITSANDBYTES_INT8.artifact
        prompt_format = streamed_model.trained_prompt_format(context)
        save_model(edge, folder, source, prompt_format)
        tokenizer = loading.load_tokenizer(folder, _merged_source(context).label)
        template = write_chat_template(folder, prompt_format, tokenizer)
        warnings += () if template is None else template.warnings
        sizes[EdgeFormat.BITSANDBYTES_INT8] = folder_bytes(folder)
        share = shares[EdgeFormat.BITSANDBYTES_INT8] = _written_share(context, folder)
        if left:
            warnings += (
                f"{EdgeFormat.BITSANDBYTES_INT8} has only {share:.0%} of the weights in 8 bits: {some(left)} stay in "
                "16 or 32 bits, because the libraries do not read or run them in INT8",
            )
    return _Written(sizes, layers, shares, (streamed_model.library_warning(reason), *warnings))


def _written_share(context: StageContext, folder: Path) -> float:
    """Share of a bitsandbytes INT8 model's weights that is in INT8, by its files.

    Raises:
        InvalidInput: nothing is.
    """
    tensors = [each for each in read_tensors(LocalModelFolder(folder, folder.name)) if not each.name.endswith(ADDED)]
    numbers = {each.name: math.prod(each.shape) for each in tensors}
    share = sum(numbers[each.name] for each in tensors if each.dtype == "I8") / sum(numbers.values())
    with refusing(EdgeFormat.BITSANDBYTES_INT8, context.request.parameters):
        check_some(share)
    return share


def _write_others(
    context: StageContext, model: "PreTrainedModel", source: Path, formats: Sequence[EdgeFormat]
) -> _Written:
    """Write formats that need a streamed model.

    Raises:
        InvalidInput: the merged model cannot be streamed either.
    """
    merged = context.scratch / MERGED
    save_model(model, merged, source, streamed_model.trained_prompt_format(context))
    with refusing(formats[0], context.request.parameters):
        try:
            streamed = streamed_model.stored_model(LocalModelFolder(merged, "the merged model"))
        except CannotStream as reason:
            raise Unsupported(str(reason)) from reason
    return _write_in_stream(context, streamed, formats)


def _merged_source(context: StageContext) -> ModelFolder:
    """The merged model, or the base that the adapter is merged into here; its tokenizer is used."""
    return streamed_model.model_input(context, MERGED if streamed_model.has_model(context, MERGED) else BASE)


def _load_merged(context: StageContext, device: "torch.device") -> "tuple[PreTrainedModel, Path]":
    """The merged model, and the folder of its tokenizer."""
    source = _merged_source(context)
    folder = source.fetch(used_files(source))
    if streamed_model.has_model(context, MERGED):
        return loading.load_merged(folder, device), folder
    merge_base = context.request.parameters.merge.base
    return merge_adapter(folder, context.inputs[ADAPTER], merge_base, device), folder


def _check_range(model: "PreTrainedModel") -> int:
    """Number of layers to quantize, after a check that their weights fit into float16."""
    count = 0
    for name, module in int8_linears(model):
        largest = module.weight.detach().abs().max().item()
        if not largest <= FLOAT16_MAX:
            raise beyond_float16(f"{name}.weight", largest)
        count += 1
    return count


def _quantize(model: "PreTrainedModel", outlier_threshold: float, device: "torch.device") -> "PreTrainedModel":
    """The model with its linear layers in INT8, quantized from memory as from_pretrained does from files."""
    from transformers import BitsAndBytesConfig

    options: dict[str, Any] = {
        "config": model.config,
        "state_dict": model.state_dict(),
        "quantization_config": BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=outlier_threshold, llm_int8_skip_modules=int8_skipped(model)
        ),
        "dtype": model.dtype,
        "device_map": {"": device},
    }
    return type(model).from_pretrained(None, **options).eval()

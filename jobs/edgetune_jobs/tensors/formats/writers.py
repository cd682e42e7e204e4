"""Writers of edge models: one per format, all fed by one pass over the model's rows."""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_contract.pipeline import PREPARED
from edgetune_contract.spec import EdgeFormat
from edgetune_jobs.data.chat.modelfile import RuntimeSettings, write_modelfile
from edgetune_jobs.data.chat.trained_template import TrainedTemplate
from edgetune_jobs.data.prepared_data import read_train_tokens
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.data.tokenization import runtime_adds_bos
from edgetune_jobs.models import loading
from edgetune_jobs.models.folder import GENERATION_CONFIG
from edgetune_jobs.models.quantization import gguf_loading
from edgetune_jobs.models.saving import write_chat_template
from edgetune_jobs.stage import StageContext
from edgetune_jobs.tensors import streamed_model
from edgetune_jobs.tensors.formats import bitsandbytes_int8, w8a8
from edgetune_jobs.tensors.formats.gguf import importance, quantizer
from edgetune_jobs.tensors.formats.gguf.encoder import GgufEncoder, make_header
from edgetune_jobs.tensors.formats.gguf.layout import K_BLOCK, GgufLayout, lay_out, matrices_of
from edgetune_jobs.tensors.formats.gguf.vocabulary import describe_vocabulary
from edgetune_jobs.tensors.formats.int8_encoder import Int8Encoder, Int8Scheme, plan_int8
from edgetune_jobs.tensors.formats.suitability import refusing
from edgetune_jobs.tensors.safetensors_plan import plan_files
from edgetune_jobs.tensors.safetensors_writer import SafetensorsWriter
from edgetune_jobs.tensors.streamed_model import StreamedModel
from edgetune_jobs.tensors.weight_stream import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Ollama cuts off longer conversations; a model's whole context may not fit into a device.
LEAST_CONTEXT = 4096

_MATRIX = "importance.safetensors"


@dataclass(frozen=True)
class EdgeWriter:
    """Writes an edge model in one format."""

    encoder: Encoder
    """Encodes and writes the rows."""

    finish: Callable[[], int]
    """Writes the remaining files after the rows; returns the total size of all files in bytes."""

    quantized_share: float
    """Share of the weights' bytes before quantization that is quantized, 0 to 1."""

    warnings: Sequence[str] = ()
    """Complete once the writer has finished."""


@contextmanager
def open_writers(
    formats: Sequence[EdgeFormat], model: StreamedModel, context: StageContext
) -> Iterator[Mapping[EdgeFormat, EdgeWriter]]:
    """The writers of the formats' artifacts; files that are incomplete at the exit of the context are discarded.

    All K-quants have the same encoder, because llama.cpp makes them from the same file.

    Raises:
        InvalidInput: a format does not support the model.
    """
    k_quants = [each for each in formats if each.is_k_quant]
    with ExitStack() as stack:
        writers = {each: stack.enter_context(_WRITERS[each](model, context)) for each in formats if each in _WRITERS}
        if k_quants:
            writers |= stack.enter_context(_k_quants(k_quants, model, context))
        yield {each: writers[each] for each in formats}


def _bitsandbytes_int8(model: StreamedModel, context: StageContext) -> AbstractContextManager[EdgeWriter]:
    config = bitsandbytes_int8.quantization_config(context.request.parameters.quantization.outlier_threshold)
    return _int8(EdgeFormat.BITSANDBYTES_INT8, bitsandbytes_int8.SCHEME, config, model, context)


def _compressed_tensors_w8a8(model: StreamedModel, context: StageContext) -> AbstractContextManager[EdgeWriter]:
    return _int8(EdgeFormat.COMPRESSED_TENSORS_W8A8, w8a8.SCHEME, w8a8.quantization_config(), model, context)


@contextmanager
def _int8(
    edge_format: EdgeFormat,
    scheme: Int8Scheme,
    quantization_config: Mapping[str, Any],
    model: StreamedModel,
    context: StageContext,
) -> Iterator[EdgeWriter]:
    groups = plan_int8(scheme, model.weights.tensors, model.layout.linears, model.weights.dtype)
    warnings: list[str] = []

    def finish() -> int:
        writer.finish()
        folder = context.output / edge_format.artifact
        prompt_format = streamed_model.trained_prompt_format(context)
        streamed_model.write_companions(model, folder, prompt_format, quantization_config=quantization_config)
        tokenizer = loading.load_tokenizer(folder, model.weights.folder.label)
        template = write_chat_template(folder, prompt_format, tokenizer)
        warnings.extend(f"{edge_format}: {each}" for each in _warnings(template))
        return writer.total_bytes + streamed_model.companion_bytes(folder)

    with SafetensorsWriter(plan_files(groups), context.streams, edge_format.artifact) as writer:
        share = quantized_share(model, model.layout.linears)
        yield EdgeWriter(Int8Encoder(scheme, writer, groups), finish, share, warnings)


@dataclass(frozen=True)
class _Described:
    """A GGUF file before its first tensor."""

    layout: GgufLayout
    header: bytes
    share: float
    """Of the weights' bytes before quantization that the format quantizes, 0 to 1."""

    differences: tuple[str, ...]
    """Warnings about what llama.cpp does otherwise."""

    def writer(self, edge_format: EdgeFormat, encoder: Encoder, finish: Callable[[], int]) -> EdgeWriter:
        """The writer of the file."""
        return EdgeWriter(encoder, finish, self.share, tuple(f"{edge_format}: {each}" for each in self.differences))


@contextmanager
def _gguf(edge_format: EdgeFormat, model: StreamedModel, context: StageContext) -> Iterator[EdgeWriter]:
    file = _describe(edge_format, model, context)
    folder = context.output / edge_format.artifact
    with GgufEncoder(file.layout, file.header, context.streams, _gguf_path(edge_format)) as encoder:
        yield file.writer(edge_format, encoder, lambda: encoder.total_bytes + streamed_model.companion_bytes(folder))


@contextmanager
def _k_quants(
    formats: Sequence[EdgeFormat], model: StreamedModel, context: StageContext
) -> Iterator[Mapping[EdgeFormat, EdgeWriter]]:
    files = {each: _describe(each, model, context) for each in formats}
    source = files[formats[0]]

    def finish(edge_format: EdgeFormat) -> int:
        written.close()
        matrix = None
        if context.request.parameters.quantization.needs_rows:
            matrix = context.scratch / _MATRIX
            if not matrix.is_file():
                _write_importance_matrix(source, context.output / edge_format.artifact, matrix, context)
        with refusing(edge_format, context.request.parameters):
            written_bytes = quantizer.quantize(edge_format, _gguf_path(edge_format), context, matrix)
        return written_bytes + streamed_model.companion_bytes(context.output / edge_format.artifact)

    with quantizer.source_files(context.scratch) as outputs, ExitStack() as written:
        encoder = written.enter_context(GgufEncoder(source.layout, source.header, outputs, quantizer.SOURCE))
        yield {each: file.writer(each, encoder, partial(finish, each)) for each, file in files.items()}


def _describe(edge_format: EdgeFormat, model: StreamedModel, context: StageContext) -> _Described:
    """Describe the file of a format, and write the other files of its folder."""
    folder = context.output / edge_format.artifact
    prompt_format = streamed_model.trained_prompt_format(context)
    streamed_model.write_companions(model, folder, prompt_format)
    config = model.layout.config
    dtype, block = matrices_of(edge_format, model.weights.dtype)
    with refusing(edge_format, context.request.parameters):
        layout = lay_out(config, {tensor.name: tensor.shape for tensor in model.weights.tensors}, dtype, block)
        tokenizer = loading.load_tokenizer(folder, model.weights.folder.label)
        other_ends = other_eos_ids(folder, tokenizer.eos_token_id)
        vocabulary = describe_vocabulary(tokenizer, config.vocab_size, other_ends)
        if not runtime_adds_bos(PromptFormat.of(context.request.parameters.dataset), tokenizer):
            vocabulary = replace(vocabulary, add_bos=False)
    ends = (tokenizer.eos_token_id, *other_ends)
    longest = min(layout.context_length, max(LEAST_CONTEXT, context.request.parameters.training.max_length))
    settings = RuntimeSettings(gguf_loading.file_name(edge_format), vocabulary.add_bos, ends, longest)
    template = write_prompts(folder, prompt_format, tokenizer, settings, model.weights.folder.label)
    if template is not None:
        vocabulary = replace(vocabulary, chat_template=template.for_llama_cpp)
    differences = vocabulary.differences + layout.differences + _warnings(template)
    narrow = layout.narrow_matrices if edge_format.is_k_quant else ()
    if narrow:
        share = quantized_share(model, narrow)
        differences += (
            f"{share:.0%} of the weights have rows that are not a multiple of {K_BLOCK} values, which llama.cpp writes "
            "with more bits: Q5_0 instead of Q4_K, Q5_1 instead of Q5_K, Q8_0 instead of Q6_K",
        )
    return _Described(
        layout=layout,
        header=make_header(layout, vocabulary, context.request.name, context.scratch),
        share=quantized_share(model, layout.matrices) if block > 1 else 0.0,
        differences=differences,
    )


def _write_importance_matrix(source: _Described, folder: Path, matrix: Path, context: StageContext) -> None:
    context.progress.say("computing the importance matrix on training rows")
    rows = importance.choose_rows(read_train_tokens(context.inputs[PREPARED]))
    file = context.scratch / quantizer.SOURCE
    means = importance.importance_matrix(
        source.layout, file, len(source.header), folder, rows, context.progress, context.stop
    )
    from safetensors.torch import save_file

    save_file(dict(means), matrix)


def _gguf_path(edge_format: EdgeFormat) -> str:
    return f"{edge_format.artifact}/{gguf_loading.file_name(edge_format)}"


_WRITERS: Mapping[EdgeFormat, Callable[[StreamedModel, StageContext], AbstractContextManager[EdgeWriter]]] = {
    EdgeFormat.BITSANDBYTES_INT8: _bitsandbytes_int8,
    EdgeFormat.GGUF_BF16: partial(_gguf, EdgeFormat.GGUF_BF16),
    EdgeFormat.GGUF_Q8_0: partial(_gguf, EdgeFormat.GGUF_Q8_0),
    EdgeFormat.COMPRESSED_TENSORS_W8A8: _compressed_tensors_w8a8,
}


def quantized_share(model: StreamedModel, quantized: Collection[str]) -> float:
    """Share of a model's weights, by their bytes, that these tensors have."""
    numbers = {tensor.name: math.prod(tensor.shape) for tensor in model.weights.tensors}
    return sum(numbers[name] for name in quantized) / sum(numbers.values())


def write_prompts(
    folder: Path,
    prompt_format: PromptFormat,
    tokenizer: "PreTrainedTokenizerBase",
    settings: RuntimeSettings,
    label: str,
) -> TrainedTemplate | None:
    """Write what gives a GGUF model the prompts of training: chat template and Modelfile.

    Args:
        folder: the model folder, with the files of `tokenizer`.
        prompt_format: how prompts were wrapped in training.
        tokenizer: the base's.
        settings: for the Modelfile.
        label: name in messages of the model that the tokenizer is from.

    Returns:
        The chat template; None if the base's stays.
    """
    template = write_chat_template(folder, prompt_format, tokenizer)
    write_modelfile(folder, prompt_format, loading.load_tokenizer(folder, label), settings)
    return template


def _warnings(template: TrainedTemplate | None) -> tuple[str, ...]:
    return () if template is None else template.warnings


def other_eos_ids(folder: Path, eos_token_id: int) -> Sequence[int]:
    """Ids that end a response according to the generation settings, besides the tokenizer's EOS."""
    settings = json.loads((folder / GENERATION_CONFIG).read_bytes())
    ids = settings.get("eos_token_id")
    return [token for token in (ids if isinstance(ids, list) else [ids]) if token not in (None, eos_token_id)]

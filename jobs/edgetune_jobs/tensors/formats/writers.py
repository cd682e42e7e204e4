"""Writers of edge models: one per format, all fed by one pass over the model's rows."""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgetune_contract.spec import EdgeFormat
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.data.tokenization import runtime_adds_bos
from edgetune_jobs.models import loading
from edgetune_jobs.models.folder import GENERATION_CONFIG
from edgetune_jobs.models.quantization import gguf_loading
from edgetune_jobs.stage import StageContext
from edgetune_jobs.tensors import streamed_model
from edgetune_jobs.tensors.formats import bitsandbytes_int8, w8a8
from edgetune_jobs.tensors.formats.gguf_encoder import GgufEncoder, make_header
from edgetune_jobs.tensors.formats.gguf_layout import lay_out
from edgetune_jobs.tensors.formats.gguf_vocabulary import describe_vocabulary
from edgetune_jobs.tensors.formats.int8_encoder import Int8Encoder, Int8Scheme, plan_int8
from edgetune_jobs.tensors.formats.suitability import refusing
from edgetune_jobs.tensors.safetensors_plan import plan_files
from edgetune_jobs.tensors.safetensors_writer import SafetensorsWriter
from edgetune_jobs.tensors.streamed_model import StreamedModel
from edgetune_jobs.tensors.weight_stream import Encoder


@dataclass(frozen=True)
class EdgeWriter:
    """Writes an edge model in one format."""

    encoder: Encoder
    """Encodes and writes the rows."""

    finish: Callable[[], int]
    """Writes the remaining files after the rows; returns the total size of all files in bytes."""

    quantized_share: float
    """Share of the weights' bytes before quantization that is quantized, 0 to 1."""

    warnings: tuple[str, ...] = ()


def open_writer(
    edge_format: EdgeFormat, model: StreamedModel, context: StageContext
) -> AbstractContextManager[EdgeWriter]:
    """The writer of a format's artifact; files that are incomplete at the exit of the context are discarded.

    Raises:
        InvalidInput: the format does not support the model.
    """
    return _WRITERS[edge_format](model, context)


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

    def finish() -> int:
        writer.finish()
        folder = context.output / edge_format.artifact
        prompt_format = streamed_model.trained_prompt_format(context)
        streamed_model.write_companions(model, folder, prompt_format, quantization_config=quantization_config)
        return writer.total_bytes + streamed_model.companion_bytes(folder)

    with SafetensorsWriter(plan_files(groups), context.streams, edge_format.artifact) as writer:
        share = _share(model, model.layout.linears)
        yield EdgeWriter(Int8Encoder(scheme, writer, groups), finish, share)


@contextmanager
def _gguf_q8_0(model: StreamedModel, context: StageContext) -> Iterator[EdgeWriter]:
    edge_format = EdgeFormat.GGUF_Q8_0
    folder = context.output / edge_format.artifact
    streamed_model.write_companions(model, folder, streamed_model.trained_prompt_format(context))
    config = model.layout.config
    with refusing(edge_format, context.request.parameters):
        layout = lay_out(config, {tensor.name: tensor.shape for tensor in model.weights.tensors})
        tokenizer = loading.load_tokenizer(folder)
        vocabulary = describe_vocabulary(tokenizer, config.vocab_size, _other_eos_ids(folder, tokenizer.eos_token_id))
        if not runtime_adds_bos(PromptFormat.of(context.request.parameters.dataset), tokenizer):
            vocabulary = replace(vocabulary, add_bos=False)
    header = make_header(layout, vocabulary, context.request.name, context.scratch)
    with GgufEncoder(layout, header, context.streams, f"{edge_format.artifact}/{gguf_loading.FILE}") as encoder:
        yield EdgeWriter(
            encoder=encoder,
            finish=lambda: encoder.total_bytes + streamed_model.companion_bytes(folder),
            quantized_share=_share(model, {name for name, tensor in layout.tensors.items() if tensor.quantized}),
            warnings=tuple(f"{edge_format}: {difference}" for difference in vocabulary.differences),
        )


_WRITERS: Mapping[EdgeFormat, Callable[[StreamedModel, StageContext], AbstractContextManager[EdgeWriter]]] = {
    EdgeFormat.BITSANDBYTES_INT8: _bitsandbytes_int8,
    EdgeFormat.GGUF_Q8_0: _gguf_q8_0,
    EdgeFormat.COMPRESSED_TENSORS_W8A8: _compressed_tensors_w8a8,
}


def _share(model: StreamedModel, quantized: Collection[str]) -> float:
    numbers = {tensor.name: math.prod(tensor.shape) for tensor in model.weights.tensors}
    return sum(numbers[name] for name in quantized) / sum(numbers.values())


def _other_eos_ids(folder: Path, eos_token_id: int) -> Sequence[int]:
    """Ids that end a response according to the generation settings, besides the tokenizer's EOS."""
    settings = json.loads((folder / GENERATION_CONFIG).read_bytes())
    ids = settings.get("eos_token_id")
    return [token for token in (ids if isinstance(ids, list) else [ids]) if token not in (None, eos_token_id)]

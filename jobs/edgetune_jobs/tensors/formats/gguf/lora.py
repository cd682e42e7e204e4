"""GGUF-LoRA: an adapter as llama.cpp loads it beside the GGUF file of its base, which all adapters for it share.

base.gguf       the unmodified base in Q8_0: made once for a base, then found in the store by its digest
adapter.gguf    A and B of each layer in float16; llama.cpp adds alpha / rank · B · A to the layer's output
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_contract.digest import base_gguf_digest
from edgetune_contract.pipeline import ADAPTER, BASE
from edgetune_contract.request import FileEntry
from edgetune_contract.spec import EdgeFormat
from edgetune_jobs.data.chat.modelfile import RuntimeSettings
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.data.tokenization import runtime_adds_bos
from edgetune_jobs.errors import HOW_TO_TRAIN_SMALLER_WEIGHTS, InvalidInput
from edgetune_jobs.models import loading
from edgetune_jobs.models.adapters import adapter_layers
from edgetune_jobs.models.folder import LocalModelFolder
from edgetune_jobs.models.quantization.gguf_adapter import BASE_SHA256
from edgetune_jobs.models.quantization.gguf_loading import ADAPTER_FILE, BASE_FILE
from edgetune_jobs.models.saving import save_model
from edgetune_jobs.models.weights import used_files
from edgetune_jobs.stage import OutputFile, OutputFiles, StageContext
from edgetune_jobs.tensors import streamed_model
from edgetune_jobs.tensors.families import CannotStream
from edgetune_jobs.tensors.formats.errors import Unsupported
from edgetune_jobs.tensors.formats.gguf.encoder import GgufEncoder, make_header
from edgetune_jobs.tensors.formats.gguf.layout import GgufLayout, lay_out
from edgetune_jobs.tensors.formats.gguf.vocabulary import GgufVocabulary, describe_vocabulary
from edgetune_jobs.tensors.formats.suitability import refusing
from edgetune_jobs.tensors.formats.writers import LEAST_CONTEXT, other_eos_ids, quantized_share, write_prompts
from edgetune_jobs.tensors.merged_rows import LoraMatrices
from edgetune_jobs.tensors.streamed_model import StreamedModel

if TYPE_CHECKING:
    import torch

_FORMAT = EdgeFormat.GGUF_LORA
_DIGITS = 12


@dataclass(frozen=True)
class WrittenAdapter:
    """Figures of an adapter with its base."""

    bytes: int
    """Size of all files, with those of the base."""

    update_bytes: int
    """Size of the adapter's file: what a device with the base downloads."""

    layers: int
    """Number of linear layers of the base in 8 bits."""

    share: float
    """Share of the base's weights that is in 8 bits, by their bytes before quantization."""

    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _SharedFiles:
    """Creates the file that all adapters for a base share."""

    streams: OutputFiles
    digest: str

    def create(self, path: str, size: int) -> AbstractContextManager[OutputFile]:
        """A new file of `size` bytes: see NewFiles."""
        return self.streams.create_shared(path, self.digest, size)


def write_gguf_lora(context: StageContext) -> WrittenAdapter:
    """Write the artifact of GGUF-LoRA from the inputs base and adapter.

    Raises:
        InvalidInput: llama.cpp does not support the base or the adapter, or they do not match.
        Interrupted: `context.stop` was set.
    """
    request = context.request
    folder = context.output / _FORMAT.artifact
    adapter = context.inputs[ADAPTER]
    config = adapter_layers.read_adapter_config(adapter)
    with refusing(_FORMAT, request.parameters):
        if special := adapter_layers.special_options(config):
            raise Unsupported(f"the adapter uses {', '.join(special)}, and llama.cpp only adds two matrices to a layer")
        prompt_format = streamed_model.trained_prompt_format(context)
        base, about_base = _open_base(context, prompt_format)
        layout = lay_out(base.layout.config, {tensor.name: tensor.shape for tensor in base.weights.tensors})
        streamed_model.write_companions(base, folder, prompt_format)
        tokenizer = loading.load_tokenizer(folder, base.weights.folder.label)
        ids = other_eos_ids(folder, tokenizer.eos_token_id)
        vocabulary = describe_vocabulary(tokenizer, base.layout.config.vocab_size, ids)
    longest = min(layout.context_length, max(LEAST_CONTEXT, request.parameters.training.max_length))
    ends = (tokenizer.eos_token_id, *ids)
    # The base's file, which other adapters share, has the base's chat template.
    settings = RuntimeSettings(BASE_FILE, vocabulary.add_bos, ends, longest, ADAPTER_FILE)
    template = write_prompts(folder, prompt_format, tokenizer, settings, base.weights.folder.label)
    about_prompts = () if template is None else template.warnings
    differences = (*about_base, *vocabulary.differences, *layout.differences, *about_prompts)
    warnings = tuple(f"{_FORMAT}: {each}" for each in differences)
    if vocabulary.add_bos and not runtime_adds_bos(prompt_format, tokenizer):
        warnings += (
            f"{_FORMAT}: llama.cpp adds BOS to each prompt, as the base's tokenizer does, but training did not: run it "
            "with --override-kv tokenizer.ggml.add_bos_token=bool:false",
        )
    matrices = streamed_model.lora_matrices(adapter, config, base.layout)
    shared = _share_base(context, base, layout, vocabulary)
    write_adapter(folder / ADAPTER_FILE, layout, matrices, request.name, shared.sha256)
    files = sum(path.stat().st_size for path in folder.iterdir() if path.name != BASE_FILE)
    return WrittenAdapter(
        bytes=shared.bytes + files,
        update_bytes=(folder / ADAPTER_FILE).stat().st_size,
        layers=len(base.layout.linears),
        share=quantized_share(base, layout.matrices),
        warnings=warnings,
    )


def write_adapter(
    path: Path, layout: GgufLayout, matrices: Mapping[str, LoraMatrices], name: str, base_sha256: str
) -> None:
    """Write an adapter's file.

    Args:
        path: the file.
        layout: of the base.
        matrices: of the adapter, by the names of the base's weights.
        name: display name of the adapter.
        base_sha256: SHA-256 of the base's GGUF file.

    Raises:
        InvalidInput: a value is not finite in float16.
    """
    from gguf import GGUFType, GGUFWriter, Keys

    # llama.cpp reads one alpha for all layers, and the rank of each from its matrices.
    alpha = next(update.scale * len(update.first) for update in matrices.values()) or 1.0  # it reads 0 as "no alpha"
    writer = GGUFWriter(path, layout.architecture)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_string(BASE_SHA256, base_sha256)
    writer.add_name(name)
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    for weight in layout.tensors:
        if (update := matrices.get(weight)) is None:
            continue
        tensor, ratio = layout.tensors[weight], update.scale * len(update.first) / alpha
        second = tensor.in_order(update.second) * ratio
        for suffix, values in ((".lora_a", update.first), (".lora_b", second)):
            writer.add_tensor(f"{tensor.name}{suffix}", _float16(weight, values).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _float16(weight: str, values: "torch.Tensor") -> "torch.Tensor":
    rounded = values.half().contiguous()
    if not rounded.isfinite().all():
        raise InvalidInput(
            f"the adapter of {weight} has a value that is too large for float16; {HOW_TO_TRAIN_SMALLER_WEIGHTS}"
        )
    return rounded


def _open_base(context: StageContext, prompt_format: PromptFormat) -> tuple[StreamedModel, tuple[str, ...]]:
    """The base as a stream of tensors, if necessary as the libraries save it; and a warning if it is.

    Raises:
        Unsupported: that cannot be streamed either.
    """
    source = streamed_model.model_input(context, BASE)
    try:
        return streamed_model.stored_model(source), ()
    except CannotStream as reason:
        folder, saved = source.fetch(used_files(source)), context.scratch / BASE
        save_model(loading.load_merged(folder, loading.choose_device()), saved, folder, prompt_format)
        warning = streamed_model.library_warning(reason)
    try:
        return streamed_model.stored_model(LocalModelFolder(saved, source.label)), (warning,)
    except CannotStream as reason:
        raise Unsupported(str(reason)) from reason


def _share_base(
    context: StageContext, base: StreamedModel, layout: GgufLayout, vocabulary: GgufVocabulary
) -> FileEntry:
    """Make the base's GGUF file a file of the artifact. It is written if no other run has done so."""
    resolved = context.request.resolved
    if resolved is None:
        raise InvalidInput("the request for the stage quantize lacks `resolved`: copy it from the result of prepare")
    digest, path = base_gguf_digest(resolved.base), f"{_FORMAT.artifact}/{BASE_FILE}"
    found = context.streams.find_shared(path, digest)
    if found is not None:
        return found
    context.progress.say("writing the base in GGUF-Q8_0, once for all its fine-tunes")
    header = make_header(layout, vocabulary, f"base-{resolved.base[:_DIGITS]}", context.scratch)
    with GgufEncoder(layout, header, _SharedFiles(context.streams, digest), path) as encoder:
        streamed_model.stream(base, [encoder], context.progress, context.stop)
    written = context.streams.find_shared(path, digest)
    if written is None:
        raise RuntimeError(f"{path} was written, but is not among the shared files")
    return written

"""Models that are merged and quantized without loading them: their weights and their other files.

Memory is bounded by a few pieces and the largest weight. The output is bitwise that of the libraries.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from edgetune_contract.pipeline import ADAPTER, BASE, MERGED
from edgetune_contract.spec import MergeBase
from edgetune_jobs.data import prompt_format as prompt_formats
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.models.adapters import adapter_files, adapter_layers
from edgetune_jobs.models.folder import (
    CONFIG,
    GENERATION_CONFIG,
    LocalModelFolder,
    ModelFolder,
    artifact_label,
    base_label,
    without_code,
    write_json,
)
from edgetune_jobs.models.libraries import prepare_torch, usable_cpus
from edgetune_jobs.models.saving import copy_companions
from edgetune_jobs.models.tuned_model import check_merged, merged_dtype
from edgetune_jobs.models.weights import (
    OUTPUT_HEAD,
    SAFETENSORS_DTYPES,
    TORCH_DTYPES,
    WEIGHTS_INDEX,
    StoredTensor,
    read_tensors,
)
from edgetune_jobs.stage import Progress, StageContext
from edgetune_jobs.store.files import list_files
from edgetune_jobs.tensors import nf4, weight_stream
from edgetune_jobs.tensors.families import CannotStream, Layout, find_layout
from edgetune_jobs.tensors.merged_rows import LoraMatrices, ModelWeights

STREAMING = "streaming"
"""Fact `path` of a stage: the model was streamed tensor by tensor."""

LIBRARY = "library"
"""Fact `path` of a stage: the libraries loaded the whole model into memory."""

# The current name and the old one, which older libraries read.
_DTYPE_FIELDS = ("dtype", "torch_dtype")
_TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")

# Additional workers for a model that is read over the network: requests in flight while all cores are busy.
_REQUESTS = 4


@dataclass(frozen=True)
class StreamedModel:
    """A model that is read tensor by tensor."""

    weights: ModelWeights
    layout: Layout


def has_model(context: StageContext, name: str) -> bool:
    """Whether a stage has this model as an input."""
    return name in context.models or name in context.inputs


def model_input(context: StageContext, name: str) -> ModelFolder:
    """A model that is an input of a stage: in a local folder or in the store."""
    if name in context.models:
        return context.models[name]
    folder = context.inputs[name]
    uri = context.request.parameters.base_model.uri
    return LocalModelFolder(folder, base_label(uri) if name == BASE else artifact_label(name, folder.as_uri()))


def trained_prompt_format(context: StageContext) -> PromptFormat:
    """How prompts were wrapped in training: train writes it beside the adapter, merge beside the merged model."""
    folder = context.inputs.get(ADAPTER)
    if folder is None and has_model(context, MERGED):
        merged = model_input(context, MERGED)
        folder = merged.fetch([prompt_formats.FILE]) if prompt_formats.FILE in merged.sizes else None
    if folder is None or not (folder / prompt_formats.FILE).is_file():
        return PromptFormat.of(context.request.parameters.dataset)
    return PromptFormat.read(folder)


def merged_model(base: ModelFolder, adapter: Path, merge_base: MergeBase) -> StreamedModel:
    """A base model merged with its adapter, in the dtype of `merged_dtype`.

    Raises:
        CannotStream: only the libraries can merge them.
        InvalidInput: base model or adapter are damaged, or do not match.
    """
    prepare_torch()
    import torch

    record = adapter_files.read_record(adapter)
    tensors, layout = _read(base)
    config = adapter_layers.read_adapter_config(adapter)
    special = adapter_layers.special_options(config)
    if special:
        raise CannotStream(f"the adapter uses {', '.join(special)}")
    weights = ModelWeights(
        folder=base,
        tensors=tensors,
        dtype=merged_dtype(record.base_dtype, tensors),
        through_nf4=_nf4_weights(layout) if record.through_nf4(merge_base) else frozenset(),
        adapter=lora_matrices(adapter, config, layout),
        threads=torch.get_num_threads(),
    )
    return StreamedModel(weights, layout)


def stored_model(model: ModelFolder) -> StreamedModel:
    """A model in the dtype of its config.json, by default the stored dtype.

    Raises:
        CannotStream: only the libraries can read it.
        InvalidInput: the model is damaged.
    """
    prepare_torch()
    tensors, layout = _read(model)
    named = (layout.settings.get(name) for name in _DTYPE_FIELDS)
    dtype = next((name for name in named if name in SAFETENSORS_DTYPES), TORCH_DTYPES[tensors[0].dtype])
    return StreamedModel(ModelWeights(model, tensors, dtype), layout)


def can_stream(model: ModelFolder, *, through_nf4: bool) -> bool:
    """Whether merge and quantize can read a base model tensor by tensor, by the headers of its files.

    Args:
        model: the base model.
        through_nf4: whether it is merged as QLoRA holds it.
    """
    try:
        _, layout = _read(model)
        if through_nf4:
            _nf4_weights(layout)
    except CannotStream:
        return False
    return True


def stream(
    model: StreamedModel, encoders: Sequence[weight_stream.Encoder], progress: Progress, stop: threading.Event
) -> tuple[str, ...]:
    """Encode and write a model's rows: see tensors.pipeline.

    Returns:
        Warnings about the merge.

    Raises:
        DamagedObject: the content of a file differs from the model's manifest.
        InvalidInput: the merged weights equal the base's.
    """
    is_remote = not isinstance(model.weights.folder, LocalModelFolder)
    workers = usable_cpus() + (_REQUESTS if is_remote else 0)
    weight_stream.stream(model.weights, encoders, workers=workers, progress=progress, stop=stop)
    model.weights.folder.check()
    return check_merged(model.weights.unchanged, len(model.weights.adapter))


def write_companions(model: StreamedModel, folder: Path, prompt_format: PromptFormat, **fields: Any) -> None:
    """Write the files of a model folder other than its weights, as save_pretrained does.

    Args:
        model: the model.
        folder: the folder to write, which is created if needed.
        prompt_format: how prompts were wrapped in training.
        fields: additional fields of config.json, such as quantization_config.
    """
    settings = {**model.layout.settings, **fields, _DTYPE_FIELDS[0]: model.weights.dtype}
    if _DTYPE_FIELDS[1] in settings:
        settings[_DTYPE_FIELDS[1]] = model.weights.dtype
    settings = without_code(settings)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, settings)
    write_json(folder / GENERATION_CONFIG, _generation_settings(settings))
    copy_companions(model.weights.folder, folder, prompt_format)


def _generation_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Content of generation_config.json for a model without this file."""
    tokens = {name: settings[name] for name in _TOKEN_FIELDS if settings.get(name) is not None}
    return {"_from_model_config": True, "transformers_version": metadata.version("transformers"), **tokens}


def library_warning(reason: CannotStream) -> str:
    """The warning of a stage that did not stream a model."""
    return f"the whole model was loaded into memory, because it cannot be streamed: {reason}"


def companion_bytes(folder: Path) -> int:
    """Total size in bytes of a model folder without its weights and their index."""
    names = (path for path in list_files(folder) if not path.endswith((".safetensors", ".gguf", WEIGHTS_INDEX)))
    return sum((folder / name).stat().st_size for name in names)


def _read(model: ModelFolder) -> tuple[tuple[StoredTensor, ...], Layout]:
    """The tensors that the libraries would load, and their layout."""
    tensors = read_tensors(model)
    layout = find_layout(model, tensors)
    return tuple(tensor for tensor in tensors if tensor.name in layout.tensors), layout


def _nf4_weights(layout: Layout) -> frozenset[str]:
    """All weights that QLoRA keeps in NF4, with or without an adapter.

    Raises:
        CannotStream: the blocks of bitsandbytes would span rows.
    """
    for name in sorted(layout.linears):
        if layout.tensors[name][1] % nf4.BLOCK:
            raise CannotStream(f"the row length of {name} is not a multiple of the NF4 block size, {nf4.BLOCK}")
    return layout.linears


def lora_matrices(adapter: Path, config: Mapping[str, Any], layout: Layout) -> dict[str, LoraMatrices]:
    """A plain adapter's matrices by the name of the weight that they update.

    Raises:
        InvalidInput: the adapter cannot be read, or does not match the base model.
    """
    weights = adapter_layers.read_adapter_weights(adapter)
    modules = {name.removesuffix(".weight"): shape for name, shape in layout.tensors.items()}
    linears = {
        name: (shape[1], shape[0])
        for name, shape in modules.items()
        if f"{name}.weight" in layout.linears or name == OUTPUT_HEAD
    }
    adapter_layers.check_layers(config, weights, linears, modules)
    matrices = {}
    for layer in adapter_layers.adapter_layers(weights):
        first, second = adapter_layers.matrices_of(weights, layer)
        scale = adapter_layers.scale_of(config, layer)
        matrices[f"{layer}.weight"] = LoraMatrices(first.float(), second.float(), scale)
    return matrices

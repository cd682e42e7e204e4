"""merge: add the adapter to the base's weights, as a model that from_pretrained reads."""

from pathlib import Path

from edgetune_contract.pipeline import ADAPTER, BASE, MERGED
from edgetune_jobs.errors import Interrupted
from edgetune_jobs.models import loading
from edgetune_jobs.models.adapters import adapter_files
from edgetune_jobs.models.folder import ModelFolder
from edgetune_jobs.models.saving import folder_bytes, save_model
from edgetune_jobs.models.tuned_model import merge_adapter
from edgetune_jobs.models.weights import used_files
from edgetune_jobs.stage import StageContext, StageOutput
from edgetune_jobs.tensors import streamed_model
from edgetune_jobs.tensors.families import CannotStream
from edgetune_jobs.tensors.safetensors_plan import plan_files
from edgetune_jobs.tensors.safetensors_writer import SafetensorsWriter
from edgetune_jobs.tensors.streamed_model import StreamedModel
from edgetune_jobs.tensors.unquantized_encoder import StoredEncoder, plan_stored


def run(context: StageContext) -> StageOutput:
    """Merge inputs base and adapter; artifact `merged`, in the dtype of `merged_dtype`.

    Raises:
        InvalidInput: the adapter does not fit the base, or the merged weights are not finite.
        Interrupted: `context.stop` was set.
    """
    merge_base = context.request.parameters.merge.base
    base, adapter = streamed_model.model_input(context, BASE), context.inputs[ADAPTER]
    record = adapter_files.read_record(adapter)
    context.progress.say(f"merging the adapter into the base ({merge_base})")
    warnings: list[str] = []
    try:
        model = streamed_model.merged_model(base, adapter, merge_base)
    except CannotStream as reason:
        path = streamed_model.LIBRARY
        warnings.append(streamed_model.library_warning(reason))
        written, dtype = _merge_by_library(context, base, adapter)
    else:
        path = streamed_model.STREAMING
        written, unchanged = _merge_in_stream(context, model)
        dtype = model.weights.dtype
        warnings.extend(unchanged)
    metrics = {
        "baseBytes": sum(base.sizes[file] for file in used_files(base)),
        "adapterBytes": folder_bytes(adapter),
        "mergedBytes": written,
        "peakMemoryBytes": loading.peak_resident_bytes(),
    }
    facts = {
        "path": path,
        "dtype": dtype,
        "mergeBase": "NF4 and back, as training saw it" if record.through_nf4(merge_base) else "the stored weights",
    }
    return StageOutput((MERGED,), metrics, facts, warnings)


def _merge_in_stream(context: StageContext, model: StreamedModel) -> tuple[int, tuple[str, ...]]:
    """Merge tensor by tensor; the bytes written, and warnings."""
    files = plan_files(plan_stored(model.weights.tensors, model.weights.dtype))
    with SafetensorsWriter(files, context.streams, MERGED) as writer:
        warnings = streamed_model.stream(model, [StoredEncoder(writer)], context.progress, context.stop)
        writer.finish()
    folder = context.output / MERGED
    streamed_model.write_companions(model, folder, streamed_model.trained_prompt_format(context))
    return writer.total_bytes + streamed_model.companion_bytes(folder), warnings


def _merge_by_library(context: StageContext, base: ModelFolder, adapter: Path) -> tuple[int, str]:
    """Merge in memory; the bytes written, and torch's name for the dtype."""
    parameters = context.request.parameters
    folder = base.fetch(used_files(base))
    model = merge_adapter(folder, adapter, parameters.merge.base, loading.choose_device())
    if context.stop.is_set():
        raise Interrupted("stopped by SIGTERM before the merged model was written")
    save_model(model, context.output / MERGED, folder, streamed_model.trained_prompt_format(context))
    return folder_bytes(context.output / MERGED), loading.dtype_name(model.dtype)

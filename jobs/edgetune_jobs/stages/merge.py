"""merge: the adapter added to the base's weights, as one model that from_pretrained reads."""

from edgetune_contract.spec import MergeBase, Method
from edgetune_jobs import adapters, merging, models
from edgetune_jobs.errors import Interrupted
from edgetune_jobs.stage import StageContext, StageOutput


def run(context: StageContext) -> StageOutput:
    """Merge inputs base and adapter; artifact `merged`, in the number format that training held the base in.

    Raises:
        InvalidInput: the adapter does not fit the base, or the merged weights are not finite.
        Interrupted: `context.stop` was set.
    """
    parameters = context.request.parameters
    base, adapter = context.inputs["base"], context.inputs["adapter"]
    device = models.choose_device()
    record = adapters.read_record(adapter)
    context.progress.say(f"merging the adapter into the base ({parameters.merge.base})")
    model = merging.merge(base, adapter, parameters.merge.base, device)
    if context.stop.is_set():
        raise Interrupted("stopped by SIGTERM before the merged model was written")
    folder = context.output / "merged"
    merging.save_model(model, folder, base, parameters.dataset)
    through_nf4 = record.method is Method.QLORA and parameters.merge.base is MergeBase.AS_TRAINED
    metrics = {
        "baseBytes": merging.folder_bytes(base),
        "adapterBytes": merging.folder_bytes(adapter),
        "mergedBytes": merging.folder_bytes(folder),
        "peakMemoryBytes": models.peak_memory_bytes(device),
    }
    facts = {
        "device": models.describe_device(device),
        "dtype": record.base_dtype,
        "mergeBase": "NF4 and back, as training saw it" if through_nf4 else "the stored weights",
    }
    return StageOutput({"merged": "merged"}, metrics, facts)

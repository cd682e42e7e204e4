"""`edgetune estimate`: the GPU memory of a training by its base's headers, and its time by earlier runs."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.options import (
    DEFAULT_WORK_DIR,
    Output,
    Profiles,
    WorkDir,
    read_object,
    read_profiles,
    require_profile,
)
from edgetune_cli.output import DataFormat, print_data, working
from edgetune_cli.planning.figures import trained_tokens
from edgetune_cli.store.commands import call_jobs
from edgetune_cli.store.drafting.earlier_runs import EarlierRuns, find_earlier_runs
from edgetune_cli.store.report import aligned
from edgetune_contract.request import StoreLocation
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_contract.values.quantities import parse_bytes
from edgetune_contract.values.units import format_cost
from edgetune_operator.api.profiles.gpu_use import Prices
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.spec_check import parse_spec

if TYPE_CHECKING:
    from edgetune_jobs.training.memory.estimate import Workload

_GIB = 2**30


def estimate(
    filename: Annotated[
        Path, typer.Option("--filename", "-f", help="YAML file with one LoraFineTune.", show_default=False)
    ],
    gpu_memory: Annotated[
        str | None,
        typer.Option(
            "--gpu-memory", help="Memory of the GPU, such as 24Gi; default: common sizes.", show_default=False
        ),
    ] = None,
    workdir: WorkDir = DEFAULT_WORK_DIR,
    profiles: Profiles = None,
    output: Output = DataFormat.TEXT,
) -> None:
    """Print the GPU memory that a training takes, and its time if earlier runs in the store show the speed.

    Reads the base model's configuration and the headers of its tensors, no weights and no data. Exits with 0, with 1 if
    the training cannot fit into --gpu-memory, or 2 if the object or the base model cannot be used.
    """
    document = read_object(filename)
    spec, namespace = parse_spec(document["spec"]), document["metadata"].get("namespace", "default")
    folder = workdir.resolve()
    profile = require_profile(filename, spec.profile, read_profiles(profiles, folder))
    gpu_bytes = _gpu_bytes(gpu_memory)
    location = profile.store.for_namespace(namespace)
    with working("Reading the base model"):
        found = call_jobs(lambda: _estimate(spec.parameters, location, gpu_bytes, profile))
    print_data(found, output, _lines(found))
    if gpu_bytes is not None and "problem" in found:
        fail(found["problem"], ExitStatus.NEGATIVE)


def _gpu_bytes(quantity: str | None) -> int | None:
    try:
        return None if quantity is None else parse_bytes(quantity)
    except ValueError as error:
        fail(f"--gpu-memory: {error}", ExitStatus.UNUSABLE_INPUT)


def _estimate(
    parameters: Parameters, location: StoreLocation, gpu_bytes: int | None, profile: Profile
) -> dict[str, Any]:
    """The JSON output.

    Args:
        parameters: of the run.
        location: store with earlier runs.
        gpu_bytes: --gpu-memory; `problem` then says why the training cannot fit into the GPU.
        profile: its gpuMemory is listed beside the common sizes; its prices give the cost.
    """
    from edgetune_jobs.errors import InvalidInput
    from edgetune_jobs.store.access import StorageAccess
    from edgetune_jobs.training.memory.gpu_fit import LIBRARY_BYTES, check_gpu, common_fits, fit_gpu, least_bytes

    access = StorageAccess(location, credentials_folder=None)
    with tempfile.TemporaryDirectory(prefix="edgetune-estimate-") as scratch:
        runs = find_earlier_runs(access.open_store(), parameters)
        longest = runs.rows.longest if runs.rows else parameters.training.max_length
        workload = _open_workload(parameters, access, longest, Path(scratch))
    mean = runs.rows.mean if runs.rows else longest
    known = None if profile.gpu_memory is None else parse_bytes(profile.gpu_memory)
    fits = common_fits(workload, mean, known) if gpu_bytes is None else [fit_gpu(workload, mean, gpu_bytes)]
    least = workload.least()
    try:
        if gpu_bytes is not None:
            check_gpu(workload, gpu_bytes, "--gpu-memory")
        problem = {}
    except InvalidInput as error:
        problem = {"problem": str(error)}
    return {
        "base": {"architecture": workload.base.architecture, "parameters": workload.base.parameters},
        "trainableParameters": workload.trainable_parameters,
        "rows": None if runs.rows is None else asdict(runs.rows),
        "longestExample": workload.tokens_of_example,
        "activationsAreMeasured": workload.activations.is_measured,
        "activations": workload.activations.described,
        "leastBytes": {**asdict(least), "libraries": LIBRARY_BYTES, "total": least.total + LIBRARY_BYTES},
        "refusedBelowBytes": least_bytes(workload) if workload.activations.is_measured else None,
        "microBatches": _micro_batches(workload),
        "gpus": [fit.described() for fit in fits],
        "time": _times(parameters, runs, profile),
        "store": location.uri,
        **problem,
    }


def _open_workload(parameters: Parameters, access: Any, longest: int, scratch: Path) -> "Workload":
    """The training on the base model. Only a child process with limits builds the model, without its weights."""
    from edgetune_jobs.errors import BASE_FIELD
    from edgetune_jobs.models.inspection import inspect_base, targeted_layers
    from edgetune_jobs.models.quantization.coverage import check_method
    from edgetune_jobs.models.trial.model import try_coverage, try_model
    from edgetune_jobs.models.trial.process import shared_trial
    from edgetune_jobs.store.sources.source import ListedFolder, SourceKind
    from edgetune_jobs.tensors.text_model import text_model
    from edgetune_jobs.training.memory.activations import try_activations
    from edgetune_jobs.training.memory.estimate import Workload, number_bytes_of

    uri, trial = parameters.base_model.uri, shared_trial()
    trial.start()
    if uri.startswith("file://"):
        stored = ListedFolder(uri, BASE_FIELD, SourceKind.MODEL)
    else:
        stored = access.open_base(parameters.base_model, scratch / "base")
    base = inspect_base(text_model(stored, trial, scratch / "text-model"))
    targets = targeted_layers(base, parameters.lora)
    try_model(trial, base.folder, base.tensors)
    coverage = try_coverage(trial, base.folder)
    check_method(coverage, parameters.method, base.architecture)
    training, lora = parameters.training, parameters.lora
    activations = try_activations(
        trial, base.folder, lora, number_bytes_of(training), training.layout, training.attention
    )
    return Workload(base, coverage, targets, parameters, longest, activations)


def _micro_batches(workload: "Workload") -> list[dict[str, int]]:
    """Memory with the libraries by micro-batch size, without and with recomputed layers."""
    from edgetune_jobs.training.memory.gpu_fit import LIBRARY_BYTES
    from edgetune_jobs.training.memory.step_fit import micro_batch_sizes

    training = workload.parameters.training

    def total(size: int, recompute: int) -> int:
        return workload.memory(size * workload.tokens_of_example, recompute).total + LIBRARY_BYTES

    return [
        {"microBatchSize": size, "bytes": total(size, 0), "bytesAllLayersRecomputed": total(size, 1)}
        for size in reversed(micro_batch_sizes(training, training.batch_size))
    ]


def _times(parameters: Parameters, runs: EarlierRuns, profile: Profile) -> list[dict[str, Any]]:
    """Seconds, GPU-hours and cost at the speed of each device that has trained this base; empty if none is known."""
    if runs.rows is None:
        return []
    tokens = trained_tokens(parameters, runs.rows.examples, runs.rows.tokens)
    gpus = max(profile.for_training(parameters.training).resources_for(Stage.TRAIN).all_gpus, 1)
    times = []
    for speed in runs.speeds:
        together = speed.tokens_per_second * (gpus if speed.is_gpu else 1)
        seconds = tokens / together
        figures = {"device": speed.device, "tokensPerSecond": together, "tokens": tokens, "seconds": round(seconds)}
        times.append(figures | (_gpu_use(seconds, gpus, profile.prices) if speed.is_gpu else {}))
    return times


def _gpu_use(seconds: float, gpus: int, prices: Prices | None) -> dict[str, Any]:
    hours = seconds * gpus / 3600
    cost = {} if prices is None else {"cost": {prices.currency: round(hours * prices.gpu_hour, 2)}}
    return {"gpus": gpus, "gpuHours": round(hours, 3), **cost}


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The text output."""
    base, rows, trainable = found["base"], found["rows"], found["trainableParameters"]
    yield f"{base['architecture']} with {base['parameters']:,} parameters, adapter with {trainable:,}"
    if rows is None:
        yield f"No run in {found['store']} has prepared this data:"
        yield f"every example counts as {found['longestExample']:,} tokens (spec.training.maxLength)"
    else:
        yield f"{rows['examples']:,} examples with {rows['tokens']:,} tokens, the longest with {rows['longest']:,}"
    if not found["activationsAreMeasured"]:
        yield f"The activations are {found['activations']}"
    yield ""
    yield from _parts(found["leastBytes"])
    if (refused := found["refusedBelowBytes"]) is not None:
        yield f"CUDA's libraries take less on some GPUs: a training is refused below {_gib(refused)}"
    yield ""
    yield from _table(
        ("micro-batch", "no layer recomputed", "all layers recomputed"),
        [
            (str(row["microBatchSize"]), _gib(row["bytes"]), _gib(row["bytesAllLayersRecomputed"]))
            for row in found["microBatches"]
        ],
    )
    yield ""
    yield from _table(
        ("GPU memory", "largest micro-batch", "chosen", "memory", "layers"), [_gpu(fit) for fit in found["gpus"]]
    )
    yield ""
    yield from _time_lines(found)


def _parts(parts: Mapping[str, int]) -> Iterator[str]:
    yield "GPU memory of the smallest step"
    yield from aligned([(name, _gib(count)) for name, count in parts.items()], right=(1,))


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    return aligned([head, *rows], right=range(min(len(head), 4)))


def _gpu(fit: Mapping[str, Any]) -> tuple[str, ...]:
    if not fit["fits"]:
        return _gib(fit["gpuBytes"]), "none", "", "", ""
    chosen, tight = fit["chosen"], "" if fit["largestMicroBatchSize"] else "; it may run out of memory"
    largest = str(fit["largestMicroBatchSize"] or "1 (tight)")
    size, memory = str(chosen["microBatchSize"]), _gib(chosen["estimatedBytes"])
    return _gib(fit["gpuBytes"]), largest, size, memory, chosen["recomputed"] + tight


def _time_lines(found: Mapping[str, Any]) -> Iterator[str]:
    if not found["time"]:
        why = "has prepared this data" if found["rows"] is None else "has trained this base with this method"
        yield f"Time: not known, because no run {why} in {found['store']}"
    for each in found["time"]:
        gpus = each.get("gpus", 1)
        together, each_of = (f" on {gpus} GPUs", " on each") if gpus > 1 else ("", "")
        hours = f", {each['gpuHours']:.2f} GPU-hours" if "gpuHours" in each else ""
        hours += f", {format_cost(each['cost'])}" if "cost" in each else ""
        yield (
            f"Time: about {each['seconds']:,} s{together}{hours} for {each['tokens']:,} tokens at "
            f"{each['tokensPerSecond'] / gpus:,.0f} tokens/s{each_of}, as last measured on {each['device']}"
        )


def _gib(count: int) -> str:
    return f"{count / _GIB:.{1 if count >= _GIB else 2}f} GiB"

"""`edgetune estimate`: the GPU memory of a training by its base's headers, and its time by earlier runs."""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.options import DEFAULT_WORK_DIR, Profiles, ReportFormat, WorkDir, read_object, read_profiles
from edgetune_cli.output import SafeConsole, say
from edgetune_cli.store.commands import call_jobs
from edgetune_cli.store.earlier_runs import EarlierRuns, Rows, find_earlier_runs
from edgetune_cli.store.report import aligned
from edgetune_contract.request import StoreLocation
from edgetune_contract.spec import Parameters
from edgetune_contract.values.quantities import parse_bytes
from edgetune_operator.api.objects import LoraFineTuneSpec
from edgetune_operator.api.profiles import Profile
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
    output: Annotated[ReportFormat, typer.Option("--output", "-o", help="Output format.")] = ReportFormat.TEXT,
) -> None:
    """Print the GPU memory that a training takes, and its time if earlier runs in the store show the speed.

    Reads the base model's configuration and the headers of its tensors, no weights and no data. Exits with 0, with 1 if
    the training cannot fit into --gpu-memory, or 2 if the object or the base model cannot be used.
    """
    document = read_object(filename)
    spec, namespace = parse_spec(document["spec"]), document["metadata"].get("namespace", "default")
    folder = workdir.resolve()
    profile = _profile(filename, spec, read_profiles(profiles, folder))
    gpu_bytes = _gpu_bytes(gpu_memory)
    location = profile.store.for_namespace(namespace)
    with SafeConsole(stderr=True).status("Reading the base model"):
        found = call_jobs(lambda: _estimate(spec.parameters, location, gpu_bytes, profile.gpu_memory))
    if output is ReportFormat.JSON:
        say(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        for line in _lines(found):
            say(line)
    if gpu_bytes is not None and "problem" in found:
        fail(found["problem"], ExitStatus.NEGATIVE)


def _profile(filename: Path, spec: LoraFineTuneSpec, profiles: Mapping[str, Profile]) -> Profile:
    profile = profiles.get(spec.profile)
    if profile is None:
        message = f"{filename}: spec.profile: there is no profile {spec.profile!r}; name its file with --profiles"
        fail(message, ExitStatus.UNUSABLE_INPUT)
    return profile


def _gpu_bytes(quantity: str | None) -> int | None:
    try:
        return None if quantity is None else parse_bytes(quantity)
    except ValueError as error:
        fail(f"--gpu-memory: {error}", ExitStatus.UNUSABLE_INPUT)


def _estimate(
    parameters: Parameters, location: StoreLocation, gpu_bytes: int | None, of_profile: str | None
) -> dict[str, Any]:
    """The JSON output.

    Args:
        parameters: of the run.
        location: store with earlier runs.
        gpu_bytes: --gpu-memory; `problem` then says why the training cannot fit into the GPU.
        of_profile: gpuMemory, listed beside the common sizes.
    """
    from edgetune_jobs.errors import InvalidInput
    from edgetune_jobs.store.access import StorageAccess
    from edgetune_jobs.training.memory.gpu_fit import LIBRARY_BYTES, check_gpu, common_fits, fit_gpu

    access = StorageAccess(location, credentials_folder=None)
    with tempfile.TemporaryDirectory(prefix="edgetune-estimate-") as scratch:
        runs = find_earlier_runs(access.open_store(), parameters)
        longest = runs.rows.longest if runs.rows else parameters.training.max_length
        workload = _open_workload(parameters, access, longest, Path(scratch))
    mean = runs.rows.mean if runs.rows else longest
    known = None if of_profile is None else parse_bytes(of_profile)
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
        "leastBytes": {**asdict(least), "libraries": LIBRARY_BYTES, "total": least.total + LIBRARY_BYTES},
        "microBatches": _micro_batches(workload),
        "gpus": [fit.described() for fit in fits],
        "time": _times(parameters, runs),
        "store": location.uri,
        **problem,
    }


def _open_workload(parameters: Parameters, access: Any, longest: int, scratch: Path) -> "Workload":
    """The training on the base model, which is read as by prepare: it is tried in a child process first."""
    from edgetune_jobs.errors import BASE_FIELD
    from edgetune_jobs.models.inspection import inspect_base, targeted_layers
    from edgetune_jobs.models.quantization.coverage import check_method, nf4_coverage
    from edgetune_jobs.models.skeleton import build_skeleton
    from edgetune_jobs.models.trial.model import try_model
    from edgetune_jobs.models.trial.process import shared_trial
    from edgetune_jobs.store.sources import ListedFolder, SourceKind
    from edgetune_jobs.tensors.text_model import text_model
    from edgetune_jobs.training.memory.activations import measure_activations
    from edgetune_jobs.training.memory.estimate import Workload, number_bytes_of

    uri, trial = parameters.base_model.uri, shared_trial()
    if uri.startswith("file://"):
        stored = ListedFolder(uri, BASE_FIELD, SourceKind.MODEL)
    else:
        stored = access.open_base(parameters.base_model, scratch / "base")
    base = inspect_base(text_model(stored, trial, scratch / "text-model"))
    targets = targeted_layers(base, parameters.lora)
    try_model(trial, base.folder, base.tensors)
    coverage = nf4_coverage(build_skeleton(base.folder))
    check_method(coverage, parameters.method, base.architecture)
    activations = measure_activations(base.folder, parameters.lora, number_bytes_of(parameters.training))
    return Workload(base, coverage, targets, parameters, longest, activations)


def _micro_batches(workload: "Workload") -> list[dict[str, int]]:
    """Memory with the libraries by micro-batch size, without and with recomputed layers."""
    from edgetune_jobs.training.memory.gpu_fit import LIBRARY_BYTES
    from edgetune_jobs.training.memory.step_fit import micro_batch_sizes

    def total(size: int, recompute: int) -> int:
        return workload.memory(size * workload.tokens_of_example, recompute).total + LIBRARY_BYTES

    return [
        {"microBatchSize": size, "bytes": total(size, 0), "bytesAllLayersRecomputed": total(size, 1)}
        for size in reversed(micro_batch_sizes(workload.parameters.training))
    ]


def _times(parameters: Parameters, runs: EarlierRuns) -> list[dict[str, Any]]:
    """Seconds and GPU-hours at the speed of each device that has trained this base; empty if none is known."""
    if runs.rows is None:
        return []
    tokens = _trained_tokens(parameters, runs.rows)
    times = []
    for speed in runs.speeds:
        seconds = tokens / speed.tokens_per_second
        hours = {"gpuHours": round(seconds / 3600, 3)} if speed.is_gpu else {}
        times.append({"device": speed.device, "tokensPerSecond": speed.tokens_per_second, "tokens": tokens})
        times[-1] |= {"seconds": round(seconds), **hours}
    return times


def _trained_tokens(parameters: Parameters, rows: Rows) -> int:
    """Tokens of all optimizer steps."""
    training = parameters.training
    if training.max_steps is None:
        return math.ceil(training.epochs * rows.tokens)
    return round(training.max_steps * training.batch_size * rows.mean)


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
        yield "The activations are an upper bound: this model's operations depend on numbers, and cannot be measured"
    yield ""
    yield from _parts(found["leastBytes"])
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
        hours = f", {each['gpuHours']:.2f} GPU-hours" if "gpuHours" in each else ""
        yield (
            f"Time: about {each['seconds']:,} s{hours} for {each['tokens']:,} tokens at "
            f"{each['tokensPerSecond']:,.0f} tokens/s, as last measured on {each['device']}"
        )


def _gib(count: int) -> str:
    return f"{count / _GIB:.{1 if count >= _GIB else 2}f} GiB"

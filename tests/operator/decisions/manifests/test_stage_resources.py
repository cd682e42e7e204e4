"""Resources of stages by the size of the model, within the profile's bounds; more memory after a kill at its limit."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from edgetune_contract.request import Result
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.profiles.resources import Bounds, Resources, Sizing
from edgetune_operator.api.status.stage_status import StageState, StageStatus
from edgetune_operator.decisions.manifests.stage_needs import ModelShape, need_of
from edgetune_operator.decisions.manifests.stage_resources import known_needs, resource_warnings, stage_resources
from support.builders import ObjectBuilder, lora_fine_tune
from support.golden import DEFAULT, job_of, spec_of
from support.model_shapes import MODELS
from support.scenario import PROFILE, Scenario, created, deleted

GIB = 2**30
LARGE = "Llama-3.1-8B"
MEASURED = ("Llama-3.1-8B", "Llama-3.1-70B")


def with_profile(**fields: Any) -> Profile:
    return Profile.model_validate(PROFILE.model_dump() | fields)


def given(stage: Stage, profile: Profile = DEFAULT, model: str = LARGE) -> tuple[Mapping[str, Any], str]:
    """The container's resources and the size of the work volume in a stage's Job."""
    pod = job_of(stage, profile, model=model)["spec"]["template"]["spec"]
    return pod["containers"][0]["resources"], pod["volumes"][0]["emptyDir"]["sizeLimit"]


def need(
    stage: Stage, model: str = LARGE, builder: ObjectBuilder | None = None, *, has_gpu: bool = False, **metrics: float
) -> tuple[int, int]:
    """Memory and storage that a stage needs, in whole GiB, rounded up."""
    shape = ModelShape.of({**MODELS[model], **metrics})
    assert shape is not None
    found = need_of(stage, shape, spec_of(builder or lora_fine_tune()).parameters, gpus=int(has_gpu))
    assert found is not None
    return -(-found.memory // GIB), -(-found.storage // GIB)


def prepared(scenario: Scenario, model: str = LARGE) -> None:
    """prepare succeeds with the figures of a model, and the next stage's Job is created."""
    scenario.reconcile()
    result: Result = scenario.simulated_result(scenario.request)
    scenario.finish(result.model_copy(update={"metrics": dict(MODELS[model])}))
    scenario.reconcile()


def memory_of(scenario: Scenario) -> tuple[str, str]:
    """Request and limit of the live Job."""
    (container,) = scenario.cluster.jobs[scenario.live_job]["spec"]["template"]["spec"]["containers"]
    resources = container["resources"]
    return resources["requests"]["memory"], resources["limits"]["memory"]


def test_each_gpu_of_a_training_needs_memory_of_its_own() -> None:
    shape, parameters = ModelShape.of(MODELS[LARGE]), spec_of(lora_fine_tune()).parameters
    assert shape is not None

    one, four = (need_of(Stage.TRAIN, shape, parameters, gpus=gpus) for gpus in (1, 4))

    assert one is not None and four is not None  # noqa: PT018 - for the type checker
    assert (four.memory, four.storage) == (4 * one.memory, one.storage)


def test_each_gpu_of_an_evaluation_needs_memory_beside_that_of_the_stage() -> None:
    shape, parameters = ModelShape.of(MODELS[LARGE]), spec_of(lora_fine_tune()).parameters
    assert shape is not None

    one, four = (need_of(Stage.EVALUATE, shape, parameters, gpus=gpus) for gpus in (1, 4))

    assert one is not None and four is not None  # noqa: PT018 - for the type checker
    assert 4 * one.memory < four.memory < 5 * one.memory
    assert (four.gpu_memory, four.storage) == (one.gpu_memory, one.storage)


def test_a_model_that_is_streamed_needs_little_at_any_size() -> None:
    assert {model: need(Stage.MERGE, model) for model in MODELS} == {
        "SmolLM2-135M": (2, 2),
        "Llama-3.2-1B": (2, 2),
        "Llama-3.1-8B": (2, 2),
        "Llama-3.1-70B": (4, 2),
    }


def test_a_model_that_the_libraries_merge_is_held_about_twice() -> None:
    assert need(Stage.MERGE, streamed=0) == (33, 31)


def test_the_measured_merge_is_within_its_need() -> None:
    """docs/benchmarks.md: a model of 2.02 GB; 427 MB streamed and 4,151 MB by the libraries."""
    streamed = need(Stage.MERGE, baseBytes=2.02e9, largestLinearBytes=5632 * 2048 * 2)
    loaded = need(Stage.MERGE, baseBytes=2.02e9, streamed=0)

    assert streamed[0] * GIB > 427e6
    assert loaded[0] * GIB > 4151e6


def test_llama_cpp_quantizes_on_the_disk_with_little_memory() -> None:
    with_k_quants = lora_fine_tune().with_spec("quantization.formats", ["GGUF-Q4_K_M", "GGUF-Q6_K"])

    assert need(Stage.QUANTIZE) == (2, 2)
    assert need(Stage.QUANTIZE, builder=with_k_quants) == (3, 25)
    weighed = with_k_quants.with_spec("quantization.importanceMatrix", True)
    assert need(Stage.QUANTIZE, builder=weighed) == (5, 25)
    assert need(Stage.MERGE, builder=with_k_quants) == need(Stage.MERGE)
    assert need(Stage.QUANTIZE, builder=with_k_quants, streamed=0) == (33, 85)
    assert need(Stage.EVALUATE, builder=with_k_quants)[0] == need(Stage.EVALUATE)[0]


def test_evaluate_holds_one_model_and_has_all_on_its_disk() -> None:
    with_gguf = lora_fine_tune().with_spec("quantization.formats", ["BitsAndBytesInt8", "GGUF-Q8_0"])

    assert need(Stage.EVALUATE) == (21, 46)
    assert need(Stage.EVALUATE, builder=with_gguf) == (66, 61)
    assert need(Stage.EVALUATE, builder=lora_fine_tune().with_spec("merge.keep", False))[1] == 31


@pytest.mark.parametrize(
    ("fields", "memory"),
    [
        ({}, 8),
        ({"evaluation.edge": {}}, 24),
        ({"quantization.formats": ["BitsAndBytesInt8", "GGUF-Q8_0"]}, 38),
    ],
    ids=["scored", "measured", "gguf"],
)
def test_with_a_gpu_evaluate_holds_what_is_measured_or_unpacked_on_the_cpu(fields: dict[str, Any], memory: int) -> None:
    """The weights of Llama-3.1-8B are 15 GiB in 16 bits and 30 GiB in 32 bits."""
    builder = lora_fine_tune()
    for path, value in fields.items():
        builder = builder.with_spec(path, value)

    assert need(Stage.EVALUATE, builder=builder, has_gpu=True)[0] == memory


def test_a_training_without_a_gpu_needs_the_memory_that_prepare_estimated() -> None:
    assert need(Stage.TRAIN, estimatedTrainingBytes=20 * GIB)[0] == 31


def test_what_the_profile_fixes_is_kept() -> None:
    fixed = Resources(requests={"cpu": 8, "memory": "7Gi", "ephemeral-storage": "9Gi"}, limits={"memory": "8Gi"})

    resources, _ = given(Stage.EVALUATE, with_profile(resources={Stage.EVALUATE: fixed}))

    assert resources == fixed.model_dump(exclude={"claims", "nodes"})


def test_a_stage_whose_profile_names_only_processors_gets_memory_by_size() -> None:
    profile = with_profile(resources={Stage.MERGE: Resources(requests={"cpu": 8})})

    assert given(Stage.MERGE, profile)[0] == {
        "requests": {"cpu": 8, "memory": "2Gi", "ephemeral-storage": "2Gi"},
        "limits": {"memory": "4Gi"},
    }


@pytest.mark.parametrize(
    ("bounds", "memory"),
    [
        ({"max": "12Gi"}, ("12Gi", "12Gi")),
        ({"min": "30Gi"}, ("30Gi", "41Gi")),
        ({"min": "24Gi", "max": "24Gi"}, ("24Gi", "24Gi")),
        ({"max": "1500M"}, ("1500000000", "1500000000")),
    ],
)
def test_memory_is_within_the_profiles_bounds(bounds: dict[str, str], memory: tuple[str, str]) -> None:
    resources, _ = given(Stage.EVALUATE, with_profile(sizing=Sizing(memory=Bounds(**bounds)), evaluateOnGpuAbove="1Ti"))

    assert (resources["requests"]["memory"], resources["limits"]["memory"]) == memory


def test_storage_is_within_the_profiles_bounds_and_its_volume() -> None:
    bounded = given(Stage.EVALUATE, with_profile(sizing={"storage": {"max": "60Gi"}}))
    fixed = given(Stage.EVALUATE, with_profile(workVolumeSize="20Gi"))
    unknown = given(Stage.EVALUATE, with_profile(sizing={"requestStorage": False}))

    assert (bounded[0]["requests"]["ephemeral-storage"], bounded[1]) == ("46Gi", "60Gi")
    assert (fixed[0]["requests"]["ephemeral-storage"], fixed[1]) == ("20Gi", "20Gi")
    assert ("ephemeral-storage" in unknown[0]["requests"], unknown[1]) == (False, "92Gi")


@pytest.mark.parametrize(
    ("profile", "fields", "is_warned"),
    [
        ({"gpuMemory": "15Gi"}, {}, True),
        ({"gpuMemory": "24Gi"}, {}, False),
        ({}, {}, False),
        ({"gpuMemory": "15Gi", "evaluateOnGpuAbove": "16Gi"}, {}, False),
        ({"gpuMemory": "15Gi", "resources": {"evaluate": {"limits": {"example.com/large-gpu": 1}}}}, {}, False),
        ({"gpuMemory": "15Gi"}, {"evaluation.models": ["Edge"]}, False),
    ],
    ids=["too small", "large enough", "unknown", "on CPUs", "on another GPU", "in 8 bits only"],
)
def test_a_gpu_on_which_only_training_fits_is_a_warning_before_it_runs(
    profile: dict[str, Any], fields: dict[str, Any], is_warned: bool
) -> None:
    """Training holds Llama-3.1-8B in NF4, and evaluate in 16 bits: 15 GiB of weights."""
    builder = lora_fine_tune()
    for path, value in fields.items():
        builder = builder.with_spec(path, value)
    scenario = Scenario(builder, with_profile(**profile))

    prepared(scenario)

    warnings = [each for each in scenario.status.warnings if "of GPU memory" in each]
    assert warnings == is_warned * [
        "evaluate needs about 17Gi of GPU memory, because it holds models in 16 bits, and the GPU has 15Gi (gpuMemory "
        "in the profile): raise evaluateOnGpuAbove in the profile or change its resources.evaluate, so that it runs on "
        "CPUs or on a larger GPU"
    ]


def test_a_shortage_is_a_warning_as_soon_as_prepare_knows_it() -> None:
    bounds = {"memory": {"max": "8Gi"}, "storage": {"max": "40Gi"}}
    scenario = Scenario(lora_fine_tune(), with_profile(sizing=bounds, evaluateOnGpuAbove="1Ti"))

    prepared(scenario)

    assert [text for text in scenario.status.warnings if " needs about " in text] == [
        "evaluate needs about 21Gi of memory and gets at most 8Gi: raise resources.evaluate or sizing.memory.max in "
        "the profile, or use a smaller base model",
        "evaluate needs about 46Gi of disk space and gets at most 40Gi: raise workVolumeSize or sizing.storage.max in "
        "the profile, or use a smaller base model",
    ]


def test_before_prepare_and_after_an_older_release_s_the_defaults_count() -> None:
    row = StageStatus(name=Stage.PREPARE, state=StageState.SUCCEEDED, metrics={"baseBytes": 1e10})
    parameters = spec_of(lora_fine_tune()).parameters

    assert known_needs(DEFAULT, row, parameters) == {}
    assert resource_warnings(DEFAULT, {}) == ()
    unknown = stage_resources(DEFAULT, Stage.MERGE)
    assert (unknown.container.requests, unknown.container.limits) == (
        {"cpu": "2", "memory": "16Gi"},
        {"memory": "32Gi"},
    )
    assert unknown.volume == "64Gi"


def test_absurd_figures_of_a_pod_give_a_job_that_the_cluster_accepts() -> None:
    shape = dict.fromkeys(MODELS[LARGE], 1e300)
    row = StageStatus(name=Stage.PREPARE, state=StageState.SUCCEEDED, metrics=shape)
    needs = known_needs(DEFAULT, row, spec_of(lora_fine_tune()).parameters)

    assert stage_resources(DEFAULT, Stage.EVALUATE, needs[Stage.EVALUATE], 900).container.requests["memory"] == (
        "1048576Gi"
    )


def test_the_status_has_what_a_job_requests() -> None:
    scenario = Scenario(lora_fine_tune())

    prepared(scenario)
    at_once = scenario.row(Stage.TRAIN).requested
    scenario.reconcile()

    assert at_once is not None
    assert (at_once.memory_bytes, at_once.storage_bytes) == (8 * GIB, 17 * GIB)
    assert scenario.row(Stage.TRAIN).requested == at_once


@pytest.mark.parametrize(
    ("counted", "has_next_pod"),
    [
        ({"active": 0, "failed": 1}, False),
        ({"active": 1}, False),
        ({"active": 1}, True),
        ({"active": 1, "failed": 1}, True),
    ],
    ids=["counted", "not yet counted", "next Pod not yet counted", "next Pod counted"],
)
def test_an_attempt_that_was_killed_at_its_memory_limit_is_repeated_with_twice_the_memory(
    counted: dict[str, int], has_next_pod: bool
) -> None:
    scenario = Scenario(lora_fine_tune().with_spec("retryLimit", 2))
    prepared(scenario)
    before, job = memory_of(scenario), scenario.live_job

    scenario.end_pod(lambda pod: pod.ended(137, reason="OOMKilled"))
    if has_next_pod:
        scenario.let_pass(timedelta(seconds=1))
        scenario.cluster.start_pod(job)
        scenario.end_pod(lambda pod: pod.waiting("ContainerCreating"))
    scenario.cluster.jobs[job]["status"] |= counted
    killed = scenario.reconcile()
    condition, row = scenario.condition("Reconciling"), scenario.row(Stage.TRAIN)
    again = scenario.reconcile()

    assert (deleted(killed), created(again)) == ([(job, "the stage runs again")], [Stage.TRAIN])
    message = (
        "an attempt was killed at its memory limit of 17.2 GB: this model needs more than estimated; the next attempt "
        "gets twice the memory, within the profile's bounds"
    )
    assert (row.state, row.reason, row.message) == (StageState.PENDING, "MoreMemory", message)
    assert condition == ("True", "MoreMemory", f"train: {message}")
    assert (before, memory_of(scenario)) == (("8Gi", "16Gi"), ("16Gi", "32Gi"))
    assert scenario.cluster.jobs[scenario.live_job]["spec"]["backoffLimit"] == 1
    row = scenario.row(Stage.TRAIN)
    assert (row.attempts, row.failed_before, row.memory_doublings) == (2, 1, 1)


@pytest.mark.parametrize(
    "profile",
    [
        with_profile(sizing={"memory": {"max": "8Gi"}}),
        with_profile(resources={"train": {"limits": {"memory": "8Gi", "nvidia.com/gpu": 1}}}),
    ],
    ids=["bound", "fixed"],
)
def test_a_stage_that_cannot_get_more_memory_is_repeated_by_its_job(profile: Profile) -> None:
    scenario = Scenario(lora_fine_tune(), profile)
    prepared(scenario)

    scenario.end_pod(lambda pod: pod.ended(137, reason="OOMKilled"))
    scenario.cluster.jobs[scenario.live_job]["status"] |= {"active": 0, "failed": 1}
    killed = scenario.reconcile()

    assert deleted(killed) == []
    assert scenario.row(Stage.TRAIN).reason == "AttemptFailed"


def test_the_last_attempt_is_not_repeated() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("retryLimit", 0))
    prepared(scenario)

    scenario.end_pod(lambda pod: pod.ended(137, reason="OOMKilled"))
    scenario.cluster.jobs[scenario.live_job]["status"] |= {"active": 0, "failed": 1}
    killed = scenario.reconcile()

    assert deleted(killed) == []


def test_a_retry_does_not_forget_that_a_stage_needs_more_memory() -> None:
    scenario = Scenario(lora_fine_tune())
    prepared(scenario)
    scenario.end_pod(lambda pod: pod.ended(137, reason="OOMKilled"))
    scenario.cluster.jobs[scenario.live_job]["status"] |= {"active": 0, "failed": 1}
    scenario.reconcile()
    scenario.reconcile()
    scenario.fail(ExitCode.INVALID, "the data was changed")
    scenario.reconcile()

    scenario.change(scenario.builder.with_retry_requested("again"))
    scenario.reconcile()  # deletes the Jobs that ended before
    prepared(scenario)

    assert memory_of(scenario) == ("16Gi", "32Gi")

"""Which GPU memory a training fits into, and what is refused."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from edgetune_contract.spec import Parameters
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.inspection import BaseModel, inspect_base, targeted_layers
from edgetune_jobs.models.quantization.coverage import Coverage
from edgetune_jobs.store.sources.source import ListedFolder, SourceKind
from edgetune_jobs.training.memory.activations import Activations
from edgetune_jobs.training.memory.estimate import Workload
from edgetune_jobs.training.memory.gpu_fit import (
    COMMON_GPU_BYTES,
    GIB,
    check_gpu,
    common_fits,
    describe_fits,
    describe_largest_base,
    fit_gpu,
    largest_base,
    least_bytes,
)
from support.base_folder import make_base

# Of a model with 8 billion parameters: a layer and token takes 280 kB, and 8 kB if it is recomputed.
ACTIVATIONS = Activations(layers=(280e3,) * 32, layer_input=8e3, outside=20e3)
COVERAGE = Coverage(quantized=7 * 10**9, total=8 * 10**9, largest=60 * 10**6)


class Base8B(BaseModel):
    """The tiny base with the number of parameters of a large one."""

    parameters = 8 * 10**9


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = make_base(tmp_path_factory.mktemp("base") / "model")
    found = inspect_base(ListedFolder(f"file://{folder}", "spec.baseModel", SourceKind.MODEL))
    return Base8B(found.folder, found.config, found.architecture, found.bytes, found.tensors)


def workload(base: BaseModel, longest: int = 2048, method: str = "QLoRA", **training: Any) -> Workload:
    parameters = Parameters.model_validate(
        {
            "baseModel": {"uri": "file:///base"},
            "dataset": {"train": {"uri": "file:///data"}},
            "method": method,
            "training": training,
        }
    )
    return Workload(base, COVERAGE, targeted_layers(base, parameters.lora), parameters, longest, ACTIVATIONS)


def test_more_memory_takes_more_examples_and_recomputes_less(base: BaseModel) -> None:
    fits = common_fits(workload(base), mean=2048)

    assert [fit.gpu_bytes for fit in fits] == list(COMMON_GPU_BYTES)
    chosen = [(fit.choice.micro_batch_size, fit.choice.recompute) for fit in fits]
    assert chosen[0] == (4, 1)
    assert chosen[-1] == (4, 0)
    assert all(fit.total <= fit.gpu_bytes for fit in fits)


def test_the_fact_names_the_least_memory_of_each_micro_batch(base: BaseModel) -> None:
    small = [fit_gpu(workload(base), 2048, size * GIB) for size in (4, 7, 8, 16)]

    assert describe_fits(small) == "none in 4 GiB, 1 (tight) from 7 GiB, 1 from 8 GiB, 4 from 16 GiB"


def test_a_number_that_does_not_fit_is_halved_as_training_does(base: BaseModel) -> None:
    fit = fit_gpu(workload(base, microBatchSize=16), 2048, 24 * GIB)

    assert (fit.largest, fit.choice.micro_batch_size) == (8, 4)


def test_a_known_size_is_listed_among_the_common_ones(base: BaseModel) -> None:
    assert len(common_fits(workload(base), 2048, 20 * GIB)) == len(COMMON_GPU_BYTES) + 1
    assert len(common_fits(workload(base), 2048, 24 * GIB)) == len(COMMON_GPU_BYTES)


@pytest.mark.parametrize(
    ("fields", "gpu", "change"),
    [
        ({"gradientCheckpointing": "Never"}, 16, "set spec.training.gradientCheckpointing to Auto"),
        ({"method": "LoRA"}, 12, "set spec.method to QLoRA"),
        ({"longest": 32768, "maxLength": 32768}, 16, "set spec.training.maxLength to 19584"),
        (
            {"method": "LoRA", "gradientCheckpointing": "Never"},
            10,
            "set spec.training.gradientCheckpointing to Auto and spec.method to QLoRA",
        ),
    ],
)
def test_what_cannot_fit_is_refused_with_the_smallest_change(
    base: BaseModel, fields: Mapping[str, Any], gpu: int, change: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_gpu(workload(base, **fields), gpu * GIB)

    message = str(refused.value)
    assert f"the GPU has {gpu} GiB (gpuMemory in the profile): " in message
    assert change in message
    assert ", or use a profile whose GPU has " in message


def test_a_base_that_is_too_large_itself_asks_for_another_gpu(base: BaseModel) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_gpu(workload(base, gpus=8), 4 * GIB)

    assert str(refused.value).endswith(
        ": use a profile whose GPU has 16 GiB or more, or a smaller base model (about 4.3 billion parameters in NF4 "
        "fit 4 GiB); several GPUs make no larger model fit, because each holds all of it"
    )


def test_the_largest_base_just_fits_whatever_the_number_of_gpus_and_the_method(base: BaseModel) -> None:
    limit = largest_base(workload(base), 40 * GIB)

    assert limit is not None
    assert 6 * 8e9 < limit < 8 * 8e9
    assert largest_base(workload(base), least_bytes(workload(base))) == base.parameters
    assert largest_base(workload(base, gpus=8), 40 * GIB) == limit
    assert largest_base(workload(base, method="LoRA"), 40 * GIB) == limit
    assert describe_largest_base(workload(base), GIB // 2) == ""


def test_a_limit_that_nobody_knows_is_not_stated(base: BaseModel) -> None:
    unmeasured = replace(workload(base), activations=replace(ACTIVATIONS, problem="its operations depend on numbers"))
    unquantized = replace(workload(base), coverage=replace(COVERAGE, quantized=0))

    assert largest_base(unmeasured, 40 * GIB) is None
    assert largest_base(unquantized, 40 * GIB) is None


def test_the_least_that_fits_is_not_refused(base: BaseModel) -> None:
    least = workload(base, microBatchSize=16)

    check_gpu(least, least_bytes(least))
    assert least_bytes(least) == least_bytes(workload(base))
    with pytest.raises(InvalidInput):
        check_gpu(least, least_bytes(least) - 1)


def test_nothing_is_refused_by_a_bound_that_may_be_too_high(base: BaseModel) -> None:
    unmeasured = replace(workload(base), activations=replace(ACTIVATIONS, problem="its operations depend on numbers"))

    check_gpu(unmeasured, GIB)

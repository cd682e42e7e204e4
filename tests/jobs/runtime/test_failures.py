"""From exceptions to failures: reasons, and messages that say what to do."""

from pathlib import Path

import pytest

from edgetune_contract.request import Request, StoreLocation
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.runtime.failures import failed_result, failure_of


class OutOfMemoryError(RuntimeError):
    """Has the name and the module of torch's error."""

    __module__ = "torch"


@pytest.mark.parametrize("stage", [Stage.TRAIN, Stage.MERGE, Stage.QUANTIZE, Stage.EVALUATE])
def test_a_stage_out_of_gpu_memory_gets_the_advice_for_its_kind(stage: Stage) -> None:
    spec = {"baseModel": {"uri": "s3://models/base"}, "dataset": {"train": {"uri": "s3://data/train.jsonl"}}}
    request = Request(
        namespace="team-a",
        name="sensor-faults",
        stage=stage,
        digest="0" * 64,
        store=StoreLocation(uri="s3://edgetune/team-a"),
        parameters=Parameters.model_validate(spec),
    )

    failure = failed_result(request, OutOfMemoryError("CUDA out of memory.")).failure

    assert failure is not None
    assert (failure.exit_code, failure.reason) == (12, "OutOfGpuMemory")
    assert failure.message.startswith("out of GPU memory: CUDA out of memory.; ")
    assert ("lower spec.training.microBatchSize" in failure.message) == (stage is Stage.TRAIN)
    assert (f"gives the stage {stage} a larger GPU or no GPU" in failure.message) == (stage is not Stage.TRAIN)
    assert ("lower spec.evaluation.maxNewTokens" in failure.message) == (stage is Stage.EVALUATE)


@pytest.mark.parametrize("compiler", [None, "false", "/nonexistent/gcc"], ids=["none", "without headers", "moved"])
def test_a_machine_on_which_triton_cannot_compile_needs_a_compiler_and_no_retry(
    compiler: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = pytest.importorskip("triton.runtime.build")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    if compiler is None:
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setenv("CC", compiler)

    with pytest.raises(Exception, match=r"compiler|exit status|gcc") as caught:
        build.compile_module_from_src("int answer(void) { return 42; }", "answer")

    failure = failure_of(caught.value, Stage.TRAIN)
    assert (failure.exit_code, failure.reason) == (10, "InvalidInput")
    assert failure.message.startswith("Triton cannot compile its GPU kernels on this machine; install a C compiler")


class AcceleratorError(RuntimeError):
    """Has the name and the module of torch's error when CUDA itself is out of memory."""

    __module__ = "torch"


@pytest.mark.parametrize(
    "error",
    [
        AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("NCCL error: unhandled cuda error\nLast error:\nCuda failure 2 'out of memory'"),
    ],
    ids=["cuda", "cublas", "cudnn", "triton", "driver", "nccl"],
)
def test_failed_allocations_of_cuda_and_its_libraries_are_out_of_gpu_memory_too(error: RuntimeError) -> None:
    assert failure_of(error).reason == "OutOfGpuMemory"


@pytest.mark.parametrize(
    "error",
    [
        AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("CUDA error: out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=["another GPU error", "shapes", "not raised by torch", "host memory"],
)
def test_other_errors_are_not_out_of_gpu_memory(error: Exception) -> None:
    assert failure_of(error).reason == "InternalError"

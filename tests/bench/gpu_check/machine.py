"""Steps about the machine: card, driver and libraries; and a GPU whose machine has no C compiler."""

import inspect
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.gpu_check.inputs import Inputs
    from bench.gpu_check.runner import Figures

_LIBRARIES = ("torch", "triton", "transformers", "trl", "peft", "bitsandbytes", "accelerate", "datasets")
# What a process's first Triton kernel does.
_FIRST_KERNEL = "from triton.backends.nvidia.driver import CudaUtils; CudaUtils()"
_NO_COMPILER = "Failed to find C compiler"
_LIMIT_SECONDS = 25


def environment(inputs: "Inputs") -> "Figures":
    """Card, driver, CUDA, torch, and the libraries of a training."""
    import torch

    from edgetune_contract.training import Precision
    from edgetune_jobs.models import loading

    figures: Figures = {
        "card": loading.describe_device(inputs.device),
        "python": platform.python_version(),
        "cuda": torch.version.cuda or "none",
        "compiler": shutil.which("gcc") or shutil.which("cc") or "none",
        "bf16": loading.resolve_precision(Precision.AUTO, inputs.device).value,
        **{name: metadata.version(name) for name in _LIBRARIES},
    }
    if inputs.on_gpu:
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,mig.mode.current", "--format=csv,noheader"]
            done = subprocess.run(query, capture_output=True, text=True, check=False)
            figures["driver"] = (done.stdout or done.stderr).strip()
        figures["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        figures["memoryGiB"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    return figures


def allow_older_torch() -> None:
    """Let varlen_attention run with a varlen_attn that lacks `enable_gqa` (torch below 2.12).

    The argument only allows what the kernel beneath it does: fewer key heads than query heads.
    """
    import edgetune_jobs.training.kernels.attention as module

    attention: Any = module
    function = attention.varlen_attn
    if "enable_gqa" in inspect.signature(function).parameters:
        return

    def without_argument(*tensors: Any, enable_gqa: bool, **options: Any) -> Any:
        del enable_gqa
        return function(*tensors, **options)

    attention.varlen_attn = without_argument


def without_compiler(inputs: "Inputs") -> "Figures":
    """What Triton says on a machine without a C compiler: the trainings' first kernel fails there."""
    with tempfile.TemporaryDirectory() as name:
        hidden = {"CC", "CXX", "PATH"}
        environ = {key: value for key, value in os.environ.items() if key not in hidden}
        environ |= {"PATH": name, "TRITON_CACHE_DIR": str(Path(name) / "cache"), "HOME": name}
        if not inputs.on_gpu:
            environ["TRITON_LIBCUDA_PATH"] = name
        command = [sys.executable, "-c", _FIRST_KERNEL]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=_LIMIT_SECONDS)
    last = (done.stderr.strip().splitlines() or ["no error"])[-1]
    return {"error": last[:200], "isSeen": _NO_COMPILER in last}

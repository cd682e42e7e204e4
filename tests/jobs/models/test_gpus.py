"""A container that does not see the GPUs that its Job requested. The tests have no GPU: what torch sees is replaced."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from edgetune_jobs.errors import InvalidInput, TransientError
from edgetune_jobs.models import gpus

_DRIVER = """NVRM version: NVIDIA UNIX {module}  {version}  Fri Nov 27 10:00:00 UTC 2026
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
PROPRIETARY, OPEN = "x86_64 Kernel Module", "Open Kernel Module for x86_64"


@pytest.fixture(autouse=True)
def _built_for_cuda_13(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No driver, and torch for CUDA 13.0, whatever this machine has."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(gpus, "_DRIVER", tmp_path / "version")
    _see(monkeypatch, 0)


def _see(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_a_node_without_a_driver_is_named_and_tried_again() -> None:
    with pytest.raises(
        TransientError,
        match=r"given 1 GPU, but CUDA sees none: no NVIDIA driver is loaded \(CUDA 13\.0 needs 580 or newer\): "
        r"install .*no CPU replaces it$",
    ):
        gpus.require_gpus(1)


@pytest.mark.parametrize("module", [PROPRIETARY, OPEN])
def test_a_driver_that_is_too_old_is_named_with_what_cuda_needs(tmp_path: Path, module: str) -> None:
    (tmp_path / "version").write_text(_DRIVER.format(module=module, version="535.104.05"))

    with pytest.raises(
        TransientError, match=r"driver 535\.104\.05 is too old for CUDA 13\.0, which needs 580 or newer: upgrade the"
    ):
        gpus.require_gpus(1)


def test_a_driver_that_is_not_visible_in_the_container_is_explained_in_cudas_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version").write_text(_DRIVER.format(module=OPEN, version="580.95.05"))

    def is_available() -> bool:
        warnings.warn("CUDA initialization: libcuda.so.1\nis missing", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)

    with pytest.raises(
        TransientError,
        match=r"driver 580\.95\.05 suits CUDA 13\.0, but is not usable in the container: check .*runtimeClassName "
        r"\(CUDA says: CUDA initialization: libcuda\.so\.1 is missing\); no CPU replaces it",
    ):
        gpus.require_gpus(1)


def test_a_gpu_that_the_driver_is_too_old_for_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)

    with pytest.raises(TransientError, match="given 1 GPU, but CUDA sees none"):
        gpus.require_gpus(1)


def test_two_gpus_where_one_was_given_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _see(monkeypatch, 2)

    with pytest.raises(InvalidInput, match=r"given 1 GPU, but sees 2, which may be those of other Pods: .*CUDA_VIS"):
        gpus.require_gpus(1)


def test_one_gpu_where_two_were_given_is_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    _see(monkeypatch, 1)

    with pytest.raises(TransientError, match="given 2 GPUs, but CUDA sees 1: "):
        gpus.require_gpus(2)


def test_the_given_gpus_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    _see(monkeypatch, 1)

    gpus.require_gpus(1)


def test_the_allocator_is_set_before_torch_is_imported() -> None:
    script = (
        "import sys, os; from edgetune_jobs.models import libraries; assert 'torch' not in sys.modules; "
        "libraries.prepare_torch(); print(os.environ['PYTORCH_ALLOC_CONF'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTORCH_ALLOC_CONF"}

    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "expandable_segments:True"

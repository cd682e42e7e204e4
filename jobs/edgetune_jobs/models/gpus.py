"""The GPUs of a container: as many as its Job requested, or the reason why not.

CUDA falls silent where it cannot work: with a driver that is too old or is not mounted, torch sees no GPU, and a
training would hold its GPU for days while it computes on the CPU.
"""

import re
import warnings
from pathlib import Path

from edgetune_jobs.errors import InvalidInput, TransientError
from edgetune_jobs.models.libraries import prepare_torch
from edgetune_jobs.wording import count

_DRIVER = Path("/proc/driver/nvidia/version")
_DRIVER_VERSION = re.compile(r"Kernel Module.*?\s(\d+)\.(\d[\d.]*)")
# The oldest driver for each major version of CUDA (CUDA Toolkit release notes, table of minor version compatibility).
_OLDEST_DRIVERS = {"11": 450, "12": 525, "13": 580}
_LONGEST_REASON = 200


def require_gpus(expected: int) -> None:
    """Check that this container sees the GPUs that its Job requested.

    Raises:
        TransientError: it sees fewer; another node may have what is missing.
        InvalidInput: it sees more, and cannot know which of them are its own.
    """
    visible, reason = _visible_gpus()
    if visible < expected:
        raise TransientError(
            f"the container was given {count(expected, 'GPU')}, but CUDA sees {visible or 'none'}: {_explain(reason)}; "
            "no CPU replaces it"
        )
    if visible > expected:
        raise InvalidInput(
            f"the container was given {count(expected, 'GPU')}, but sees {visible}, which may be those of other Pods: "
            "let the node's container runtime show a container only its own (device plugin or CDI), or set "
            "CUDA_VISIBLE_DEVICES in the profile's env"
        )


def count_visible_gpus() -> int:
    """Number of GPUs that CUDA can use in this process."""
    return _visible_gpus()[0]


def _visible_gpus() -> tuple[int, str]:
    """Number of GPUs that CUDA can use, and its words if there is none."""
    prepare_torch()
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        # device_count alone also counts GPUs that the driver is too old for.
        visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return visible, " ".join(" ".join(str(each.message) for each in said).split())[:_LONGEST_REASON]


def _explain(reason: str) -> str:
    """What is wrong with the driver, and what to do."""
    import torch

    cuda = torch.version.cuda or "none"
    oldest = _OLDEST_DRIVERS.get(cuda.partition(".")[0], 0)
    if not _DRIVER.exists():
        return (
            f"no NVIDIA driver is loaded (CUDA {cuda} needs {oldest} or newer): install the driver and the device "
            "plugin on the node, or let the profile select nodes that have them"
        )
    version = _DRIVER_VERSION.search(_DRIVER.read_text(encoding="utf-8", errors="replace"))
    driver = f"{version[1]}.{version[2]}" if version else "of an unknown version"
    if version and int(version[1]) < oldest:
        return (
            f"the node's NVIDIA driver {driver} is too old for CUDA {cuda}, which needs {oldest} or newer: upgrade the "
            "driver, or let the profile select nodes with a newer one"
        )
    return (
        f"the node's NVIDIA driver {driver} suits CUDA {cuda}, but is not usable in the container: check the NVIDIA "
        "container toolkit, the device plugin and the profile's runtimeClassName"
        + (f" (CUDA says: {reason})" if reason else "")
    )

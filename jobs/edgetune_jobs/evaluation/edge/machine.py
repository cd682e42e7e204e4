"""This machine: its CPU model, usable cores, free memory, and the memory that a process uses."""

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetune_contract.values.quantities import parse_cpu
from edgetune_jobs.models.libraries import read_proc_bytes

_CPU_INFO = Path("/proc/cpuinfo")
_MEMORY_INFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
# Limit and use of the container's memory, in bytes: cgroup v2, then v1.
_CGROUP_FILES = (
    (_CGROUP / "memory.max", _CGROUP / "memory.current"),
    (_CGROUP / "memory" / "memory.limit_in_bytes", _CGROUP / "memory" / "memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class Cores:
    """Cores for a measurement."""

    count: int
    warnings: tuple[str, ...] = ()
    """A warning if there are fewer cores than requested."""

    @classmethod
    def choose(cls, requested: str | None, usable: int) -> "Cores":
        """The requested cores, rounded up, but no more than are usable; all usable cores if none are requested.

        Args:
            requested: a quantity such as 2 or 500m.
            usable: cores that this process may use.
        """
        if requested is None:
            return cls(usable)
        count = math.ceil(parse_cpu(requested))
        if count <= usable:
            return cls(count)
        return cls(
            usable,
            (
                f"spec.evaluation.edge.cpu requests {count} cores, but the stage has {usable}: measured on {usable}; "
                "give the stage evaluate more cores in the profile",
            ),
        )


def cpu_model() -> str:
    """The vendor's name for the CPU; the architecture if it is unknown."""
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def resident_bytes(process: int) -> int:
    """Resident set of a process: anonymous, shared and mapped pages. 0 if it has ended or there is no /proc."""
    try:
        return read_proc_bytes(Path(f"/proc/{process}/status"), "VmRSS") or 0
    except OSError:
        return 0


def free_bytes(
    memory_info: Path = _MEMORY_INFO, cgroup_files: Sequence[tuple[Path, Path]] = _CGROUP_FILES
) -> int | None:
    """Memory in bytes that processes of this container can still allocate; None if it is unknown.

    Args:
        memory_info: file with the memory of the whole machine.
        cgroup_files: files with the container's limit and usage; those of other cgroup versions may be missing.
    """
    of_machine = read_proc_bytes(memory_info, "MemAvailable") if memory_info.is_file() else None
    figures = (of_machine, *(_free_of_cgroup(limit, usage) for limit, usage in cgroup_files))
    return min((free for free in figures if free is not None), default=None)


def _free_of_cgroup(limit_file: Path, usage_file: Path) -> int | None:
    try:
        limit, usage = limit_file.read_text().strip(), usage_file.read_text().strip()
        cached = _cached_bytes(usage_file.with_name("memory.stat"))
    except OSError:  # another cgroup version, or no cgroups
        return None
    return None if limit == "max" else max(0, int(limit) - int(usage) + cached)


def _cached_bytes(statistics: Path) -> int:
    """Page cache that counts as used, but is reclaimed when memory is needed."""
    values = dict(line.split() for line in statistics.read_text().splitlines())
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))

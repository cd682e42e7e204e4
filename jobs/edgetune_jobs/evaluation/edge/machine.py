"""What this machine has: its CPU, its cores, the memory that is left, the memory that a process has in use."""

import math
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgetune_contract.quantities import parse_cpu
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
    """What of the asked could not be had."""

    @classmethod
    def choose(cls, asked: str | None, usable: int) -> "Cores":
        """As many as asked, rounded up, but no more than are usable; without `asked` all of those.

        Args:
            asked: a quantity such as 2 or 500m.
            usable: cores that this process may use.
        """
        if asked is None:
            return cls(usable)
        count = math.ceil(parse_cpu(asked))
        if count <= usable:
            return cls(count)
        return cls(
            usable,
            (
                f"spec.evaluation.edge.cpu asks for {count} cores, and the stage has {usable}: it was measured with "
                f"{usable}; give the stage evaluate more in the profile",
            ),
        )


def cpu_model() -> str:
    """Name of the CPU as its maker gives it, else the architecture."""
    if _CPU_INFO.is_file():
        for line in _CPU_INFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def resident_bytes(process: int) -> int:
    """Resident set of a process: anonymous, shared and mapped pages. 0 if it has ended, or there is no /proc."""
    try:
        return read_proc_bytes(Path(f"/proc/{process}/status"), "VmRSS") or 0
    except OSError:
        return 0


def free_bytes(
    memory_info: Path = _MEMORY_INFO, cgroup_files: Sequence[tuple[Path, Path]] = _CGROUP_FILES
) -> int | None:
    """Memory that processes of this container can still take; None if the machine does not say.

    Args:
        memory_info: file with the figures of the whole machine.
        cgroup_files: files with limit and usage of the container; those of other versions of cgroups are not there.
    """
    of_machine = read_proc_bytes(memory_info, "MemAvailable") if memory_info.is_file() else None
    answers = (of_machine, *(_free_of_cgroup(limit, usage) for limit, usage in cgroup_files))
    return min((free for free in answers if free is not None), default=None)


def _free_of_cgroup(limit_file: Path, usage_file: Path) -> int | None:
    try:
        limit, usage = limit_file.read_text().strip(), usage_file.read_text().strip()
        cached = _cached_bytes(usage_file.with_name("memory.stat"))
    except OSError:  # another version of cgroups, or none
        return None
    return None if limit == "max" else max(0, int(limit) - int(usage) + cached)


def _cached_bytes(statistics: Path) -> int:
    """Cached pages of files, which count as used and go when memory is needed."""
    values = dict(line.split() for line in statistics.read_text().splitlines())
    return int(values.get("total_inactive_file", values.get("inactive_file", 0)))

"""Memory and processor time of a process, from /proc."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ProcessFigures:
    """One reading."""

    resident_bytes: int
    """VmRSS."""

    cpu_seconds: float
    """User and system time since the start, in steps of a clock tick (10 ms)."""

    read_at: float
    """Monotonic clock, in seconds."""

    def cpu_share_since(self, earlier: "ProcessFigures") -> float:
        """Share of one core between two readings, 0 to 1."""
        return (self.cpu_seconds - earlier.cpu_seconds) / (self.read_at - earlier.read_at)


def read_process(pid: int) -> ProcessFigures:
    """Figures of a running process, summed over its threads.

    Raises:
        FileNotFoundError: the process is not running.
    """
    folder = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (folder / "status").read_text(encoding="utf-8").splitlines())
    # The second field is the program's name in parentheses, which may contain spaces.
    fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return ProcessFigures(
        resident_bytes=int(status["VmRSS"].split()[0]) * 1024,
        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
        read_at=time.monotonic(),
    )

"""Background processes that outlive the process that starts them: each has a file with its id, and a log."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_KILL_LIMIT_SECONDS = 10
_LOG_TAIL = 2000
# The background process keeps no files of this one open. `$!` is the program's own id, because wrappers use `exec`.
_IN_BACKGROUND = 'log=$1; shift; "$@" </dev/null >>"$log" 2>&1 & echo $!'


@dataclass(frozen=True)
class Daemon:
    """A background process, identified by its name in a folder."""

    folder: Path
    name: str

    @property
    def log(self) -> Path:
        return self.folder / "logs" / f"{self.name}.log"

    @property
    def _pid_file(self) -> Path:
        return self.folder / "pids" / self.name

    def start(self, command: Sequence[str | Path]) -> None:
        """Start it, with its output in its log."""
        for folder in (self.log.parent, self._pid_file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        shell = ["sh", "-c", _IN_BACKGROUND, "sh", str(self.log), *map(str, command)]
        started = subprocess.run(shell, check=True, stdout=subprocess.PIPE, text=True, start_new_session=True)
        pid = int(started.stdout)
        self._pid_file.write_text(f"{pid} {_start_time(pid)}\n", encoding="utf-8")

    @property
    def pid(self) -> int | None:
        """Its id; None if it is not running, even if the system has reused the id for another process."""
        try:
            pid, started = self._pid_file.read_text(encoding="utf-8").split()
        except (OSError, ValueError):
            return None
        return int(pid) if started != "0" and _start_time(int(pid)) == int(started) else None

    def stop(self, limit_seconds: float = 10, with_signal: signal.Signals = signal.SIGTERM) -> None:
        """Stop it with a signal, and kill it after the limit. Do nothing if it is not running."""
        for stop_signal, limit in ((with_signal, limit_seconds), (signal.SIGKILL, _KILL_LIMIT_SECONDS)):
            pid = self.pid
            if pid is None:
                break
            os.kill(pid, stop_signal)
            wait_for(lambda: self.pid is None, limit)
        if self.pid is not None:
            raise TimeoutError(f"{self.name} (process {self.pid}) does not stop")
        self._pid_file.unlink(missing_ok=True)

    def wait_until(self, ready: Callable[[], bool], limit_seconds: float) -> None:
        """Wait until it is ready.

        Raises:
            RuntimeError: it has ended or is not ready in time; the message has the end of its log.
        """
        if not wait_for(lambda: self.pid is None or ready(), limit_seconds) or self.pid is None:
            log = self.log.read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:]
            state = "ended" if self.pid is None else f"is not ready after {limit_seconds:.0f} s"
            raise RuntimeError(f"{self.name} {state}; its log ({self.log}) ends with:\n{log}")


def stop_all(folder: Path) -> None:
    """Stop all processes of a folder that are still running."""
    for pid_file in (folder / "pids").glob("*"):
        Daemon(folder, pid_file.name).stop()


def wait_for(condition: Callable[[], bool], limit_seconds: float, interval_seconds: float = 0.1) -> bool:
    """Wait for a condition; return whether it holds before the limit."""
    deadline = time.monotonic() + limit_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval_seconds)
    return True


def _start_time(pid: int) -> int:
    """Start time of a process, in clock ticks since boot; 0 if it is not running."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0
    # The second field is the program's name in parentheses, which may contain spaces.
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] in "ZX" else int(fields[19])

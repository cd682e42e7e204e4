"""Runs one model in a process of its own and watches the process's memory."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgetune_jobs.errors import Interrupted, TransientError
from edgetune_jobs.evaluation.edge import machine

_POLL_SECONDS = 0.02
# The rest of the free memory is for the stage itself.
_SHARE_OF_FREE_MEMORY = 0.9
_STANDARD_ERROR = 2
# Killed by the kernel or another process.
_KILLED = -9


class OutOfMemory(Exception):
    """The machine or the container has too little memory for a model. The message has the figures."""


class CannotRun(RuntimeError):
    """A runtime does not load or run a model. The message has the runtime's."""


class CannotStart(CannotRun):
    """A runtime does not start on this machine, whatever the model: it lacks a library, or the CPU an instruction."""


@dataclass(frozen=True)
class Child:
    """A process to run: a module of this package that reads a request file and writes a result file."""

    module: str
    model: str
    """Name of the model's folder, for messages and file names."""

    threads: int
    scratch: Path
    """Folder for the two files."""

    @property
    def result_file(self) -> Path:
        """The file that the process writes."""
        return self.scratch / f"{self.model}-result.json"

    def run(
        self,
        request: bytes,
        stop: threading.Event,
        *,
        memory: int | None = None,
        free_bytes: Callable[[], int | None] = machine.free_bytes,
        on_poll: Callable[[], None] = lambda: None,
    ) -> "Ending":
        """Run the process to its end.

        Args:
            request: content of its request file.
            stop: interrupts it when set.
            memory: limit on its resident set in bytes, besides the machine's free memory.
            free_bytes: returns the free memory of this machine in bytes; None if it is unknown.
            on_poll: called again and again while it runs; if it raises, the process is stopped.

        Raises:
            OutOfMemory: it used the free memory of this machine, which is less than `memory`.
            Interrupted: `stop` was set.
        """
        free = free_bytes()
        bound = None if free is None else int(free * _SHARE_OF_FREE_MEMORY)
        limit = min((each for each in (memory, bound) if each is not None), default=None)
        self.result_file.unlink(missing_ok=True)
        ending = self._run(request, stop, limit, on_poll)
        if ending.stopped and (memory is None or ending.peak_bytes <= memory):
            raise OutOfMemory(
                f"its process was stopped at {ending.peak_bytes:,} bytes of memory: only {free or 0:,} bytes were free"
            )
        return ending

    def check_exit(self, ending: "Ending", has_started: bool, problem: str) -> None:
        """Check that the process ended well.

        Args:
            ending: how it ended.
            has_started: whether it has loaded the runtime's libraries.
            problem: the runtime's message if it does not run the model.

        Raises:
            TransientError: the process was killed from outside.
            CannotRun: it failed; its error is in the log too. CannotStart: already before it loaded the model.
        """
        if ending.exit_code == _KILLED:
            raise TransientError(
                f"the process that ran {self.model} was killed, probably because the container ran out of memory: give "
                "the stage evaluate more memory in the profile"
            )
        if ending.exit_code == 0:
            return
        if ending.exit_code == -signal.SIGILL:
            raise CannotStart("the CPU of this machine lacks an instruction that it was built for")
        words = f"its process ended with exit code {ending.exit_code}; the log has its last words"
        if not has_started:
            raise CannotStart(words)
        raise CannotRun(problem or words)

    def _run(self, request: bytes, stop: threading.Event, limit: int | None, on_poll: Callable[[], None]) -> "Ending":
        request_file = self.scratch / f"{self.model}-request.json"
        request_file.write_bytes(request)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "CUDA_VISIBLE_DEVICES": "",  # run on the CPU, also on a machine with a GPU
        }
        command = [sys.executable, "-P", "-m", self.module, str(request_file), str(self.result_file)]
        with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=_STANDARD_ERROR) as process:
            try:
                return _watch(process, stop, limit, on_poll)
            finally:
                process.kill()


@dataclass(frozen=True)
class Ending:
    """How a process ended."""

    exit_code: int
    peak_bytes: int
    """Largest resident set that was observed."""

    stopped: bool
    """Whether it was stopped because of its memory."""


def _watch(
    process: "subprocess.Popen[bytes]", stop: threading.Event, limit: int | None, on_poll: Callable[[], None]
) -> Ending:
    """Wait for the end of a process; stop it if it exceeds its memory limit."""
    peak = 0
    while process.poll() is None:
        peak = max(peak, machine.resident_bytes(process.pid))
        if limit is not None and peak > limit:
            process.kill()
            return Ending(process.wait(), peak, stopped=True)
        if stop.is_set():
            raise Interrupted("stopped by SIGTERM in the evaluation; the next attempt starts the evaluation again")
        on_poll()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_POLL_SECONDS)
    on_poll()
    return Ending(process.returncode, peak, stopped=False)

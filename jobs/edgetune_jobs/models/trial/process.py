"""The child process in which a model's files are tried: it has limits, because no library bounds what a file costs.

A chat template is a program, and so are the regular expressions and normalizers of a tokenizer: a small file can
compute without end or fill the memory.
"""

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from multiprocessing.connection import Connection, Pipe
from typing import Any, TypeVar

from edgetune_jobs.errors import StageError, TransientError
from edgetune_jobs.store.credentials import environment_without_credentials

Value = TypeVar("Value")

HOW_TO_REPAIR = "save or copy the model again, or use one that this version of transformers supports"
"""Advice for a model whose files cannot be used."""

_WORKER = "edgetune_jobs.models.trial.worker"
# No limit of the CPU time counts a process that waits, as for a file on a network: it has this time, in seconds.
_WALL_SECONDS = 600.0
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Limits:
    """What one call may take in the child process, on top of what the process has taken before."""

    cpu_seconds: int = 20
    """CPU time, so that a busy machine refuses nothing."""

    memory_bytes: int = 2 * 2**30
    """Address space: four times what the largest tokenizers need (256,000 tokens), and less than the memory of a Pod of
    prepare."""


class Kind(Enum):
    """The kind of a message from the child process."""

    DOING = "doing"
    DONE = "done"
    STAGE_ERROR = "stage error"
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"
    ENDED = "ended"
    """The call ended its process, with this exit code."""


class TrialFailed(Exception):
    """A call ended without a value; the message begins with what it was doing, for example `loading the tokenizer`."""

    def __init__(self, doing: str, reason: str, *, is_limit: bool = True) -> None:
        super().__init__(f"{doing} {reason}")
        self.reason = reason
        """A predicate, such as `takes more than 20 s of CPU time`."""

        self.is_limit = is_limit
        """Whether it exceeded a limit or ended the process, and not only raised an error."""


@cache
def shared_trial() -> "TrialProcess":
    """The child process of this process, which ends with it."""
    trial = TrialProcess()
    atexit.register(trial.close)
    return trial


class TrialProcess:
    """A child process that calls functions within limits. It starts with the first call, and again after a failure."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def call(
        self, function: Callable[..., Value], *arguments: object, extra_seconds: int = 0, share: float = 1.0
    ) -> Value:
        """The value of a module's function, called in the child process.

        Args:
            function: is found there by its name.
            arguments: can be pickled.
            extra_seconds: CPU time on top of the limit, for large arguments.
            share: share of the limit of the CPU time that this call may take, 0 to 1.

        Raises:
            StageError: the function raised it.
            TrialFailed: it raised anything else, exceeded a limit, or ended the process.
            TransientError: the process was killed from outside.
        """
        seconds = max(1, round(self.limits.cpu_seconds * share)) + extra_seconds
        limits = Limits(seconds, self.limits.memory_bytes)
        connection = self.start()
        doing = "trying the model"
        try:
            connection.send((limits, function, arguments))
            deadline = time.monotonic() + _WALL_SECONDS
            while connection.poll(max(0.0, deadline - time.monotonic())):
                kind, value = connection.recv()
                if kind is Kind.DOING:
                    doing = value
                elif kind is Kind.DONE:
                    result: Value = value
                    return result
                else:
                    raise _failure(kind, value, doing, limits)
        except (EOFError, OSError):
            is_killed = self._has_been_killed()
            self.close()
            if is_killed:
                raise _killed() from None
            raise TrialFailed(doing, "ends its process") from None
        except (StageError, TrialFailed):
            raise
        except BaseException:
            self.close()
            raise
        self.close()
        raise TrialFailed(doing, f"takes more than {_WALL_SECONDS:.0f} s")

    def start(self) -> Connection:
        """Start the process if it is not running; its libraries load while this process does something else."""
        if self._connection is not None:
            return self._connection
        ours, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", _WORKER, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr.fileno() if _has_descriptor(sys.stderr) else subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=_environment(),
                process_group=0,  # Ctrl-C does not reach it, and close reaches its own child
            )
        self._connection = ours
        return ours

    def close(self) -> None:
        """End the process."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _has_been_killed(self) -> bool:
        """Whether the process, which has closed the connection, was killed."""
        try:
            return self._process is not None and self._process.wait(timeout=1) == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            return False


def _failure(kind: Kind, value: Any, doing: str, limits: Limits) -> Exception:
    if isinstance(value, StageError):
        return value
    if kind is Kind.ENDED and value == -signal.SIGKILL:
        return _killed()
    if kind is Kind.ENDED:
        return TrialFailed(doing, _end(value, limits))
    if kind is Kind.OUT_OF_MEMORY:
        return TrialFailed(doing, _out_of_memory(limits))
    return TrialFailed(doing, f"fails: {' '.join(str(value).split())[:_LONGEST_REASON]}", is_limit=False)


def _killed() -> TransientError:
    """The error about SIGKILL, which no limit of the process sends."""
    return TransientError(
        "the process that tries the base model's files was killed, probably because the container ran out of memory: "
        "give the stage prepare more memory in the profile"
    )


def _out_of_memory(limits: Limits) -> str:
    return f"takes more than {limits.memory_bytes / 2**30:.1f} GiB of memory"


def _end(code: int, limits: Limits) -> str:
    """The reason why the process ended."""
    if -code == signal.SIGXCPU:
        return f"takes more than {limits.cpu_seconds} s of CPU time"
    if -code in (signal.SIGABRT, signal.SIGBUS):  # what a library does without memory
        return _out_of_memory(limits)
    return f"ends its process ({f'signal {-code}' if code < 0 else f'exit code {code}'})"


def _environment() -> dict[str, str]:
    """The environment without credentials; the child process reads local files only and computes on one thread."""
    return {
        **environment_without_credentials(),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RUST_BACKTRACE": "0",
    }


def _has_descriptor(stream: Any) -> bool:
    try:
        return int(stream.fileno()) >= 0
    except (AttributeError, OSError, ValueError):
        return False

"""`python -m edgetune_jobs.models.trial.worker FD`: calls functions for TrialProcess, within its limits."""

import contextlib
import os
import resource
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from edgetune_jobs.errors import StageError
from edgetune_jobs.models.libraries import prepare_libraries, read_proc_bytes
from edgetune_jobs.models.trial.process import Kind, Limits

_STATUS = Path("/proc/self/status")
_parent: Connection | None = None


def say_doing(what: str) -> None:
    """Tell the parent what this process is doing, for the message if it fails; nothing in any other process."""
    if _parent is not None:
        _parent.send((Kind.DOING, what))


def serve(parent: Connection) -> None:
    """Call the functions that the parent sends, until it ends."""
    while True:
        try:
            limits, function, arguments = parent.recv()
        except EOFError:
            return
        _limit(limits)
        kind, value = _call(function, arguments)
        parent.send((kind, value))


def _call(function: Any, arguments: tuple[Any, ...]) -> tuple[Kind, Any]:
    try:
        return Kind.DONE, function(*arguments)
    except StageError as error:
        return Kind.STAGE_ERROR, error.with_traceback(None)
    except MemoryError:
        return Kind.OUT_OF_MEMORY, None
    except BaseException as error:  # noqa: BLE001 - a panic of the tokenizers library is not an Exception
        return Kind.FAILED, str(error) or type(error).__name__


def _limit(limits: Limits) -> None:
    """Limit this process to what it has taken so far plus the limits."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime) + 1 + limits.cpu_seconds)
    taken = read_proc_bytes(_STATUS, "VmSize") if _STATUS.exists() else None
    if taken is not None:  # elsewhere, such as on macOS, the kernel does not enforce it
        _lower(resource.RLIMIT_AS, taken + limits.memory_bytes)


def _lower(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def main() -> None:
    """Serve the parent at the other end of the connection."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _load_libraries()
    # say_doing is called by functions of other modules, which import this one by its name and not as __main__.
    from edgetune_jobs.models.trial import worker

    worker._parent = parent = Connection(int(sys.argv[1]))
    with contextlib.suppress(BrokenPipeError):
        _keep_serving(parent)


def _load_libraries() -> None:
    """Load what every model needs, which takes seconds, before the first limit: no model is to blame for it."""
    prepare_libraries()
    import peft  # noqa: F401 - for later calls
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: F401 - for later calls

    AutoConfig.for_model("llama")


def _keep_serving(parent: Connection) -> None:
    """Serve in a child process, which is replaced at once when a call ends it: this process keeps its libraries."""
    while True:
        child = os.fork()
        if child == 0:
            serve(parent)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return
        parent.send((Kind.ENDED, code))


if __name__ == "__main__":
    main()

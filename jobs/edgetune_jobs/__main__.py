"""`python -m edgetune_jobs`: run the stage or the clean-up that EDGETUNE_REQUEST describes."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TextIO

from edgetune_contract.values.text import escaped
from edgetune_jobs.runtime.signals import StopSignals

if TYPE_CHECKING:
    from edgetune_contract.stages import Stage
    from edgetune_jobs.runtime.ranks.rank_process import RankBody
    from edgetune_jobs.runtime.stage_run import StageCode

_ENVIRONMENT = """environment:
  EDGETUNE_REQUEST          the request, as JSON
  EDGETUNE_WORK_DIR         folder for temporary files (/work)
  EDGETUNE_TERMINATION_LOG  file to write the result to, as JSON (/dev/termination-log)
  EDGETUNE_CREDENTIALS_DIR  folder with files AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, HF_TOKEN
  EDGETUNE_METRICS_PORT     port for Prometheus while training, 0 for none (8080)
  EDGETUNE_IMAGE            reference of the container image, for the manifest
  EDGETUNE_GPUS             number of GPUs that the stage must see; 0 uses what there is (0)
  EDGETUNE_GPU_BYTES        memory of the GPU that train will have, for prepare
  EDGETUNE_RANKS            number of processes that train together, also on one GPU or a CPU; 0: one for each GPU (0)
  EDGETUNE_NODES            number of containers that train together, each with as many processes (1)
  EDGETUNE_RENDEZVOUS       with several: <host>:<port> of the first one
  JOB_COMPLETION_INDEX      with several: which of them this one is, from 0

exit codes: 0 done, 10 invalid input, 11 access denied, 12 out of GPU memory, 13 training diverged,
14 transient error, 75 stopped by a signal, 76 another node failed or is gone, other: a bug
"""


class EscapingFormatter(logging.Formatter):
    """Formats log records without characters that a terminal would obey, such as those of a file name."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, or the lines with a traceback."""
        return escaped(super().format(record))


def main() -> NoReturn:
    """Run the stage or the clean-up, and end the process with its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m edgetune_jobs",
        description="Run one stage of a fine-tuning, or remove the artifacts of one, as the environment describes.",
        epilog=_ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    works = ("stage", "clean-up", "rank")
    described = "default: stage; rank is one of several processes of a training, which the stage starts"
    parser.add_argument("work", nargs="?", choices=works, default="stage", help=described)
    work = parser.parse_args().work
    if work == "clean-up":
        _run_clean_up_process()
    if work == "rank":
        run_rank_process()
    run_process()


def run_process(load_code: "Callable[[Stage], StageCode] | None" = None) -> NoReturn:
    """Run a stage with code from `load_code`, by default the stage's module, and end the process with its exit code.

    Progress goes to stdout as JSON lines, everything else to stderr.
    """
    signals, stream = _take_over()
    from edgetune_jobs.runtime.process import load_stage_code, run_stage

    _end(run_stage(os.environ, signals, stream, load_code or load_stage_code))


def run_rank_process(body: "RankBody | None" = None) -> NoReturn:
    """Run one rank of a training with a body, by default that of the stage train, and end the process.

    The task is a line of standard input; messages to the stage's process go to stdout, everything else to stderr.
    """
    signals, stream = _take_over()
    from edgetune_contract.stages import Stage
    from edgetune_jobs.runtime.process import load_stage_code
    from edgetune_jobs.runtime.ranks.rank_process import run_rank

    body = body or load_stage_code(Stage.TRAIN).run
    _end(run_rank(signals, stream.buffer, sys.stdin.buffer, body))


def _run_clean_up_process() -> NoReturn:
    signals, _ = _take_over()
    from edgetune_jobs.runtime.process import run_clean_up

    _end(run_clean_up(os.environ, signals))


def _take_over() -> tuple[StopSignals, TextIO]:
    """Install the signal handlers and redirect stdout; the handlers, and the stream for JSON lines."""
    # First, because the kernel drops signals without a handler for process 1 of a container.
    signals = StopSignals()
    signals.install()
    log_format = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(EscapingFormatter(log_format))
    logging.getLogger("edgetune_jobs").setLevel(logging.INFO)
    # Libraries that print to stdout would break the JSON lines: their stdout becomes stderr.
    stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return signals, stream


def _end(exit_code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    # The result is written. Neither a hanging transfer thread nor a library's exit handler may change the exit code.
    os._exit(exit_code)


if __name__ == "__main__":
    main()

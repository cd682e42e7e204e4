"""llama.cpp's quantizer, which makes K-quants from a GGUF file that has the weights as they are.

    rows ──► GgufEncoder ──► SOURCE ──► llama_model_quantize ──► one file, in turn for each format ──► store
             in this process    └── on the disk ──┘ in a child process

The call into llama.cpp cannot be interrupted, so that it runs in a process of its own (quantizer_process).
"""

import errno
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from edgetune_contract.spec import EdgeFormat
from edgetune_jobs.errors import Interrupted, TransientError
from edgetune_jobs.models.libraries import usable_cpus
from edgetune_jobs.stage import Progress, StageContext
from edgetune_jobs.tensors.formats.errors import Unsupported

SOURCE = "source.gguf"
"""Name of the file with the weights as they are."""

_TARGET, _LOG = "quantized.gguf", "quantizer.log"
_MODULE = "edgetune_jobs.tensors.formats.gguf.quantizer_process"
_POLL_SECONDS = 0.1
_COPY_BYTES = 2**23
# A disk with less is full: llama.cpp does not say why it cannot write.
_FULL_DISK_BYTES = 2**24
_STOPPED = "stopped by SIGTERM before the model was written; the next attempt starts over"


@dataclass(frozen=True)
class _LocalFiles:
    folder: Path

    @contextmanager
    def create(self, path: str, size: int) -> Iterator[BinaryIO]:  # noqa: ARG002 - as in OutputFiles
        with (self.folder / path).open("wb") as file:
            yield file


@contextmanager
def source_files(folder: Path) -> Iterator[_LocalFiles]:
    """Creates SOURCE in a folder, and deletes it at the exit of the context."""
    try:
        yield _LocalFiles(folder)
    finally:
        (folder / SOURCE).unlink(missing_ok=True)


def quantize(edge_format: EdgeFormat, path: str, context: StageContext, matrix: Path | None = None) -> int:
    """Quantize SOURCE in the scratch folder, and write the file to the store.

    Args:
        edge_format: a K-quant.
        path: of the file in the output.
        context: of the stage.
        matrix: safetensors file with the importance of each input, by the name of the matrix; None without.

    Returns:
        Its size in bytes.

    Raises:
        Unsupported: llama.cpp does not quantize the model.
        TransientError: its process was killed from outside.
        Interrupted: `context.stop` was set.
        OSError: the disk is full.
    """
    context.progress.say(f"quantizing to {edge_format} in llama.cpp")
    target = context.scratch / _TARGET
    try:
        _run(edge_format, target, context, matrix)
        _upload(target, path, context)
        return target.stat().st_size
    finally:
        target.unlink(missing_ok=True)


def _run(edge_format: EdgeFormat, target: Path, context: StageContext, matrix: Path | None) -> None:
    arguments = [context.scratch / SOURCE, target, edge_format.file_type, usable_cpus(), os.getpid(), matrix or ""]
    command = [sys.executable, "-P", "-m", _MODULE, *map(str, arguments)]
    log = context.scratch / _LOG
    with (
        log.open("wb") as words,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words) as process,
    ):
        try:
            problem = _follow(process, context.progress, context.stop)
            exit_code = process.wait()
        finally:
            process.kill()
    if exit_code == 0:
        return
    sys.stderr.write(log.read_text(errors="replace"))
    if exit_code == -signal.SIGKILL:
        raise TransientError(
            f"the process that quantizes to {edge_format} was killed, probably because the container ran out of "
            "memory: give the stage quantize more memory in the profile"
        )
    if shutil.disk_usage(target.parent).free < _FULL_DISK_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    words_of_process = f"its process ended with exit code {exit_code}; the log has its last words"
    raise Unsupported(f"llama.cpp does not quantize it: {problem or words_of_process}")


def _follow(process: "subprocess.Popen[bytes]", progress: Progress, stop: threading.Event) -> str:
    """Report progress until the process closes its output; the problem that it named."""
    if process.stdout is None:
        raise RuntimeError("the process has no output")
    problem, rest = "", b""
    while True:
        if stop.is_set():
            raise Interrupted(_STOPPED)
        ready, _, _ = select.select([process.stdout], [], [], _POLL_SECONDS)
        if not ready:
            continue
        added = os.read(process.stdout.fileno(), _COPY_BYTES)
        if not added:
            return problem
        *lines, rest = (rest + added).split(b"\n")
        for line in map(json.loads, lines):
            problem = line.get("problem", problem)
            if "done" in line:
                progress.update(line["done"], line["total"], "tensors")


def _upload(source: Path, path: str, context: StageContext) -> None:
    with source.open("rb") as file, context.streams.create(path, source.stat().st_size) as output:
        while block := file.read(_COPY_BYTES):
            if context.stop.is_set():
                raise Interrupted(_STOPPED)
            output.write(block)

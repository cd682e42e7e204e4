"""Writes planned safetensors files incrementally, while their tensors are computed."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from edgetune_jobs.models.weights import WEIGHTS, WEIGHTS_INDEX
from edgetune_jobs.stage import NewFiles, OutputFile
from edgetune_jobs.store.files import Buffer
from edgetune_jobs.tensors.safetensors_plan import PlannedFile, weights_index


class SafetensorsWriter:
    """Writes the weights of one model. It is a context manager; an incomplete file is discarded at the exit."""

    def __init__(self, files: Sequence[PlannedFile], outputs: NewFiles, folder: str) -> None:
        """
        Args:
            files: the plan.
            outputs: creates the files.
            folder: the artifact's folder in `outputs`.
        """
        self._waiting = list(reversed(files))
        self._files = files
        self._outputs = outputs
        self._folder = folder
        self._open = ExitStack()
        self._file: OutputFile | None = None
        self._bodies_left = 0
        self._tails: dict[str, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, traceback)

    @property
    def total_bytes(self) -> int:
        """Total size of all files in bytes, including the index if there are several."""
        return sum(file.bytes for file in self._files) + len(self._index)

    def write(self, data: Buffer) -> None:
        """Write the next bytes of the bodies."""
        left = memoryview(data).cast("B")
        while left:
            if self._file is None:
                self._begin()
            part = left[: self._bodies_left]
            self._write(part)
            self._bodies_left -= len(part)
            left = left[len(part) :]
            if not self._bodies_left:
                self._end()

    def set_tail(self, name: str, data: bytes) -> None:
        """Set a small tensor of a group; it must be called before the last byte of the file's bodies is written."""
        self._tails[name] = data

    def finish(self) -> None:
        """Write the index if there are several files."""
        while self._waiting:  # files with only empty tensors
            self._begin()
            self._end()
        if self._index:
            with self._outputs.create(f"{self._folder}/{WEIGHTS_INDEX}", len(self._index)) as file:
                file.write(self._index)

    @property
    def _index(self) -> bytes:
        if [file.name for file in self._files] == [WEIGHTS]:
            return b""
        return (json.dumps(weights_index(self._files), indent=2, sort_keys=True) + "\n").encode()

    def _begin(self) -> None:
        planned = self._waiting[-1]
        header = planned.header
        self._open = ExitStack()
        self._file = self._open.enter_context(self._outputs.create(f"{self._folder}/{planned.name}", planned.bytes))
        self._write(header)
        self._bodies_left = sum(group.body.bytes for group in planned.groups)

    def _end(self) -> None:
        planned = self._waiting.pop()
        for group in planned.groups:
            for tensor in group.tail:
                self._write(self._tails.pop(tensor.name))
        self._file = None
        self._open.close()

    def _write(self, data: Buffer) -> None:
        if self._file is None:
            raise RuntimeError("no file is open")
        self._file.write(data)

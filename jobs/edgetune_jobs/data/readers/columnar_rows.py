"""Reads rows of .parquet and .arrow files in a process of its own, whose memory and time are limited."""

import json
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from edgetune_jobs.data.readers.columnar_process import BAD, COLUMNS, END, MAX_SECONDS
from edgetune_jobs.data.readers.rows import BadRow, Place, RawRow, Unit
from edgetune_jobs.store.credentials import environment_without_credentials


class ColumnarReader:
    """Reads any number of files; the process starts with the first one and ends with the context."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def read(self, path: Path, name: str, wanted: Collection[str]) -> Iterator[RawRow | BadRow]:
        """Rows with the names of all columns and the values of the wanted ones.

        Args:
            path: the file.
            name: its name in messages.
            wanted: columns to read.

        Raises:
            OSError: the file cannot be opened.
        """
        path.open("rb").close()
        process = self._running()
        if process.stdin is None or process.stdout is None:
            raise RuntimeError("both are pipes")
        with suppress(BrokenPipeError):  # the process has ended, which reading its answer shows
            process.stdin.write(json.dumps({"path": str(path.absolute()), "wanted": sorted(wanted)}) + "\n")
            process.stdin.flush()
        number, columns = 0, None
        is_complete = False
        try:
            for line in process.stdout:
                answer = json.loads(line)
                if isinstance(answer, dict):
                    number += 1
                    yield RawRow(Place(name, Unit.ROW, number), answer, columns)
                    continue
                is_complete = answer[0] in (END, BAD)
                if answer[0] == BAD:
                    yield BadRow(Place(name, Unit.ROW, answer[1]), answer[2])
                elif answer[0] == COLUMNS:
                    columns = answer[1]
                if is_complete:
                    return
            yield BadRow(Place(name, Unit.ROW, number + 1), _why_it_ended(process.wait()))
        finally:
            if not is_complete:
                self._end()

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "edgetune_jobs.data.readers.columnar_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                env={
                    **environment_without_credentials(),
                    # The default allocator reserves more memory than it uses, which would count.
                    "ARROW_DEFAULT_MEMORY_POOL": "system",
                    "PYTHONIOENCODING": "utf-8",
                },
            )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _why_it_ended(code: int) -> str:
    if code == -signal.SIGALRM:
        return f"unpacking this row took more than {MAX_SECONDS} seconds; the rows after it were not read"
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"unpacking this row ended the library ({how}); write the file again from data that you know"

"""One pass over a model's weights, in pieces of a few megabytes: read and merge, encode, write.

    Weights ── piece ──► Encoder.encode ──► Encoder.write      one encoder for each format that is wanted
    └──── several threads, any order ────┘ └ one, in order ┘

What is read but not yet written is bounded, and so is memory, whatever the model's size.
"""

import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edgetune_jobs.errors import Interrupted
from edgetune_jobs.models.weights import StoredTensor
from edgetune_jobs.stage import Progress
from edgetune_jobs.tensors.merged_rows import PIECE_BYTES

if TYPE_CHECKING:
    import torch

# Pieces that wait to be written besides those that threads are at.
_WAITING_PIECES = 1
# One that is at work, and the next one.
_PREPARED_TENSORS = 2


class Weights(Protocol):
    """The rows that all formats are made of: as stored, or merged with an adapter. Safe for several threads."""

    @property
    def tensors(self) -> Sequence[StoredTensor]:
        """In the order of the bytes that hold them."""
        ...

    def held_bytes(self, tensor: StoredTensor) -> int:
        """Memory that `prepare` takes until the last row of the tensor is written; 0 for what needs none of it."""
        ...

    def prepare(self, tensor: StoredTensor) -> Any:
        """What all rows of a tensor have in common; None for most."""
        ...

    def rows(self, tensor: StoredTensor, first: int, count: int, prepared: Any) -> "torch.Tensor":
        """Rows of a tensor: [count, …] in the format that all encoders start from. The caller may change them."""
        ...

    def give_back(self, rows: "torch.Tensor") -> None:
        """Take the memory of rows back, when all encoders have written them."""
        ...

    def release(self, prepared: Any) -> None:
        """Take the memory back that `prepare` gave, when the last row of the tensor is written."""
        ...


class Encoder(Protocol):
    """Makes one format of the rows."""

    def row_multiple(self, tensor: StoredTensor) -> int:
        """Pieces begin at a multiple of so many rows; the tensor's number of rows to get it as a whole."""
        ...

    def encode(self, tensor: StoredTensor, first: int, rows: "torch.Tensor") -> Any:
        """The piece of this format that begins at row `first`; on any thread, in any order. `rows` must not change."""
        ...

    def write(self, tensor: StoredTensor, first: int, encoded: Any) -> None:
        """Take what `encode` gave; on one thread, in the order of the tensors and rows."""
        ...


@dataclass(frozen=True)
class _Piece:
    tensor: StoredTensor
    first: int
    count: int

    @property
    def bytes(self) -> int:
        return self.count * self.tensor.row_bytes

    @property
    def is_last(self) -> bool:
        return self.first + self.count == self.tensor.rows


def stream(
    weights: Weights,
    encoders: Sequence[Encoder],
    *,
    workers: int,
    progress: Progress,
    stop: threading.Event,
) -> None:
    """Send all rows through all encoders.

    Args:
        weights: the rows.
        encoders: the formats.
        workers: threads that read, merge and encode; each works on one core.
        progress: gets the bytes read.
        stop: ends the pass when set.

    Raises:
        Interrupted: `stop` was set.
    """
    import torch

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "weights", initializer=lambda: torch.set_num_threads(1))
    try:
        _Pass(pool, workers, weights, encoders, progress, stop).run()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    else:
        pool.shutdown()
    finally:
        torch.set_num_threads(threads)


class _Pass:
    """One pass: which pieces are on their way, and how much memory they take."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        workers: int,
        weights: Weights,
        encoders: Sequence[Encoder],
        progress: Progress,
        stop: threading.Event,
    ) -> None:
        self._pool = pool
        self._weights = weights
        self._encoders = encoders
        self._progress = progress
        self._stop = stop
        self._prepared: dict[str, Future[Any]] = {}
        self._begun: deque[tuple[_Piece, Future[tuple[torch.Tensor, list[Any]]]]] = deque()
        self._in_flight = 0
        self._most_in_flight = (workers + _WAITING_PIECES) * PIECE_BYTES

    def run(self) -> None:
        """Begin pieces while memory allows it, and write them in order."""
        total, done = sum(tensor.bytes for tensor in self._weights.tensors), 0
        pieces = self._pieces()
        waiting = next(pieces, None)
        while waiting or self._begun:
            while waiting and self._has_room(waiting):
                self._begin(waiting)
                waiting = next(pieces, None)
            done += self._finish_first()
            self._progress.update(done, total, "bytes")
            if self._stop.is_set():
                raise Interrupted("stopped by SIGTERM before the model was written; the next attempt starts it again")

    def _pieces(self) -> Iterator[_Piece]:
        for tensor in self._weights.tensors:
            multiple = math.lcm(*(encoder.row_multiple(tensor) for encoder in self._encoders)) or 1
            step = max(1, PIECE_BYTES // max(1, tensor.row_bytes) // multiple) * multiple
            for first in range(0, tensor.rows, step):
                yield _Piece(tensor, first, min(step, tensor.rows - first))

    def _has_room(self, piece: _Piece) -> bool:
        if not self._begun:
            return True
        is_prepared = piece.first == 0 and self._weights.held_bytes(piece.tensor) > 0
        if is_prepared and len(self._prepared) == _PREPARED_TENSORS:
            return False
        return self._in_flight + piece.bytes <= self._most_in_flight

    def _begin(self, piece: _Piece) -> None:
        self._in_flight += piece.bytes
        name = piece.tensor.name
        # Submitted before the pieces that wait for it: they cannot take all threads from it.
        if piece.first == 0 and self._weights.held_bytes(piece.tensor):
            self._prepared[name] = self._pool.submit(self._weights.prepare, piece.tensor)
        self._begun.append((piece, self._pool.submit(self._encode, piece, self._prepared.get(name))))

    def _encode(self, piece: _Piece, prepared: "Future[Any] | None") -> "tuple[torch.Tensor, list[Any]]":
        common = None if prepared is None else prepared.result()
        rows = self._weights.rows(piece.tensor, piece.first, piece.count, common)
        return rows, [encoder.encode(piece.tensor, piece.first, rows) for encoder in self._encoders]

    def _finish_first(self) -> int:
        """Write the oldest piece; its bytes."""
        piece, future = self._begun.popleft()
        rows, encoded = future.result()
        for encoder, data in zip(self._encoders, encoded, strict=True):
            encoder.write(piece.tensor, piece.first, data)
        self._weights.give_back(rows)
        self._in_flight -= piece.bytes
        if piece.is_last and piece.tensor.name in self._prepared:
            self._weights.release(self._prepared.pop(piece.tensor.name).result())
        return piece.bytes

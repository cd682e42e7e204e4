"""Streams a model's weights in pieces of a few megabytes: read and merge, encode, write.

    Weights ── piece ──► Encoder.encode ──► Encoder.write      one encoder per format
    └──── several threads, any order ────┘ └ one, in order ┘

The pieces in flight are bounded, so memory does not depend on the size of the model.
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

# Pieces that wait to be written, in addition to one piece per worker.
_WAITING_PIECES = 1
# The current tensor and the next one.
_PREPARED_TENSORS = 2


class Weights(Protocol):
    """The input rows of all encoders, as stored or with an adapter merged. Thread-safe."""

    @property
    def tensors(self) -> Sequence[StoredTensor]:
        """In the order of their bytes in the files."""
        ...

    def held_bytes(self, tensor: StoredTensor) -> int:
        """Memory that `prepare` holds until the last row of the tensor is written; 0 if it is not needed."""
        ...

    def prepare(self, tensor: StoredTensor) -> Any:
        """The data that all rows of a tensor share; called only if `held_bytes` is not 0."""
        ...

    def rows(self, tensor: StoredTensor, first: int, count: int, prepared: Any) -> "torch.Tensor":
        """Rows of a tensor: [count, …] in the dtype of the model."""
        ...

    def give_back(self, rows: "torch.Tensor") -> None:
        """Return the memory of rows for reuse, after all encoders have written them."""
        ...

    def release(self, prepared: Any) -> None:
        """Return the memory of `prepare` for reuse, after the last row of the tensor is written."""
        ...


class Encoder(Protocol):
    """Encodes rows in one format."""

    def row_multiple(self, tensor: StoredTensor) -> int:
        """Pieces start at a multiple of this number of rows; the number of rows of the tensor to get it as a whole."""
        ...

    def encode(self, tensor: StoredTensor, first: int, rows: "torch.Tensor") -> Any:
        """Encode a piece that starts at row `first`; on any thread, in any order. It must not change `rows`."""
        ...

    def write(self, tensor: StoredTensor, first: int, encoded: Any) -> None:
        """Write the output of `encode`; on one thread, in the order of tensors and rows."""
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
    """Encode and write all rows with all encoders.

    Args:
        weights: the rows.
        encoders: one per format.
        workers: number of threads that read, merge and encode; each uses one core.
        progress: receives the number of bytes written, in source bytes.
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
    """One pass: its pieces in flight and their memory."""

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
        self._submitted: deque[tuple[_Piece, Future[tuple[torch.Tensor, list[Any]]]]] = deque()
        self._bytes_in_flight = 0
        self._max_bytes_in_flight = (workers + _WAITING_PIECES) * PIECE_BYTES

    def run(self) -> None:
        """Submit pieces while memory allows it, and write them in order."""
        total, done = sum(tensor.bytes for tensor in self._weights.tensors), 0
        pieces = self._pieces()
        waiting = next(pieces, None)
        while waiting or self._submitted:
            while waiting and self._has_room(waiting):
                self._submit(waiting)
                waiting = next(pieces, None)
            done += self._write_oldest()
            self._progress.update(done, total, "bytes")
            if self._stop.is_set():
                raise Interrupted("stopped by SIGTERM before the model was written; the next attempt starts over")

    def _pieces(self) -> Iterator[_Piece]:
        for tensor in self._weights.tensors:
            multiple = math.lcm(*(encoder.row_multiple(tensor) for encoder in self._encoders)) or 1
            step = max(1, PIECE_BYTES // max(1, tensor.row_bytes) // multiple) * multiple
            for first in range(0, tensor.rows, step):
                yield _Piece(tensor, first, min(step, tensor.rows - first))

    def _has_room(self, piece: _Piece) -> bool:
        if not self._submitted:
            return True
        is_prepared = piece.first == 0 and self._weights.held_bytes(piece.tensor) > 0
        if is_prepared and len(self._prepared) == _PREPARED_TENSORS:
            return False
        return self._bytes_in_flight + piece.bytes <= self._max_bytes_in_flight

    def _submit(self, piece: _Piece) -> None:
        self._bytes_in_flight += piece.bytes
        name = piece.tensor.name
        # Submitted before the pieces that wait for it, so that they cannot occupy all threads first.
        if piece.first == 0 and self._weights.held_bytes(piece.tensor):
            self._prepared[name] = self._pool.submit(self._weights.prepare, piece.tensor)
        self._submitted.append((piece, self._pool.submit(self._encode, piece, self._prepared.get(name))))

    def _encode(self, piece: _Piece, prepared: "Future[Any] | None") -> "tuple[torch.Tensor, list[Any]]":
        shared = None if prepared is None else prepared.result()
        rows = self._weights.rows(piece.tensor, piece.first, piece.count, shared)
        return rows, [encoder.encode(piece.tensor, piece.first, rows) for encoder in self._encoders]

    def _write_oldest(self) -> int:
        """Write the oldest submitted piece; its size in bytes."""
        piece, future = self._submitted.popleft()
        rows, encoded = future.result()
        for encoder, data in zip(self._encoders, encoded, strict=True):
            encoder.write(piece.tensor, piece.first, data)
        self._weights.give_back(rows)
        self._bytes_in_flight -= piece.bytes
        if piece.is_last and piece.tensor.name in self._prepared:
            self._weights.release(self._prepared.pop(piece.tensor.name).result())
        return piece.bytes

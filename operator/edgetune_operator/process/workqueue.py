"""A work queue like client-go's, and fair: keys are deduplicated, delayed, backed off, and given out group by group.

A group is a tenant: one with thousands of keys delays the first key of another by one pass of each worker, not by
thousands.
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_FIRST_BACKOFF_SECONDS = 0.5
_LAST_BACKOFF_SECONDS = 60.0


@dataclass(order=True)
class _Due(Generic[K]):
    time: float
    sequence: int
    key: K = field(compare=False)


class WorkQueue(Generic[K]):
    """Keys that wait for a pass.

    A key that is added again while it waits is queued once. A key that is added while it is processed is queued again
    after `done`. So no two workers process a key at the same time, and no change is lost.
    """

    def __init__(self, group_of: Callable[[K], Hashable] = lambda _: None) -> None:
        """`group_of`: the group of a key. Groups take turns; within one, the first key that was added comes first."""
        self._group_of = group_of
        self._waiting: dict[Hashable, dict[K, float]] = {}
        """Keys in the queue by group, in the order of their turns, with the time when each key was added."""

        self._ready = asyncio.Semaphore(0)
        """Its value is the number of keys in the queue."""

        self._active: set[K] = set()
        self._again: set[K] = set()
        self._failures: dict[K, int] = {}
        self._delayed: list[_Due[K]] = []
        self._due: dict[K, float] = {}
        self._wake = asyncio.Event()
        self._sequence = itertools.count()

    def __len__(self) -> int:
        """Number of waiting keys, without those that are due later."""
        return sum(map(len, self._waiting.values())) + len(self._again)

    def longest_wait(self) -> float:
        """Seconds that the oldest key in the queue has waited; 0 if the queue is empty."""
        added = [next(iter(keys.values())) for keys in self._waiting.values()]
        return self._now() - min(added) if added else 0.0

    def add(self, key: K) -> None:
        """Queue a key for a pass as soon as possible."""
        if key in self._active:
            self._again.add(key)
            return
        keys = self._waiting.setdefault(self._group_of(key), {})
        if key not in keys:
            keys[key] = self._now()
            self._ready.release()

    def add_after(self, key: K, seconds: float) -> None:
        """Queue a key after a delay, unless it is due earlier already."""
        due = self._now() + seconds
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        heapq.heappush(self._delayed, _Due(due, next(self._sequence), key))
        self._wake.set()

    def retry(self, key: K) -> float:
        """Queue a key after a failed pass; returns the delay in seconds, which doubles with each failure in a row."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        seconds = min(_FIRST_BACKOFF_SECONDS * 2.0 ** min(failures, 16), _LAST_BACKOFF_SECONDS)
        self.add_after(key, seconds)
        return seconds

    def failures(self, key: K) -> int:
        """Number of a key's failed passes in a row."""
        return self._failures.get(key, 0)

    def forget(self, key: K) -> None:
        """Reset a key's backoff after a successful pass."""
        self._failures.pop(key, None)

    async def get(self) -> tuple[K, float]:
        """The next key and the seconds that it waited. The caller must call `done` afterwards."""
        await self._ready.acquire()
        group, keys = next(iter(self._waiting.items()))
        key = next(iter(keys))
        waited = self._now() - keys.pop(key)
        # The next group's turn: this one goes to the end.
        del self._waiting[group]
        if keys:
            self._waiting[group] = keys
        self._active.add(key)
        return key, waited

    def done(self, key: K) -> None:
        """Mark the pass over a key as ended."""
        self._active.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    async def run_delays(self) -> None:
        """Move delayed keys into the queue when they are due, until cancelled."""
        while True:
            self._wake.clear()
            timeout = self._move_due()
            try:
                await asyncio.wait_for(self._wake.wait(), timeout)
            except TimeoutError:
                continue

    def _move_due(self) -> float | None:
        """Move the keys that are due. Returns the seconds until the next one is due; None if there is none."""
        while self._delayed:
            first = self._delayed[0]
            if self._due.get(first.key) != first.time:
                heapq.heappop(self._delayed)  # replaced by an earlier time
            elif first.time <= self._now():
                heapq.heappop(self._delayed)
                del self._due[first.key]
                self.add(first.key)
            else:
                return first.time - self._now()
        return None

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

"""Concurrent transfers on a few threads."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

_WORKERS = 4

Item = TypeVar("Item")


def for_each(items: Iterable[Item], action: Callable[[Item, threading.Event], None], workers: int = _WORKERS) -> None:
    """Run an action for each item on a few threads.

    The first failure, or an exception in the caller such as a signal's, is raised at once: it sets the event that each
    action gets and cancels actions that have not started, but does not wait for running ones.
    """
    cancelled = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="transfer")
    try:
        for future in as_completed([pool.submit(action, item, cancelled) for item in items]):
            future.result()
    except BaseException:
        cancelled.set()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()

"""Threads that run at the same time."""

import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def run_concurrently(action: Callable[[Item], object], items: Iterable[Item]) -> None:
    """Run an action for each item in a thread of its own, and wait for all threads."""
    threads = [threading.Thread(target=action, args=(item,)) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

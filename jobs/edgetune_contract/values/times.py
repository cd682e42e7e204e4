"""Times in the format of Kubernetes and of the documents in the store: RFC 3339, UTC."""

from datetime import datetime, timedelta
from typing import Literal


def timestamp(moment: datetime, timespec: Literal["seconds", "milliseconds"] = "seconds") -> str:
    """Text of a time in UTC, such as 2026-11-24T08:00:00Z."""
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z")


def seconds_between(start: str | None, end: str | None) -> float | None:
    """Seconds between two RFC 3339 times; 0 if the end is before the start, None if either is missing."""
    if start is None or end is None:
        return None
    return max((datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds(), 0.0)


def is_recent(time: str, limit: timedelta, now: datetime) -> bool:
    """Whether something happened less than `limit` ago.

    Times come from the clocks of nodes and of the control plane: one that is further ahead than `limit` says nothing,
    and is not waited for.
    """
    return abs(now - datetime.fromisoformat(time)) < limit

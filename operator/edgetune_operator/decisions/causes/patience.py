"""Patience: what may pass by itself holds an object up for five minutes before it is Stalled.

The time comes from the status, so that a restart of the operator does not change it. Quota is waited for like a turn in
a queue, unless it can never be enough.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta

from edgetune_contract.values.times import timestamp
from edgetune_operator.api.reasons import MAY_PASS, Reason
from edgetune_operator.api.status.object_status import LoraFineTuneStatus

PATIENCE = timedelta(minutes=5)
"""Time in which a late Secret, profile or node, an image, or a webhook may come before somebody must act."""

_QUOTA = re.compile(r"exceeded quota: \S+, requested: (?P<requested>\S+), used: \S+, limited: (?P<limited>\S+)")
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_FACTORS = {
    "m": 1e-3,
    None: 1.0,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
    "T": 1e12,
    "Ki": 2.0**10,
    "Mi": 2.0**20,
    "Gi": 2.0**30,
    "Ti": 2.0**40,
}


@dataclass(frozen=True)
class Wait:
    """A wait for what may pass by itself."""

    since: str
    """When it began (RFC 3339)."""

    left: timedelta
    """Time until somebody must act; 0 if that is now."""


def wait_of(reason: str, generation: int, previous: LoraFineTuneStatus, now: datetime) -> Wait | None:
    """The wait for a cause; None if the cause does not pass by itself.

    Args:
        reason: of the condition Ready.
        generation: of the object: an edit begins the time again, because it may have removed the cause.
        previous: the status before this pass.
        now: time of the pass.
    """
    if reason not in MAY_PASS:
        return None
    return known_wait(generation, previous, now) or _wait(timestamp(now), now)


def known_wait(generation: int, previous: LoraFineTuneStatus, now: datetime) -> Wait | None:
    """The wait that an earlier pass has recorded for this generation; None without one. Arguments as above."""
    is_known = previous.waiting_since is not None and previous.observed_generation == generation
    return _wait(previous.waiting_since, now) if is_known and previous.waiting_since else None


def _wait(since: str, now: datetime) -> Wait:
    left = PATIENCE - (now - datetime.fromisoformat(since))
    return Wait(since, min(max(left, timedelta(0)), PATIENCE))


def quota_reason(message: str) -> Reason | None:
    """The reason for a refusal by a quota, in the API server's words; None if it is none."""
    if "exceeded quota" not in message:
        return None
    found = _QUOTA.search(message)
    if found is None:
        return Reason.QUOTA_EXCEEDED
    requested, limited = _amounts(found["requested"]), _amounts(found["limited"])
    can_never_fit = any(amount > limited.get(name, amount) for name, amount in requested.items())
    return Reason.QUOTA_TOO_SMALL if can_never_fit else Reason.QUOTA_EXCEEDED


def _amounts(text: str) -> dict[str, float]:
    """Amounts by resource, such as "pods=1,requests.memory=4Gi"; those in another notation are left out."""
    parts = (part.partition("=") for part in text.rstrip(",").split(","))
    return {
        name: float(match[1]) * _FACTORS[match[2]] for name, _, amount in parts if (match := _AMOUNT.fullmatch(amount))
    }

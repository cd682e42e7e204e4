"""What is live: the version that the pointer in the store names, as stages that read it report it."""

from typing import Literal

from edgetune_contract.digest import pointer_key
from edgetune_contract.request import LiveVersion, Result
from edgetune_operator.api.reasons import Reason
from edgetune_operator.api.status.object_status import SHORT_VERSION, LiveStatus, LoraFineTuneStatus

AVAILABLE = "Available"
"""Type of the condition that says whether a version is live."""


def reported_live(result: Result, store_uri: str, name: str) -> LiveStatus | None:
    """What a result of prepare or publish says; None if there is no pointer.

    Args:
        result: of the stage.
        store_uri: URI of the namespace's store.
        name: of the object.
    """
    live: LiveVersion | None = result.live
    if live is None:
        return None
    return LiveStatus(
        version=live.version, pointer=f"{store_uri}/{pointer_key(name)}", since=live.since, scores=live.scores
    )


def why_available(
    live: LiveStatus | None, was_read: bool, previous: LoraFineTuneStatus
) -> tuple[Literal["True", "False", "Unknown"], str, str]:
    """Status, reason and message of the condition Available.

    Args:
        live: what is live; None if nothing is, or it is not known.
        was_read: whether this pass recorded what a stage read in the store.
        previous: the status before this pass.
    """
    if live is not None:
        named = f"{live.pointer} names version {live.version[:SHORT_VERSION]} since {live.since}"
        return "True", Reason.PUBLISHED, named
    before = next((each for each in previous.conditions if each.type == AVAILABLE), None)
    if was_read or (before is not None and before.status == "False"):
        return "False", Reason.NOTHING_PUBLISHED, "no version of this model is published: it has no latest.json"
    return "Unknown", Reason.STORE_NOT_READ, "no stage has read the store yet; prepare reports what is live"

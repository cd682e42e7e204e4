"""Clean-up: what is asked and said when an object's artifacts go with it (deletionPolicy: Delete)."""

from typing import Annotated, Literal

from pydantic import Field

from edgetune_contract.model import Model
from edgetune_contract.request import CONTRACT_VERSION, Failure, StoreLocation


class CleanUpRequest(Model):
    """All that a clean-up needs to know. What belongs to the object, the store knows."""

    contract_version: Literal[1] = CONTRACT_VERSION
    namespace: str
    name: Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
    """Name of the LoraFineTune: the model's name in the store. Never empty: that would stand for all models."""

    store: StoreLocation

    def encode(self) -> str:
        """JSON text, without fields that are None."""
        return self.model_dump_json(exclude_none=True)


class CleanUpResult(Model):
    """What a clean-up says when it ends: the container's termination message."""

    removed_objects: int = 0
    """Objects that were removed from the store."""

    removed_bytes: int = 0
    """Their size, in bytes."""

    shared_stages: int = 0
    """Stages' outputs that were left, since other objects use them."""

    failure: Failure | None = None
    """Set when the clean-up did not finish."""

    def encode(self) -> bytes:
        """JSON in UTF-8; at most MAX_RESULT_BYTES bytes, since a failure's message is cut."""
        return self.model_dump_json(exclude_none=True).encode()

"""Request and result of a clean-up, which removes the artifacts of a deleted object (deletionPolicy: Delete)."""

from typing import Annotated, Literal

from pydantic import Field

from edgetune_contract.request import CONTRACT_VERSION, Failure, StoreLocation
from edgetune_contract.schema import Model


class CleanUpRequest(Model):
    """Input of a clean-up. The store records which artifacts belong to the object."""

    contract_version: Literal[1] = CONTRACT_VERSION
    namespace: str
    name: Annotated[str, Field(max_length=253, pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
    """Name of the LoraFineTune, and of its model in the store. Never empty: an empty name would match every model."""

    store: StoreLocation

    def encode(self) -> str:
        """JSON text, without fields that are None."""
        return self.model_dump_json(exclude_none=True)


class CleanUpResult(Model):
    """Result of a clean-up, written as the container's termination message."""

    removed_objects: int = 0
    """Number of objects removed from the store."""

    removed_bytes: int = 0
    """Total size of the removed objects, in bytes."""

    shared_stages: int = 0
    """Number of stage outputs kept because other objects use them."""

    failure: Failure | None = None
    """Set if the clean-up did not finish."""

    def encode(self) -> bytes:
        """JSON in UTF-8, at most MAX_RESULT_BYTES bytes: a failure's message is truncated."""
        return self.model_dump_json(exclude_none=True).encode()

"""How the S3 client reaches a service."""

from enum import StrEnum

from edgetune_contract.schema import Model


class ChecksumMode(StrEnum):
    """When the S3 client adds its own checksums to requests."""

    WHEN_SUPPORTED = "WhenSupported"
    WHEN_REQUIRED = "WhenRequired"


class S3Service(Model):
    """How the S3 client reaches a service."""

    endpoint: str | None = None
    """URL of the S3 service. Default: the client's."""

    region: str | None = None
    """S3 region. Default: the client's."""

    path_style: bool = False
    """Address buckets by path instead of by host name."""

    checksums: ChecksumMode = ChecksumMode.WHEN_SUPPORTED
    """When the S3 client adds its own checksums to requests."""

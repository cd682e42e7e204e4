"""Fixtures that tests of several folders share."""

import secrets
from collections.abc import Iterator

import pytest

from support.fault_proxy import FaultProxy, running_proxy
from support.versitygw import S3Server, running_server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server for the whole test session."""
    with running_server(tmp_path_factory.mktemp("s3") / "server") as server:
        yield server


@pytest.fixture
def s3_proxy(s3_server: S3Server) -> Iterator[FaultProxy]:
    """A proxy before the S3 server, without faults yet."""
    with running_proxy(s3_server.endpoint) as proxy:
        yield proxy


@pytest.fixture
def s3_prefix() -> str:
    """A prefix of the bucket that no other test uses."""
    return f"test-{secrets.token_hex(6)}"

"""Fixtures of several modules, and settings of the property tests."""

from pathlib import Path

import pytest
from hypothesis import settings

from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.s3.store import S3Store
from edgetune_jobs.store.store import Store
from support.versitygw import S3Server

# Other work shares the machine: how long one example takes says nothing about the code.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, s3_prefix: str) -> Store:
    """An empty store: each test runs with one in a folder and one in a real bucket."""
    if request.param == "folder":
        return LocalFolderStore((tmp_path / "store").as_uri())
    server: S3Server = request.getfixturevalue("s3_server")
    return S3Store(server.location(s3_prefix).uri, server.client())

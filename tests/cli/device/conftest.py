"""A model in a folder, a device's folder, and short pauses."""

from pathlib import Path

import pytest

from edgetune_cli.device import origins, transfer
from edgetune_jobs.store.folder_store import LocalFolderStore
from support.published import PublishedModel


@pytest.fixture
def model(tmp_path: Path) -> PublishedModel:
    """A model in a folder."""
    return PublishedModel(LocalFolderStore((tmp_path / "store").as_uri()), tmp_path / "work")


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A folder that does not exist."""
    return tmp_path / "device"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses, and small chunks, so that a small file has several."""
    monkeypatch.setattr(transfer, "_FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(origins, "_CHUNK_BYTES", 16)

"""Fixtures of the report's tests: the records of two fixed versions."""

import pytest

from edgetune_jobs.reporting.run_record import RunRecord
from edgetune_jobs.store.folder_store import LocalFolderStore
from support.reported_runs import fixed_runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunRecord, RunRecord]:
    """The newer version with attempts and GPU time, and the older one."""
    folder = tmp_path_factory.mktemp("reported")
    return fixed_runs(LocalFolderStore((folder / "store").as_uri()), folder / "local")


@pytest.fixture(scope="session")
def run(runs: tuple[RunRecord, RunRecord]) -> RunRecord:
    """The newer version."""
    return runs[0]

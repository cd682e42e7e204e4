"""Work folders for the commands that look through them."""

from pathlib import Path

import pytest

from support.work_folder import WorkFolder, make_work_folder


@pytest.fixture
def work_folder(tmp_path: Path) -> WorkFolder:
    """A work folder with one object whose run is finished."""
    return make_work_folder(tmp_path / "work")

"""A checkout as a reader has it after `make demo`, with a tiny base model."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from support.apiserver import REPOSITORY
from support.tutorial_models import shrink, write_tickets_base
from support.tutorials import NewReader, Reader, write_programs


def _made_base(folder: str, _: list[str]) -> set[str]:
    """The base that `make demo` has made: the test puts another one in its place."""
    return {"base"} if folder.endswith("sensor-faults") else set()


@pytest.fixture(scope="session")
def tickets_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base in place of SmolLM2-135M."""
    folder = tmp_path_factory.mktemp("base") / "base"
    write_tickets_base(folder)
    return folder


@pytest.fixture(scope="session")
def new_reader(tmp_path_factory: pytest.TempPathFactory) -> NewReader:
    """Makes a reader in a checkout of their own."""

    def make(base: Path | None = None, **variables: str) -> Reader:
        folder = tmp_path_factory.mktemp("reader")
        home = folder / "edgetune"
        home.mkdir()
        shutil.copytree(REPOSITORY / "examples", home / "examples", ignore=_made_base)
        if base is not None:
            shutil.copytree(base, home / "examples" / "sensor-faults" / "base")
        programs = write_programs(folder / "bin", python=sys.executable)
        paths = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
        return Reader(home, {**paths, "HF_HUB_OFFLINE": "0", **variables}, shrink)

    return make

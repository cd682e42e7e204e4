"""Programs for tests that are no dependency of the project: installed once, in an environment in the cache."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster.folders import cache_folder, locked

_COMPLETE, _FAILED = "complete", "failed"


@dataclass(frozen=True)
class CachedEnvironment:
    """A Python environment with the given requirements.

    A failed installation stores its reason, with which tests that need the environment are skipped.
    """

    name: str
    """Of the folder, with all versions that matter."""

    requirements: Sequence[str]
    options: Sequence[str] = ()
    """Of `uv pip install`."""

    variables: Mapping[str, str] = field(default_factory=dict)
    """For the installation, beside those of this process."""

    needs: str = ""
    """A program that the installation needs."""

    limit_seconds: float = 1800
    # Found before a test sets HOME, below which the cache is.
    cache: Path = field(default_factory=cache_folder)

    @property
    def folder(self) -> Path:
        return self.cache / self.name

    def install(self, *further: Sequence[str]) -> None:
        """Install it if needed.

        Args:
            further: commands after the installation; their outputs belong into the folder.
        """
        with locked(self.cache, self.name):
            if (self.folder / _COMPLETE).is_file():
                return
            print(f"installing {self._what} into {self.folder}, once", file=sys.stderr, flush=True)
            failed = self._run(further)
            self.folder.mkdir(exist_ok=True)
            if failed is None:
                (self.folder / _COMPLETE).touch()
            else:
                print(f"cannot install {self._what}: {failed}; its tests are skipped", file=sys.stderr, flush=True)
                (self.folder / _FAILED).write_text(failed)

    def python(self) -> Path:
        """The interpreter; without it, the test is skipped with the reason."""
        if not (self.folder / _COMPLETE).is_file():
            failed = self.folder / _FAILED
            reason = failed.read_text() if failed.is_file() else "not installed yet; `make test` installs it"
            pytest.skip(f"{self._what} is not available: {reason}")
        return self._python

    @property
    def _what(self) -> str:
        return " and ".join(self.requirements)

    @property
    def _python(self) -> Path:
        return self.folder / "bin" / "python"

    def _run(self, further: Sequence[Sequence[str]]) -> str | None:
        """Run all commands; the last line of the error if one fails."""
        if self.needs and shutil.which(self.needs) is None:
            return f"there is no {self.needs}"
        uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
        install = ["nice", uv, "pip", "install", "--quiet", "--python", str(self._python), *self.options]
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(self.folder)],
            [*install, *self.requirements],
            *further,
        ):
            done = subprocess.run(
                command,
                env={**os.environ, **self.variables},
                capture_output=True,
                text=True,
                check=False,
                timeout=self.limit_seconds,
            )
            if done.returncode != 0:
                return next(reversed(done.stderr.strip().splitlines()), f"{command[0]} ended with {done.returncode}")
        return None

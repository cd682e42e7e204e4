"""Wheel and sdist."""

import os
import subprocess
import zipfile
from datetime import datetime
from pathlib import Path


def build_python_packages(tree: Path, committed_at: datetime, target: Path, uv: Path) -> tuple[Path, Path]:
    """Build both from a source tree. The same tree and date give the same bytes.

    Args:
        tree: the source, without ignored files.
        committed_at: date of all files in the packages.
        target: folder of the packages.
        uv: the program.

    Returns:
        Paths of the wheel and of the sdist.

    Raises:
        RuntimeError: they cannot be built.
    """
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(int(committed_at.timestamp()))}
    command = [str(uv), "build", "--quiet", "--no-create-gitignore", "--out-dir", str(target), str(tree)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"uv build: {done.stderr.strip()[-2000:]}")
    return next(target.glob("*.whl")), next(target.glob("*.tar.gz"))


def metadata_of(wheel: Path) -> bytes:
    """The METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA")))

"""Mounts that programs leave behind."""

import subprocess
from pathlib import Path


def unmount_below(folder: Path) -> None:
    """Unmount everything below a folder, the innermost mount first."""
    with Path("/proc/self/mounts").open(encoding="utf-8") as lines:
        mounted = [line.split()[1].replace("\\040", " ") for line in lines]
    for point in reversed(mounted):
        if folder in Path(point).parents:
            subprocess.run(["umount", "--lazy", point], check=False, capture_output=True)

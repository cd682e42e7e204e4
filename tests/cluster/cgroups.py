"""The control groups of a cluster's Pods, version 1 or 2: all are below one group with the cluster's name."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_REMOVAL_LIMIT_SECONDS = 5


@dataclass(frozen=True)
class Cgroups:
    """Control groups below one name."""

    name: str
    root: Path = Path("/sys/fs/cgroup")

    def make(self) -> str:
        """Create the group and return its name for the kubelet."""
        for hierarchy in self._hierarchies():
            folder = hierarchy / self.name
            if self._is_unified:
                _pass_controllers_on(hierarchy)
            folder.mkdir(exist_ok=True)
            if not self._is_unified:
                _fill_cpuset(folder)
        return f"/{self.name}"

    def processes(self) -> Iterator[int]:
        """Ids of all processes in it and in the groups below it."""
        for hierarchy in self._hierarchies():
            for members in (hierarchy / self.name).rglob("cgroup.procs"):
                with suppress(OSError):  # the group was removed meanwhile
                    yield from map(int, members.read_text(encoding="utf-8").split())

    def remove(self) -> None:
        """Remove the group and those below it, which must have no processes."""
        for hierarchy in self._hierarchies():
            top = hierarchy / self.name
            # In this file system, a folder can be removed when its subfolders are gone; its files cannot be removed.
            for folder in sorted((top, *top.rglob("*/")), key=lambda path: len(path.parts), reverse=True):
                _remove(folder)

    @property
    def _is_unified(self) -> bool:
        """Whether the machine has version 2."""
        return (self.root / "cgroup.controllers").exists()

    def _hierarchies(self) -> Iterator[Path]:
        """One for each controller in version 1, one in version 2."""
        if self._is_unified:
            yield self.root
            return
        for folder in self.root.iterdir():
            if not folder.is_symlink() and (folder / "cgroup.procs").exists():
                yield folder


def _pass_controllers_on(hierarchy: Path) -> None:
    """Enable all controllers in the groups below, as systemd does: the kubelet needs them in its root group."""
    controllers = (hierarchy / "cgroup.controllers").read_text(encoding="utf-8").split()
    (hierarchy / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers), encoding="utf-8")


def _fill_cpuset(folder: Path) -> None:
    """Copy CPUs and memory of the parent to a new cpuset of version 1, which has none."""
    for setting in ("cpuset.cpus", "cpuset.mems"):
        file = folder / setting
        if file.exists() and not file.read_text(encoding="utf-8").strip():
            file.write_text((folder.parent / setting).read_text(encoding="utf-8"), encoding="utf-8")


def _remove(folder: Path) -> None:
    deadline = time.monotonic() + _REMOVAL_LIMIT_SECONDS
    while folder.is_dir():
        try:
            folder.rmdir()
        except OSError:  # a process in it is about to end
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)

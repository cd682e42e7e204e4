"""Logs of stages that run on this machine."""

from pathlib import Path

from edgetune_cli.output import detail, verbosity


def log_path(folder: Path, namespace: str, job: str) -> Path:
    """Log of a Job's attempts, also those of earlier runs, in a work folder."""
    return folder / "logs" / namespace / f"{job}.log"


class LogReader:
    """Reads what is added to a log."""

    def __init__(self, path: Path, begin: int = 0) -> None:
        """`begin`: offset of the first byte to read."""
        self.path = path
        self._offset = begin

    def read(self) -> str:
        """The whole lines that were added since the last call."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._offset:  # a new log was begun
                    self._offset = 0
                file.seek(self._offset)
                added = file.read()
        except FileNotFoundError:
            return ""
        whole = added[: added.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.decode("utf-8", errors="replace")


class ShownLogs:
    """Prints what the stages of a run add to their logs, with --verbose only."""

    def __init__(self, folder: Path) -> None:
        """`folder`: the logs of the object's namespace."""
        self._sizes = {path: path.stat().st_size for path in folder.glob("*.log")} if verbosity.verbose else {}
        self._readers: dict[Path, LogReader] = {}

    def show(self, path: Path) -> None:
        """Print what was added to a log since the run began, or since the last call."""
        if not verbosity.verbose:
            return
        reader = self._readers.setdefault(path, LogReader(path, self._sizes.get(path, 0)))
        for line in reader.read().splitlines():
            detail(line)

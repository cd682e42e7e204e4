"""Checkpoints of a training in several ranks: rank 0 moves them, and all ranks of the machine read its downloads."""

from pathlib import Path

from edgetune_jobs.stage import CheckpointCheck, Checkpoints, Ranks, StepSize


class SharedCheckpoints:
    """The store's checkpoints as one of several ranks sees them."""

    def __init__(self, checkpoints: Checkpoints, ranks: Ranks, shared: Path) -> None:
        """
        Args:
            checkpoints: in the store.
            ranks: of the training.
            shared: a folder that all ranks see.
        """
        self._checkpoints = checkpoints
        self._ranks = ranks
        self._link = shared / "checkpoint"

    def save(self, step: int, folder: Path) -> None:
        """Upload a checkpoint of rank 0."""
        self._checkpoints.save(step, folder)

    def restore_latest(self, folder: Path, check: CheckpointCheck | None = None) -> int | None:
        """Rank 0 downloads and checks; `folder` of the others becomes a link to its folder."""
        step: int | None = None
        if self._ranks.rank == 0:
            step = self._checkpoints.restore_latest(folder, check)
            self._link.symlink_to(folder)
        ((found, *_), *_) = self._ranks.gather(-1 if step is None else step)
        if found < 0:
            return None
        if self._ranks.rank:
            folder.rmdir()
            folder.symlink_to(self._link)
        return int(found)

    def read_step_size(self) -> StepSize | None:
        """The step size that an attempt left."""
        return self._checkpoints.read_step_size()

    def write_step_size(self, size: StepSize) -> None:
        """Leave a smaller step size: all ranks that shrink leave the same."""
        self._checkpoints.write_step_size(size)

"""Checkpoints of a training in several ranks: rank 0 saves and selects them, and each node downloads one once."""

from pathlib import Path

from edgetune_jobs.stage import CheckpointCheck, Checkpoints, Ranks, StepSize


class SharedCheckpoints:
    """The store's checkpoints as one of several ranks sees them."""

    def __init__(self, checkpoints: Checkpoints, ranks: Ranks, shared: Path, first: int = 0) -> None:
        """
        Args:
            checkpoints: in the store.
            ranks: of the training.
            shared: a folder that all ranks of this node see.
            first: the lowest rank of this node.
        """
        self._checkpoints = checkpoints
        self._ranks = ranks
        self._link = shared / "checkpoint"
        self._first = first

    def save(self, step: int, folder: Path) -> None:
        """Upload a checkpoint of rank 0."""
        self._checkpoints.save(step, folder)

    def restore_latest(self, folder: Path, check: CheckpointCheck | None = None) -> int | None:
        """Rank 0 downloads and checks, then the first rank of each node; `folder` of the others becomes a link."""
        step: int | None = None
        if self._ranks.rank == 0:
            step = self._checkpoints.restore_latest(folder, check)
        ((found, *_), *_) = self._ranks.gather(-1 if step is None else step)
        if found < 0:
            return None
        is_first = self._ranks.rank == self._first
        if is_first:
            if self._ranks.rank:
                self._checkpoints.restore(int(found), folder)
            self._link.symlink_to(folder)
        self._ranks.gather(0)
        if not is_first:
            folder.rmdir()
            folder.symlink_to(self._link)
        return int(found)

    def restore(self, step: int, folder: Path) -> None:
        """Download the checkpoint of a step."""
        self._checkpoints.restore(step, folder)

    def read_step_size(self) -> StepSize | None:
        """The step size that an attempt left."""
        return self._checkpoints.read_step_size()

    def write_step_size(self, size: StepSize) -> None:
        """Leave a smaller step size: all ranks that shrink leave the same."""
        self._checkpoints.write_step_size(size)

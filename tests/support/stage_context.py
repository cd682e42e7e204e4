"""Contexts for stage bodies that are called without the runtime, with local folders instead of a store."""

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from edgetune_contract.request import FileEntry, Request, Resolved, StoreLocation
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.models.saving import folder_bytes
from edgetune_jobs.stage import CheckpointCheck, Checkpoints, StageContext, StepSize
from edgetune_jobs.store.files import fingerprint
from edgetune_jobs.store.store import DamagedObject


@dataclass
class RecordedProgress:
    """Records a stage's progress, and calls `on_update` with the units done."""

    updates: list[dict[str, Any]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    on_update: Callable[[int], None] | None = None

    def update(self, done: int, total: int, unit: str, **figures: float) -> None:
        self.updates.append({"done": done, "total": total, "unit": unit, **figures})
        if self.on_update is not None:
            self.on_update(done)

    def say(self, message: str) -> None:
        self.said.append(message)


@dataclass
class FolderCheckpoints:
    """Training checkpoints in a folder, as step-<n>/."""

    root: Path
    step_size: StepSize | None = None

    def save(self, step: int, folder: Path) -> None:
        shutil.copytree(folder, self.root / f"step-{step}")

    def restore_latest(self, folder: Path, check: CheckpointCheck | None = None) -> int | None:
        for step in reversed(self.steps()):
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(self.root / f"step-{step}", folder)
            try:
                if check is not None:
                    check(folder, step)
            except DamagedObject:
                self.remove(step)
            else:
                return step
        return None

    def restore(self, step: int, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.root / f"step-{step}", folder)

    def read_step_size(self) -> StepSize | None:
        return self.step_size

    def write_step_size(self, size: StepSize) -> None:
        self.step_size = size

    def remove(self, step: int) -> None:
        """Delete a checkpoint."""
        shutil.rmtree(self.root / f"step-{step}")

    def steps(self) -> list[int]:
        """Steps of the checkpoints, ascending."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.root.glob("step-*"))


@dataclass(frozen=True)
class FolderStreams:
    """Writes streamed files to the folder of all other output."""

    root: Path

    def find_shared(self, path: str, digest: str) -> FileEntry | None:  # noqa: ARG002 - in the artifact's folder
        """A shared file, which is in the folder of the artifact itself."""
        target = self.root / path
        return fingerprint(target).entry(path) if target.is_file() else None

    def create_shared(
        self,
        path: str,
        digest: str,  # noqa: ARG002 - in the artifact's folder
        size: int,
    ) -> AbstractContextManager[BinaryIO]:
        """A file like all others."""
        return self.create(path, size)

    @contextmanager
    def create(self, path: str, size: int) -> Iterator[BinaryIO]:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with target.open("wb") as file:
                yield file
            assert target.stat().st_size == size, f"{path} has {target.stat().st_size} bytes instead of {size}"
        except BaseException:
            target.unlink(missing_ok=True)
            with suppress(OSError):  # not empty
                target.parent.rmdir()
            raise


def stage_context(
    stage: Stage,
    parameters: Parameters,
    folder: Path,
    inputs: Mapping[str, Path],
    *,
    progress: RecordedProgress | None = None,
    checkpoints: Checkpoints | None = None,
    stop: threading.Event | None = None,
    deadline: float | None = None,
    resolved: Resolved | None = None,
) -> StageContext:
    """A context whose output and scratch folders are new folders in `folder`."""
    output, scratch = folder / "output", folder / "scratch"
    output.mkdir(parents=True)
    scratch.mkdir()
    request = Request(
        namespace="default",
        name="test",
        stage=stage,
        digest="0" * 64,
        store=StoreLocation(uri=f"file://{folder}/store"),
        parameters=parameters,
        resolved=resolved or Resolved(base="0" * 64, train="1" * 64),
    )
    candidates = [each.artifact for each in request.formats] if parameters.quantization.is_auto else []
    return StageContext(
        request=request,
        inputs=inputs,
        output=output,
        streams=FolderStreams(output),
        deadline=deadline,
        scratch=scratch,
        progress=progress or RecordedProgress(),
        stop=stop or threading.Event(),
        checkpoints=checkpoints,
        sizes={name: folder_bytes(inputs[name]) for name in candidates if name in inputs},
    )

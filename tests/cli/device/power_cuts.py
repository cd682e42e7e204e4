"""Cuts the power of pulls: python power_cuts.py STORE FOLDER COUNT.

Each pull goes from one version to the next in a process of its own. COUNT of them are killed after a random byte was
received, and others before each change of the disk. Then the device must have one of the two versions whole, and the
next pull must succeed.
"""

import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgetune_cli.device import command, folder, origins, transfer
from edgetune_contract.digest import pointer_key
from edgetune_contract.version import VersionDocument
from edgetune_jobs.store.files import fingerprint
from edgetune_jobs.store.folder_store import LocalFolderStore

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from support.published import MODEL, PublishedModel


class Cut:
    """Kills this process after so many bytes of the model, or before a change of the disk by its number."""

    def __init__(self, *, after_bytes: int | None = None, before_change: int | None = None) -> None:
        self.bytes, self.changes = after_bytes, before_change

    def install(self) -> None:
        """Count each received byte of the model, and each change of the disk."""
        origins._CHUNK_BYTES = 1
        changes: list[tuple[Any, str]] = [(folder, "sync"), (transfer, "sync"), (shutil, "rmtree")]
        methods = ("rename", "replace", "symlink_to", "hardlink_to", "unlink", "chmod", "mkdir", "write_bytes")
        for owner, name in [*changes, *((Path, name) for name in methods)]:
            setattr(owner, name, self._before(getattr(owner, name)))
        read = origins._read

        def counted(file: Any, position: int) -> origins.Chunks:
            for found, chunk in read(file, position):
                if "/models/" not in file.name:  # cuts within the document would leave few for the model
                    self.bytes = self._spend(self.bytes)
                yield found, chunk

        origins._read = counted

    def _before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            self.changes = self._spend(self.changes)
            return call(*arguments, **options)

        return called

    @staticmethod
    def _spend(left: int | None) -> int | None:
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return None if left is None else left - 1


def pull(uri: str, device: Path, cut: Cut | None = None) -> int:
    """Pull in a child process; its exit code, negative if it was killed."""
    child = os.fork()
    if not child:
        if cut is not None:
            cut.install()
        try:
            command._pull_once(folder.DeviceFolder(device), command._parse(uri, None))
            command._announce(folder.DeviceFolder(device), "")
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def version_at(link: Path, documents: dict[str, VersionDocument]) -> VersionDocument | None:
    """The version that a link leads to, which must be whole; None without a link."""
    if not link.is_symlink():
        return None
    document = documents[link.resolve().name.split("-")[0]]
    found = {path.name: fingerprint(path).sha256 for path in link.iterdir()}
    assert found == {each.path: each.sha256 for each in document.edge.files}, f"{link} is not whole"
    return document


def main() -> None:
    """Cut the power of COUNT pulls at a byte, and then of one pull before each change of the disk."""
    store, place, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    model, device = PublishedModel(LocalFolderStore(store), place / "cut-work"), place / "cut-device"
    uri, dice = f"{store}/{pointer_key(MODEL)}", random.Random(3)
    documents: dict[str, VersionDocument] = {}
    before: VersionDocument | None = None

    def is_cut(cut: Cut) -> bool:
        nonlocal before
        after = model.publish()
        documents[after.version[:12]] = after
        ended = pull(uri, device, cut)
        assert ended in (0, -signal.SIGKILL), ended
        found = version_at(device / "current", documents)
        assert found in ((after,) if ended == 0 else (before, after)), "neither the old nor the new version"
        assert pull(uri, device) == 0
        assert version_at(device / "current", documents) is after
        assert version_at(device / "previous", documents) in (before, after)
        before = after
        return ended != 0

    assert not is_cut(Cut())
    first, second = (set(model.publish().edge.files) for _ in range(2))
    new = sum(each.bytes for each in second - first)
    at_bytes = sum(is_cut(Cut(after_bytes=dice.randrange(new))) for _ in range(count))
    changes = 0
    while is_cut(Cut(before_change=changes)):
        changes += 1
    print(f"{at_bytes} power cuts at a byte, {changes} before a change of the disk")


if __name__ == "__main__":
    main()

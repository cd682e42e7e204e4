"""Exports to a folder or a tar archive, which appear with their last byte or not at all."""

import secrets
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.export.bundle import Bundle
from edgetune_jobs.store.files import disk_errors, require_free_space, sync

_MODE = 0o644


def export_folder(bundle: Bundle, target: Path) -> None:
    """Write a model folder: what from_pretrained, llama.cpp and Ollama read, and what the Hugging Face hub takes.

    Args:
        bundle: the model.
        target: the folder, which does not exist or is empty.

    Raises:
        InvalidInput: it has files already.
        TransientError: the disk is full, or the store does not answer.
        DamagedObject: a file has other content than the version says.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InvalidInput(f"{target} exists already: name a new folder")
    with _draft_of(target, bundle.bytes) as draft:
        draft.mkdir()
        for entry in bundle.entries:
            path = draft / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            bundle.place(entry, path)
            path.chmod(_MODE)
            sync(path)
        draft.replace(target)


def export_tar(bundle: Bundle, target: Path) -> None:
    """Write a tar archive: the same bytes for the same version, wherever and whenever it is written.

    Args:
        bundle: the model.
        target: the archive, which does not exist.

    Raises:
        InvalidInput: it exists.
        TransientError: the disk is full, or the store does not answer.
        DamagedObject: a file has other content than the version says.
    """
    if target.exists():
        raise InvalidInput(f"{target} exists already: name a new file")
    largest = max(entry.bytes for entry in bundle.entries)
    with _draft_of(target, bundle.bytes + largest) as draft, _scratch_beside(target) as scratch:
        with disk_errors(draft, bundle.bytes), tarfile.open(draft, "x", format=tarfile.PAX_FORMAT) as archive:
            for entry in bundle.entries:
                path = scratch / "file"
                bundle.place(entry, path)
                member = tarfile.TarInfo(entry.path)
                member.size, member.mode = entry.bytes, _MODE  # owner and times stay 0
                with path.open("rb") as file:
                    archive.addfile(member, file)
        sync(draft)
        draft.replace(target)


@contextmanager
def _draft_of(target: Path, size: int) -> Iterator[Path]:
    """A path beside the target, in the same file system; what is left there is removed."""
    parent = target.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    require_free_space(parent, size)
    draft = parent / f".{target.name}-{secrets.token_hex(4)}.partial"
    try:
        yield draft
        sync(parent)
    finally:
        if draft.is_dir():
            shutil.rmtree(draft, ignore_errors=True)
        else:
            draft.unlink(missing_ok=True)


@contextmanager
def _scratch_beside(target: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=".edgetune-export-", dir=target.absolute().parent) as folder:
        yield Path(folder)

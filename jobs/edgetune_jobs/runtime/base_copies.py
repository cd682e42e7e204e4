"""Copies of base models in the store: of the hub, so that only prepare needs it, and text parts of multimodal models.

sources/<digest>/<attempt>/…files…      sources/<digest>/manifest.json, written last
"""

import secrets
from collections.abc import Callable
from pathlib import Path

from edgetune_contract.digest import MANIFEST
from edgetune_contract.request import FileEntry
from edgetune_jobs.errors import BASE_FIELD, HOW_TO_RETRY, InvalidInput, TransientError
from edgetune_jobs.models.folder import SourceModelFolder, base_label
from edgetune_jobs.models.weights import used_files
from edgetune_jobs.stage import Progress
from edgetune_jobs.store.files import Fingerprint
from edgetune_jobs.store.sources.source import Source
from edgetune_jobs.store.store import (
    DamagedObject,
    FileList,
    Store,
    clean_up_attempts,
    files_below,
    how_to_recreate,
    read_model,
    uri_of,
    write_model_once,
)
from edgetune_jobs.tensors.text_model import TextModel


def mirror_model(
    store: Store, source: Source, progress: Progress, convert: Callable[[Source], Source] | None = None
) -> None:
    """Copy the files of a model that stages use to the store, unless they are already there.

    Args:
        store: the store.
        source: the model.
        progress: receives the number of files.
        convert: called if there is no copy, returns the model that is copied under the digest of `source`.

    Raises:
        InvalidInput: the model has no weights.
    """
    folder = _folder(source.digest)
    if read_model(store, f"{folder}/{MANIFEST}", FileList) is not None:
        return
    source = source if convert is None else convert(source)
    paths = used_files(SourceModelFolder(source, base_label(source.uri)))
    attempt = secrets.token_hex(8)
    entries = []
    for number, path in enumerate(paths, start=1):
        progress.update(number - 1, len(paths), "files")
        progress.say(f"copying {path} of {source.uri} to the store")
        sent = _send(store, source, path, f"{folder}/{attempt}/{path}")
        entries.append(sent.entry(f"{attempt}/{path}"))
    progress.update(len(paths), len(paths), "files")
    manifest = FileList(files=tuple(entries))
    committed = write_model_once(store, f"{folder}/{MANIFEST}", manifest)
    clean_up_attempts(store, folder, attempt, won=committed == manifest)


def _send(store: Store, source: Source, path: str, key: str) -> Fingerprint:
    """Copy one file; the fingerprint of the sent bytes."""
    if not isinstance(source, TextModel):
        return store.upload_file(source.fetch([path]) / path, key)
    size = next(file.bytes for file in source.files if file.path == path)
    with store.create_file(key, size) as written:
        source.write_to(path, written)
    return written.fingerprint


def find_mirror(store: Store, base_digest: str, uri: str) -> tuple[str, tuple[FileEntry, ...]]:
    """Key of the folder with the copy of a model, and its files with paths relative to it.

    Raises:
        InvalidInput: there is no copy.
    """
    found = _find(store, base_digest)
    if found is None:
        missing = uri_of(store, _folder(base_digest))
        raise InvalidInput(f"{BASE_FIELD}.uri: the copy of {uri} is missing from {missing}; {HOW_TO_RETRY}")
    return found


def fetch_mirror(store: Store, base_digest: str, uri: str, target: Path) -> Path:
    """A local folder with the files of a model that prepare copied to the store.

    Raises:
        InvalidInput: there is no copy.
        DamagedObject: a file has changed since it was copied.
    """
    folder, files = find_mirror(store, base_digest, uri)
    try:
        return store.fetch_folder(folder, files, target)
    except DamagedObject as error:
        advice = how_to_recreate(store, _folder(base_digest))
        raise DamagedObject(f"the copy of {uri}: {error}; {advice}") from error


def mirror_uri(store: Store, base_digest: str) -> str:
    """URI of the folder with the copy of a model.

    Raises:
        TransientError: there is no copy.
    """
    found = _find(store, base_digest)
    if found is None:
        raise TransientError(f"{uri_of(store, _folder(base_digest))} was removed while prepare ran; try again")
    folder, _ = found
    return uri_of(store, folder)


def _find(store: Store, base_digest: str) -> tuple[str, tuple[FileEntry, ...]] | None:
    """Key of the folder of a copy, and its files with paths relative to it; None if there is no copy."""
    folder = _folder(base_digest)
    mirrored = read_model(store, f"{folder}/{MANIFEST}", FileList)
    if mirrored is None or not mirrored.files:
        return None
    attempt = mirrored.files[0].path.partition("/")[0]
    return f"{folder}/{attempt}", files_below(mirrored.files, attempt)


def _folder(base_digest: str) -> str:
    return f"sources/{base_digest}"

"""The folder of one model on a device. A power cut at any moment leaves the version working that was current.

    current -> versions/<version>-<content>     the model's files
    previous -> versions/<version>-<content>    the version before it, for a rollback without a network
    versions/<version>-<content>/
    versions/<version>-<content>.json           its document
    versions/<version>-<content>.provenance     the signed provenance, which covers the document
    versions/<version>-<content>.sig            the signature of its files, for `model_signing verify key`
    trusted-keys.pem                            public keys, one of which must have signed what becomes current
    incoming/                                   files that are not complete, by their SHA-256
    state.json                                  what a rollback left, and what `--on-change` has not been called for
    lock

<version> is the first 12 digits of the version, <content> of the SHA-256 of the list of files. A version's folder
appears with all its files, by a rename; links are replaced, which is atomic too. Another card, or a file that was lost,
replaces the one in the folder, which may be the current one.
"""

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from edgetune_cli.device.origins import PullError
from edgetune_cli.device.signatures import Signatures, SignedVersion
from edgetune_contract.request import FileEntry
from edgetune_contract.schema import Model
from edgetune_contract.version import EdgeModel, VersionDocument
from edgetune_jobs.store.files import Fingerprint, fingerprint, sync

_DIGITS = 12
# What may be removed: the folder may have files of others.
_VERSION = re.compile(rf"[0-9a-f]{{{_DIGITS}}}-[0-9a-f]{{{_DIGITS}}}(\.json|\.provenance|\.sig)?")
_INCOMING = re.compile("[0-9a-f]{64}")
_PROVENANCE, _SIGNATURE = ".provenance", ".sig"
_READ_ONLY = 0o444


class _State(Model):
    rolled_back: str = ""
    """Name of the version that was left by a rollback, and is not pulled again."""

    changed: str = ""
    """Name of the version that is or becomes current, while its change was not announced."""


class DeviceFolder:
    """The folder; use it inside `locked`."""

    def __init__(self, folder: Path, new_keys: bytes = b"") -> None:
        """The folder, with public keys in PEM that it trusts instead of its own once they verified a version."""
        self.folder = folder
        self._new_keys = new_keys
        self.incoming = folder / "incoming"
        self._versions = folder / "versions"
        self._state_file = folder / "state.json"
        self._keys_file = folder / "trusted-keys.pem"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder, and keep other processes from changing it.

        Raises:
            PullError: another process changes it, or it cannot be created, read or changed.
        """
        import fcntl

        try:
            self.incoming.mkdir(parents=True, exist_ok=True)
            self._versions.mkdir(exist_ok=True)
            lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise PullError(f"{error.filename}: {error.strerror}; choose another folder") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise PullError(f"another edgetune pull is using {self.folder}") from None
            try:
                yield
            except OSError as error:
                raise PullError(f"{error.filename or self.folder}: {error.strerror or error}") from error

    @property
    def current(self) -> str:
        """Name of the current version; empty if there is none."""
        return self._target("current")

    @property
    def previous(self) -> str:
        """Name of the version before it; empty if there is none."""
        return self._target("previous")

    @property
    def rolled_back(self) -> str:
        """Name of the version that a rollback left; empty if the newest version may be pulled."""
        return self._state().rolled_back

    @property
    def unannounced(self) -> str:
        """Name of the current version if its change was not announced; else empty."""
        changed = self._state().changed
        return changed if changed == self.current else ""

    @property
    def trusted_keys(self) -> bytes:
        """Public keys in PEM, one of which must have signed what becomes current; empty if nothing must be signed.

        Raises:
            PullError: there is a file of keys without a key.
        """
        if self._new_keys:
            return self._new_keys
        try:
            keys = self._keys_file.read_bytes()
        except FileNotFoundError:
            return b""
        if b"-----BEGIN PUBLIC KEY-----" not in keys:
            raise PullError(f"{self._keys_file} has no public key: give the keys again with --verify-key")
        return keys

    def keep_keys(self) -> None:
        """Trust the new keys from now on, and no others, because a version was verified by them.

        They replace the folder's once: another process may change those afterwards.
        """
        keys, self._new_keys = self._new_keys, b""
        if keys and (not self._keys_file.is_file() or self._keys_file.read_bytes() != keys):
            self._write(self._keys_file, keys)

    def path(self, name: str) -> Path:
        """Folder of a version's files."""
        return self._versions / name

    def document(self, name: str) -> VersionDocument:
        """Document of an installed version.

        Raises:
            PullError: it is damaged.
        """
        file = self._document_file(name)
        try:
            return VersionDocument.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as error:
            raise PullError(f"{file} is damaged: {str(error).splitlines()[0]}; remove {self.path(name)}") from error

    def is_kept(self, name: str, document: bytes, signatures: Signatures | None) -> bool:
        """Whether a version is installed with this document, and with these signatures unless they are None."""
        file = self._document_file(name)
        is_known = signatures is None or signatures == self.signatures(name)
        return is_known and file.is_file() and file.read_bytes() == document

    def signatures(self, name: str) -> Signatures | None:
        """Signatures of an installed version; None if it has none."""
        files = [self._versions / f"{name}{suffix}" for suffix in (_PROVENANCE, _SIGNATURE)]
        if not all(file.is_file() for file in files):
            return None
        provenance, signature = (file.read_bytes() for file in files)
        return Signatures(provenance, signature)

    def signed_version(self, name: str) -> SignedVersion:
        """An installed version, as its signatures cover it.

        Raises:
            PullError: its document is damaged.
        """
        document = self.document(name)
        content = name.partition("-")[2]
        edge = next((edge for edge in document.edges if edge.artifact.sha256.startswith(content)), None)
        if edge is None:
            raise PullError(f"{self._document_file(name)} is damaged: it does not have {name}")
        return SignedVersion(document, self._document_file(name).read_bytes(), edge)

    def is_whole(self, name: str, edge: EdgeModel) -> bool:
        """Whether a version is installed and all its files are unchanged."""
        return self._document_file(name).is_file() and all(
            _has(self.path(name) / each.path, each) for each in edge.all_files
        )

    def has_sizes(self, name: str, edge: EdgeModel) -> bool:
        """Whether all files of a version are there with their sizes; their content is not read."""
        files = [(self.path(name) / each.path, each.bytes) for each in edge.all_files]
        return all(file.is_file() and file.stat().st_size == size for file, size in files)

    def reuse(self, entry: FileEntry, target: Path) -> bool:
        """Take a file from an installed version, without a copy if the file system allows it; False if none has it."""
        for name in filter(None, (self.current, self.previous)):
            for found in self._files_like(name, entry):
                if _has(found, entry):
                    target.unlink(missing_ok=True)
                    try:
                        target.hardlink_to(found)
                    except OSError:
                        shutil.copyfile(found, target)
                        sync(target)
                    return True
        return False

    def install(self, name: str, version: SignedVersion, signatures: Signatures | None) -> None:
        """Make a version's folder of its files in `incoming`, which all are on the disk."""
        building = self.incoming / "building"
        shutil.rmtree(building, ignore_errors=True)
        for entry in version.edge.all_files:
            place = building / entry.path
            place.parent.mkdir(parents=True, exist_ok=True)
            file = self.incoming / entry.sha256
            try:
                place.hardlink_to(file)  # several files may have the same content
            except OSError:
                shutil.copyfile(file, place)
                sync(place)
            place.chmod(_READ_ONLY)
        for folder, _, _ in os.walk(building):
            sync(Path(folder))
        if self.path(name).is_dir():  # after a power cut, the old document shows the next pull that it is not done
            for entry in version.edge.all_files:
                place = self.path(name) / entry.path
                place.parent.mkdir(parents=True, exist_ok=True)
                (building / entry.path).replace(place)
                sync(place.parent)
            shutil.rmtree(building, ignore_errors=True)
            self.keep(name, version.data, signatures)
        else:
            self.keep(name, version.data, signatures)
            building.rename(self.path(name))
            sync(self._versions)
        self.discard_incoming(keep=())

    def keep(self, name: str, document: bytes, signatures: Signatures | None) -> None:
        """Write a version's document, and its signatures if there are any."""
        self._write(self._document_file(name), document)
        if signatures is not None:
            self._write(self._versions / f"{name}{_SIGNATURE}", signatures.files)
            self._write(self._versions / f"{name}{_PROVENANCE}", signatures.provenance)

    def discard_incoming(self, keep: Collection[str]) -> None:
        """Remove files in `incoming` whose SHA-256 is not in `keep`, such as those of a version that was replaced."""
        for path in self.incoming.iterdir():
            if _INCOMING.fullmatch(path.name) and path.name not in keep:
                path.unlink()

    def switch(self, name: str) -> None:
        """Make a version current, and the current one previous; then remove all others."""
        self._write_state(_State(changed=name))
        current = self.current
        if current and current != name:
            self._link("previous", current)
        self._link("current", name)
        self._remove_others()

    def roll_back(self) -> str:
        """Make the previous version current again; its name. The version that is left is not pulled again.

        Raises:
            PullError: there is no previous version.
        """
        left, name = self.current, self.previous
        if not name or name == left:
            raise PullError(f"{self.folder} has no previous version to go back to")
        forward = self.rolled_back == name  # a second rollback takes the first one back
        self._write_state(_State(rolled_back="" if forward else left, changed=name))
        self._link("current", name)
        self._link("previous", left)
        return name

    def announced(self, name: str) -> None:
        """Remember that a version was announced, unless another has become current since."""
        if self.unannounced == name:
            self._write_state(self._state().model_copy(update={"changed": ""}))

    def _target(self, link: str) -> str:
        path = self.folder / link
        if not path.is_symlink():
            if path.exists():
                raise PullError(f"{path} is not a link that edgetune pull made; remove it, or choose another folder")
            return ""
        target = path.readlink()
        return target.name if (self.folder / target).is_dir() else ""

    def _files_like(self, name: str, entry: FileEntry) -> list[Path]:
        with suppress(PullError):
            edges = self.document(name).edges
            return [
                self.path(name) / each.path for edge in edges for each in edge.all_files if each.sha256 == entry.sha256
            ]
        return []

    def _document_file(self, name: str) -> Path:
        return self._versions / f"{name}.json"

    def _state(self) -> _State:
        try:
            return _State.model_validate_json(self._state_file.read_bytes())
        except FileNotFoundError:
            return _State()
        except ValidationError as error:
            raise PullError(f"{self._state_file} is damaged: {str(error).splitlines()[0]}; remove it") from error

    def _write_state(self, state: _State) -> None:
        self._write(self._state_file, state.model_dump_json().encode())

    def _write(self, path: Path, data: bytes) -> None:
        part = self.incoming / "part"
        part.write_bytes(data)
        sync(part)
        part.replace(path)
        sync(path.parent)

    def _link(self, link: str, name: str) -> None:
        new = self.incoming / link
        new.unlink(missing_ok=True)
        new.symlink_to(Path(self._versions.name) / name)
        new.replace(self.folder / link)
        sync(self.folder)

    def _remove_others(self) -> None:
        kept = {self.current, self.previous}
        for path in self._versions.iterdir():
            if _VERSION.fullmatch(path.name) and path.name.partition(".")[0] not in kept:
                _remove(path)


def name_of(document: VersionDocument, edge: EdgeModel) -> str:
    """Name of a version's edge model on devices."""
    return f"{document.version[:_DIGITS]}-{edge.artifact.sha256[:_DIGITS]}"


def _has(path: Path, entry: FileEntry) -> bool:
    has_size = path.is_file() and path.stat().st_size == entry.bytes
    return has_size and fingerprint(path) == Fingerprint.of(entry)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

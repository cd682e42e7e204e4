"""Exports to folders and tar archives: verified, reproducible, and whole or not there."""

import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgetune_contract.version import VersionDocument
from edgetune_jobs.errors import InvalidInput, StageError, TransientError
from edgetune_jobs.publishing.addresses import ModelAddress
from edgetune_jobs.publishing.export.bundle import (
    SIGNATURE,
    Bundle,
    bundle_of_device,
    bundle_of_store,
    is_device_folder,
)
from edgetune_jobs.publishing.export.local import export_folder, export_tar
from edgetune_jobs.store.files import Fingerprint, fingerprint
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.store import DamagedObject
from support.devices import address, pull
from support.published import MODEL, PublishedModel
from support.signing import make_key, verified_by_model_signing

Export = Callable[[Bundle, Path], None]


@pytest.fixture
def model(tmp_path: Path) -> PublishedModel:
    return PublishedModel(LocalFolderStore((tmp_path / "store").as_uri()), tmp_path / "local", has_cards=True)


def bundle_of(model: PublishedModel) -> Bundle:
    return bundle_of_store(model.store, ModelAddress(model.store.uri, MODEL, None), None)


def files_of(document: VersionDocument) -> dict[str, Fingerprint]:
    return {entry.path: Fingerprint.of(entry) for entry in document.edge.all_files}


def files_in(folder: Path) -> dict[str, Fingerprint]:
    return {path.relative_to(folder).as_posix(): fingerprint(path) for path in folder.rglob("*") if path.is_file()}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(model: PublishedModel, document: VersionDocument) -> None:
    """Change a byte of the last file that is copied."""
    path = Path(model.store.uri.removeprefix("file://")) / document.edge.key / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_folder_has_the_models_files_and_its_card(model: PublishedModel, tmp_path: Path) -> None:
    document = model.publish()

    export_folder(bundle_of(model), tmp_path / "out" / "model")

    assert files_in(tmp_path / "out" / "model") == files_of(document)
    assert (tmp_path / "out" / "model" / "README.md").read_text().startswith("---\n")
    assert names_in(tmp_path / "out") == ["model"]


def test_a_pulled_folder_is_exported_without_its_store(model: PublishedModel, tmp_path: Path) -> None:
    document = model.publish()
    device = tmp_path / "device"
    pull(address(model), device)

    for number, place in enumerate((device, device / "current", (device / "current").resolve())):
        assert is_device_folder(place)
        export_folder(bundle_of_device(place, None), tmp_path / str(number))
        assert files_in(tmp_path / str(number)) == files_of(document)
    assert not is_device_folder(tmp_path)


def test_a_signed_model_is_exported_with_its_signature_which_model_signing_checks(
    model: PublishedModel, tmp_path: Path
) -> None:
    key = make_key(tmp_path / "key")
    model.signing_key = key.private
    document = model.publish()
    pull(address(model), tmp_path / "device", "--verify-key", key.public)

    export_folder(bundle_of(model), tmp_path / "from-store")
    export_folder(bundle_of_device(tmp_path / "device", None), tmp_path / "from-device")
    export_tar(bundle_of(model), tmp_path / "model.tar")

    assert files_in(tmp_path / "from-store") == files_in(tmp_path / "from-device")
    assert files_in(tmp_path / "from-store").keys() == files_of(document).keys() | {SIGNATURE}
    with tarfile.open(tmp_path / "model.tar") as archive:
        assert SIGNATURE in archive.getnames()
    for folder in (tmp_path / "from-store", tmp_path / "from-device"):
        code, said = verified_by_model_signing(folder, folder / SIGNATURE, key)
        assert code == 0, said
    (tmp_path / "from-device" / "config.json").write_text("{}")
    assert verified_by_model_signing(tmp_path / "from-device", tmp_path / "from-device" / SIGNATURE, key)[0] == 1


def test_an_archive_has_the_same_bytes_from_wherever_and_whenever_it_is_written(
    model: PublishedModel, tmp_path: Path
) -> None:
    document = model.publish()
    pull(address(model), tmp_path / "device")

    export_tar(bundle_of(model), tmp_path / "one.tar")
    os.utime(tmp_path / "one.tar", (0, 0))
    export_tar(bundle_of_device(tmp_path / "device", None), tmp_path / "other.tar")

    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "other.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as archive:
        members = archive.getmembers()
        archive.extractall(tmp_path / "extracted", filter="data")
    assert [member.name for member in members] == sorted(files_of(document))
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
        (0, 0, 0, "", 0o644)
    }
    assert files_in(tmp_path / "extracted") == files_of(document)
    assert not [name for name in names_in(tmp_path) if name.startswith(".")]


@pytest.mark.parametrize(("export", "name"), [(export_folder, "out"), (export_tar, "out.tar")])
def test_a_damaged_file_leaves_nothing(export: Export, name: str, model: PublishedModel, tmp_path: Path) -> None:
    damage(model, model.publish())
    before = names_in(tmp_path)

    with pytest.raises(DamagedObject, match=r"model\.safetensors is damaged"):
        export(bundle_of(model), tmp_path / name)

    assert names_in(tmp_path) == before


def test_a_damaged_file_of_a_device_is_found(model: PublishedModel, tmp_path: Path) -> None:
    model.publish()
    pull(address(model), tmp_path / "device")
    weights = tmp_path / "device" / "current" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(data)

    with pytest.raises(DamagedObject, match=r"model\.safetensors is damaged"):
        export_folder(bundle_of_device(tmp_path / "device", None), tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("export", "name"), [(export_folder, "out"), (export_tar, "out.tar")])
def test_what_exists_is_not_overwritten(export: Export, name: str, model: PublishedModel, tmp_path: Path) -> None:
    model.publish()
    target = tmp_path / name
    export(bundle_of(model), target)

    with pytest.raises(InvalidInput, match="exists already: name a new"):
        export(bundle_of(model), target)


@pytest.mark.parametrize(("export", "name"), [(export_folder, "out"), (export_tar, "out.tar")])
def test_a_disk_without_room_is_left_alone(
    export: Export,
    name: str,
    model: PublishedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model.publish()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))

    with pytest.raises(TransientError, match="the disk is full: 10 bytes are free"):
        export(bundle_of(model), tmp_path / name)

    assert not (tmp_path / name).exists()


def test_a_version_that_its_gates_refused_is_not_exported(model: PublishedModel) -> None:
    refused = model.publish(refusals=("the score is too low",))

    with pytest.raises(InvalidInput, match="its gates refused: the score is too low"):
        bundle_of_store(model.store, ModelAddress(model.store.uri, MODEL, refused.version), None)


def test_a_file_name_that_leaves_the_folder_is_refused(model: PublishedModel, tmp_path: Path) -> None:
    document = model.publish()
    outside = document.edge.cards[0].model_copy(update={"path": "../README.md"})
    changed = document.model_copy(update={"edge": document.edge.model_copy(update={"cards": (outside,)})})
    pointer = tmp_path / "store" / "models" / MODEL / "latest.json"
    pointer.write_text(changed.model_dump_json(exclude_none=True))

    with pytest.raises(StageError, match=r"invalid file name '../README\.md'"):
        bundle_of(model)

"""`edgetune pull --verify-key`: what is signed becomes current, and nothing else, now and with every later pull."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.digest import pointer_key, provenance_key, signature_key, signatures_key, version_key
from edgetune_contract.version import VersionDocument
from edgetune_jobs.store.s3.store import S3Store
from edgetune_jobs.store.store import Store
from support.devices import WEIGHTS, address, allow_everybody_to_read, is_version, pull, refused
from support.fault_proxy import FaultProxy
from support.published import EDGE, MODEL, PublishedModel
from support.signing import KeyFiles, check_by_model_signing, make_key, verified_by_model_signing
from support.versitygw import S3Server


@pytest.fixture
def key(tmp_path: Path) -> KeyFiles:
    """The publisher's key."""
    return make_key(tmp_path / "key")


@pytest.fixture
def signed(model: PublishedModel, key: KeyFiles) -> PublishedModel:
    """A model whose versions are signed."""
    return replace(model, signing_key=key.private, has_cards=True)


def signature_of(device: Path) -> Path:
    """The signature beside the current version's folder."""
    folder = (device / "current").resolve()
    return folder.with_name(f"{folder.name}.sig")


def test_model_signing_verifies_what_pull_made(signed: PublishedModel, key: KeyFiles, device: Path) -> None:
    document = signed.publish()

    pull(address(signed), device, "--verify-key", key.public)

    assert is_version(device, document)
    folder = (device / "current").resolve()
    assert verified_by_model_signing(folder, signature_of(device), key) == (0, "Verification succeeded\n")
    weights = folder / WEIGHTS
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    code, said = verified_by_model_signing(folder, signature_of(device), key)
    assert (code, "Signature mismatch" in said, WEIGHTS in said) == (1, True, True)


def test_a_bucket_and_a_server_are_verified_like_a_folder(
    s3_server: S3Server, s3_prefix: str, s3_proxy: FaultProxy, key: KeyFiles, device: Path, tmp_path: Path
) -> None:
    allow_everybody_to_read(s3_server)
    store: Store = S3Store(s3_server.location(s3_prefix).uri, s3_server.client())
    model = PublishedModel(store, tmp_path / "work", signing_key=key.private)
    document = model.publish()
    uri = address(model).replace("s3://", f"{s3_proxy.endpoint}/")

    pull(uri, device, "--verify-key", key.public)
    requests = len(s3_proxy.requests)
    assert is_version(device, document)
    assert "up to date" in pull(uri, device)
    assert len(s3_proxy.requests) == requests + 1, "the device has the signatures of its version"

    model.signing_key = None
    model.publish()
    assert "has no signature at" in refused(uri, device)
    assert is_version(device, document)


@dataclass(frozen=True)
class Stored:
    """A folder with a store, whose two newest versions are signed."""

    root: Path
    first: VersionDocument
    second: VersionDocument

    def path(self, key: str) -> Path:
        return self.root / key

    @property
    def provenance(self) -> Path:
        return self.path(provenance_key(MODEL, self.second.version))

    @property
    def files(self) -> Path:
        return self.path(signature_key(MODEL, self.second.version, EDGE))

    def change_document(self, change: Callable[[dict[str, Any]], object]) -> None:
        for key in (pointer_key(MODEL), version_key(MODEL, self.second.version)):
            document = json.loads(self.path(key).read_bytes())
            change(document)
            self.path(key).write_text(json.dumps(document))


def another_signature(stored: Stored) -> None:
    shutil.copytree(
        stored.path(signatures_key(MODEL, stored.first.version)),
        stored.path(signatures_key(MODEL, stored.second.version)),
        dirs_exist_ok=True,
    )


TAMPERED: dict[str, tuple[Callable[[Stored], object], str]] = {
    "weights": (lambda s: (s.root / s.second.edge.key / WEIGHTS).write_bytes(b"x" * 200), "is damaged: it has"),
    "scores": (lambda s: s.change_document(lambda d: d["scores"].update(edge=1.0)), "was changed after it was signed"),
    "refusals": (lambda s: s.change_document(lambda d: d.update(refusals=["x"])), "was changed after it was signed"),
    "no signature": (
        lambda s: shutil.rmtree(s.path(signatures_key(MODEL, s.second.version))),
        "has no signature at",
    ),
    "only the signature of the files": (lambda s: s.provenance.unlink(), "has no signature at"),
    "only the provenance": (lambda s: s.files.unlink(), "has no signature at"),
    "signature of another version": (another_signature, "is the signature of another version, models/sensor-faults"),
    "signature of other files": (
        lambda s: shutil.copy(s.path(signature_key(MODEL, s.first.version, EDGE)), s.files),
        "is the signature of other files than those of edge-bnb-int8",
    ),
    "cut signature": (lambda s: s.files.write_bytes(s.files.read_bytes()[:-9]), "is damaged: it is not a signature"),
    "endless signature": (lambda s: s.files.write_bytes(bytes(17 * 2**20)), "is damaged: it has more than 16,777,216"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_changed_is_named_and_the_current_version_stays(
    what: str, signed: PublishedModel, key: KeyFiles, device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the endless signature has many small chunks
    change, message = TAMPERED[what]
    first = signed.publish()
    pull(address(signed), device, "--verify-key", key.public)
    stored = Stored(tmp_path / "store", first, signed.publish())
    change(stored)

    said = refused(address(signed), device)

    assert message in said, said
    assert is_version(device, first)
    assert not any(path.name.startswith(stored.second.version[:12]) for path in (device / "versions").iterdir())


def test_nothing_is_downloaded_of_a_version_by_another_key(
    signed: PublishedModel, device: Path, tmp_path: Path
) -> None:
    signed.publish()

    said = refused(address(signed), device, "--verify-key", make_key(tmp_path / "other").public)

    assert "is signed by another key: " in said
    assert "give all trusted keys again: --verify-key OLD --verify-key NEW" in said
    assert not (device / "current").exists()
    assert not (device / "trusted-keys.pem").exists()
    assert list((device / "incoming").iterdir()) == []


def test_a_device_that_once_required_a_signature_requires_it_with_every_later_pull(
    signed: PublishedModel, key: KeyFiles, device: Path
) -> None:
    first = signed.publish()
    pull(address(signed), device, "--verify-key", key.public)
    signed.signing_key = None
    signed.publish()

    assert "has no signature at" in refused(address(signed), device)
    assert is_version(device, first)

    signed.signing_key = key.private
    third = signed.publish()
    pull(address(signed), device)
    assert is_version(device, third)


def test_a_publisher_changes_its_key_while_devices_trust_both(
    signed: PublishedModel, key: KeyFiles, device: Path, tmp_path: Path
) -> None:
    new, uri = make_key(tmp_path / "new"), address(signed)
    signed.publish()
    pull(uri, device, "--verify-key", key.public)
    pull(uri, device, "--verify-key", key.public, "--verify-key", new.public)
    signed.signing_key = new.private
    second = signed.publish()

    pull(uri, device)
    assert is_version(device, second)

    pull(uri, device, "--verify-key", new.public)
    signed.signing_key = key.private
    signed.publish()
    assert "is signed by another key: " in refused(uri, device)
    assert is_version(device, second)


def test_a_watch_gives_its_keys_once(
    signed: PublishedModel, key: KeyFiles, device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, uri = make_key(tmp_path / "new"), address(signed)
    signed.publish()
    keys = ("--verify-key", key.public)

    def between_looks() -> Iterator[None]:
        pull(uri, device, *keys, "--verify-key", new.public)
        signed.signing_key = new.private
        second = signed.publish()
        yield
        assert is_version(device, second)
        sys.exit()

    looks = between_looks()
    monkeypatch.setattr(time, "sleep", lambda _: next(looks))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # of the tests' own process

    pull(uri, device, *keys, "--watch", "1h")

    assert (device / "trusted-keys.pem").read_bytes() == key.public.read_bytes() + new.public.read_bytes()


@pytest.mark.parametrize("rollback", [False, True])
def test_keys_that_verify_no_version_replace_none(
    rollback: bool, signed: PublishedModel, key: KeyFiles, device: Path, tmp_path: Path
) -> None:
    new, place = make_key(tmp_path / "new"), ("--rollback",) if rollback else (address(signed),)
    for _ in range(2):
        signed.publish()
        pull(address(signed), device, "--verify-key", key.public)

    assert "is signed by another key: " in refused(*place, device, "--verify-key", new.public)

    assert (device / "trusted-keys.pem").read_bytes() == key.public.read_bytes()
    pull(*place, device)


def test_a_first_pull_that_fails_keeps_no_key(
    signed: PublishedModel, key: KeyFiles, device: Path, tmp_path: Path
) -> None:
    signed.publish()

    refused(address(signed), device, "--verify-key", make_key(tmp_path / "other").public)

    assert not (device / "trusted-keys.pem").exists()
    pull(address(signed), device)
    pull(address(signed), device, "--verify-key", key.public)
    assert (device / "trusted-keys.pem").read_bytes() == key.public.read_bytes()


def test_a_version_that_was_pulled_without_a_key_is_verified_with_its_files_when_there_is_one(
    signed: PublishedModel, key: KeyFiles, device: Path
) -> None:
    document = signed.publish()
    pull(address(signed), device)
    assert not signature_of(device).exists()
    weights = device / "current" / WEIGHTS
    weights.chmod(0o600)
    weights.write_bytes(b"x" * weights.stat().st_size)

    pull(address(signed), device, "--verify-key", key.public)

    assert is_version(device, document)
    assert "up to date" in pull(address(signed), device)
    check_by_model_signing((device / "current").resolve(), signature_of(device), key)


def test_a_key_for_the_current_version_runs_no_command_again(
    signed: PublishedModel, key: KeyFiles, device: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    signed.publish()
    command = ("--on-change", f"echo changed >> {log}")
    pull(address(signed), device, *command)

    assert "up to date" in pull(address(signed), device, *command, "--verify-key", key.public)

    assert log.read_text() == "changed\n"
    assert signature_of(device).exists()


def test_a_rollback_goes_to_a_signed_version_only(signed: PublishedModel, key: KeyFiles, device: Path) -> None:
    signed.signing_key = None
    signed.publish()
    pull(address(signed), device)
    signed.signing_key = key.private
    second = signed.publish()
    pull(address(signed), device, "--verify-key", key.public)

    assert "has no signature at" in refused("--rollback", device)
    assert is_version(device, second)

    third = signed.publish()
    pull(address(signed), device)
    pull("--rollback", device)
    assert is_version(device, second)
    pull("--rollback", device, "--verify-key", key.public)
    assert is_version(device, third)


@pytest.mark.parametrize("suffix", [".json", ".sig", ".provenance"])
def test_a_rollback_to_a_version_whose_papers_were_changed_is_refused(
    suffix: str, signed: PublishedModel, key: KeyFiles, device: Path
) -> None:
    for _ in range(2):
        second = signed.publish()
        pull(address(signed), device, "--verify-key", key.public)
    previous = (device / "previous").resolve()
    paper = previous.with_name(f"{previous.name}{suffix}")
    paper.write_bytes(paper.read_bytes().replace(b"e", b"f", 1))

    said = refused("--rollback", device)

    assert "damaged" in said or "was changed after it was signed" in said
    assert is_version(device, second)


def test_the_papers_of_removed_versions_are_removed_too(signed: PublishedModel, key: KeyFiles, device: Path) -> None:
    for _ in range(3):
        signed.publish()
        pull(address(signed), device, "--verify-key", key.public)
    names = sorted(path.name.partition(".")[2] for path in (device / "versions").iterdir())
    assert names == ["", "", "json", "json", "provenance", "provenance", "sig", "sig"]


def test_a_file_of_keys_without_a_key_does_not_switch_the_check_off(
    signed: PublishedModel, key: KeyFiles, device: Path
) -> None:
    signed.publish()
    pull(address(signed), device, "--verify-key", key.public)
    (device / "trusted-keys.pem").write_text("")

    assert "trusted-keys.pem has no public key: give the keys again with --verify-key" in refused(
        address(signed), device
    )


def test_a_private_key_on_a_device_is_refused(signed: PublishedModel, key: KeyFiles, device: Path) -> None:
    signed.publish()
    said = refused(address(signed), device, "--verify-key", key.private)
    assert "is a private key, which only the publisher may have" in said
    assert not device.exists()


def test_without_cryptography_a_device_says_what_to_install(
    signed: PublishedModel, key: KeyFiles, device: Path
) -> None:
    signed.publish()
    script = "import sys; sys.modules['cryptography'] = None; from edgetune_cli.__main__ import main; main()"

    def run(*options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script, "pull", address(signed), str(device), *map(str, options)]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    assert run().returncode == 0
    done = run("--verify-key", key.public)
    assert (done.returncode, done.stderr.strip()) == (
        2,
        "signatures cannot be checked without cryptography: run `pip install '.[pull]'` in a checkout of Edgetune",
    )

"""Verification of a signed version: each change of a document, a file or a signature has a sentence of its own."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.digest import pointer_key, provenance_key, signature_key, version_key
from edgetune_contract.stages import Stage
from edgetune_contract.version import VersionDocument
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.addresses import ModelAddress, StageAddress
from edgetune_jobs.publishing.publisher import encode
from edgetune_jobs.publishing.signing.stored import SignatureState
from edgetune_jobs.publishing.verification import Verification, verify
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.store import Store
from support.published import EDGE, MODEL, REVISION, PublishedModel, replaced
from support.signing import KeyFiles, make_key


@dataclass(frozen=True)
class Signed:
    """Two signed versions in a store, of which the pointer names the second."""

    store: Store
    key: KeyFiles
    other_key: KeyFiles
    first: VersionDocument
    second: VersionDocument
    model: PublishedModel

    def verify(self, *keys: KeyFiles) -> Verification:
        trusted = [each for key in keys for each in key.keys]
        return verify(self.store, ModelAddress(self.store.uri, MODEL, None), trusted)

    def read(self, key: str) -> bytes:
        found = self.store.read(key)
        assert found is not None
        return found.data

    def change(self, key: str, change: Callable[[Any], object]) -> None:
        """Change a JSON document of the store."""
        document = json.loads(self.read(key))
        change(document)
        self.store.put(key, json.dumps(document).encode())

    def copy(self, source: str, target: str) -> None:
        self.store.put(target, self.read(source))

    @property
    def provenance(self) -> str:
        return provenance_key(MODEL, self.second.version)

    @property
    def files(self) -> str:
        return signature_key(MODEL, self.second.version, EDGE)

    def rewrite(self, document: VersionDocument) -> None:
        """Replace the second version's document, as somebody who may write to the store can."""
        for key in (version_key(MODEL, self.second.version), pointer_key(MODEL)):
            self.store.put(key, encode(document))


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    store = LocalFolderStore((tmp_path / "store").as_uri())
    key, other = make_key(tmp_path / "key"), make_key(tmp_path / "other")
    model = PublishedModel(store, tmp_path / "local", signing_key=key.private)
    return Signed(store, key, other, model.publish(), model.publish(), model)


def test_a_signed_version_is_valid_by_any_of_the_trusted_keys(signed: Signed) -> None:
    found = signed.verify(signed.other_key, signed.key)

    assert found.problems == ()
    assert found.signature is not None
    assert (found.signature.state, found.signature.source_revision) == (SignatureState.VALID, REVISION)
    assert found.signature.key == signed.key.keys[0].fingerprint


def test_without_a_key_the_signature_is_named_and_not_checked(signed: Signed) -> None:
    found = signed.verify()

    assert found.problems == ()
    assert found.signature is not None
    assert (found.signature.state, found.signature.key) == ("unchecked", signed.key.keys[0].fingerprint)


def with_score(document: VersionDocument) -> VersionDocument:
    return document.model_copy(update={"scores": document.scores.model_copy(update={"edge": 1.0})})


def with_files(document: VersionDocument) -> VersionDocument:
    edge = document.edge.model_copy(update={"files": replaced(document, sha256="e" * 64)})
    return document.model_copy(update={"edge": edge})


def swap_files(bundle: dict[str, Any]) -> None:
    bundle["dsseEnvelope"]["payload"] = bundle["dsseEnvelope"]["payload"].replace("A", "B")


TAMPERED: dict[str, tuple[Callable[[Signed], object], str]] = {
    "scores": (lambda s: s.rewrite(with_score(s.second)), "was changed after it was signed: its SHA-256 is"),
    "list of files": (lambda s: s.rewrite(with_files(s.second)), "was changed after it was signed: its SHA-256 is"),
    "provenance of another version": (
        lambda s: s.copy(provenance_key(MODEL, s.first.version), s.provenance),
        "is the signature of another version, models/sensor-faults/versions/",
    ),
    "files of another version": (
        lambda s: s.copy(signature_key(MODEL, s.first.version, EDGE), s.files),
        "is the signature of other files than those of edge-bnb-int8",
    ),
    "no provenance": (lambda s: s.store.delete(s.provenance), "has no signature at"),
    "no signature of the files": (lambda s: s.store.delete(s.files), "has no signature at"),
    "statement": (lambda s: s.change(s.provenance, swap_files), "was changed after it was signed: its signature by"),
    "statement about the files": (lambda s: s.change(s.files, swap_files), "was changed after it was signed"),
    "name of the key": (
        lambda s: s.change(s.provenance, lambda b: b["verificationMaterial"]["publicKey"].update(hint="0" * 64)),
        "is signed by another key: 000000000000, and the trusted ones are",
    ),
    "signature bytes": (
        lambda s: s.change(s.provenance, lambda b: b["dsseEnvelope"]["signatures"][0].update(sig="AAAA")),
        "was changed after it was signed: its signature by",
    ),
    "no signature in the bundle": (
        lambda s: s.change(s.provenance, lambda b: b["dsseEnvelope"].update(signatures=[])),
        "is damaged: it is not a signature by a key: dsseEnvelope.signatures",
    ),
    "type of the payload": (
        lambda s: s.change(s.provenance, lambda b: b["dsseEnvelope"].update(payloadType="text/plain")),
        "is damaged: it is not a signature by a key: dsseEnvelope.payloadType",
    ),
    "no bundle": (lambda s: s.store.put(s.provenance, b"valid"), "is damaged: it is not a signature by a key"),
    "one statement for the other": (lambda s: s.copy(s.files, s.provenance), "is signed, but is no provenance"),
    "the other for the one": (lambda s: s.copy(s.provenance, s.files), "is signed, but is no signature of a model"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_changed_is_named(what: str, signed: Signed) -> None:
    change, message = TAMPERED[what]
    change(signed)

    found = signed.verify(signed.key)

    assert any(message in problem for problem in found.problems), found.problems
    assert found.signature is not None
    assert found.signature.state in ("invalid", "missing")


def test_another_key_is_named_with_those_that_are_trusted(signed: Signed) -> None:
    own, other = signed.key.keys[0], signed.other_key.keys[0]
    (problem, *_) = signed.verify(signed.other_key).problems
    assert f"is signed by another key: {own}, and the trusted ones are {other} (SHA-256 of" in problem


def test_a_whole_old_version_is_valid_and_says_which_one_it_is(signed: Signed) -> None:
    signed.copy(version_key(MODEL, signed.first.version), pointer_key(MODEL))

    found = signed.verify(signed.key)

    assert found.problems == ()
    assert found.version is not None
    assert found.version.version == signed.first.version


def test_only_versions_are_signed(signed: Signed) -> None:
    address = StageAddress(signed.store.uri, Stage.QUANTIZE, signed.first.edge.quantize_digest, None)

    with pytest.raises(InvalidInput, match=r"manifest.json is that of a stage: only versions of models are signed"):
        verify(signed.store, address, signed.key.keys)

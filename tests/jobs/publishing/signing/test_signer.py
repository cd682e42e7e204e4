"""Signatures of published versions, with the signer and the command line of model-signing."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.digest import manifest_key, provenance_key, signature_key, signatures_key, version_key
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.signing.bundle import open_bundle
from edgetune_jobs.publishing.signing.checks import check_files
from edgetune_jobs.publishing.signing.keys import read_private_key
from edgetune_jobs.publishing.signing.signer import sign_files
from edgetune_jobs.store.files import fingerprint, list_files
from edgetune_jobs.store.store import Store
from support.published import EDGE, MODEL, REVISION, PublishedModel, edge_folder
from support.signing import KeyFiles, check_by_model_signing, make_key, model_signing


@pytest.fixture
def key(tmp_path: Path) -> KeyFiles:
    """The publisher's key."""
    return make_key(tmp_path / "key")


@pytest.fixture
def model(store: Store, tmp_path: Path, key: KeyFiles) -> PublishedModel:
    """A model that is signed, in a folder and on a real S3 server."""
    return PublishedModel(store, tmp_path / "local", signing_key=key.private)


def content(store: Store, key: str) -> bytes:
    found = store.read(key)
    assert found is not None, key
    return found.data


def payload_of(bundle: bytes) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads(base64.b64decode(json.loads(bundle)["dsseEnvelope"]["payload"]))
    return payload


def test_model_signing_verifies_each_artifact_of_a_version(
    store: Store, model: PublishedModel, key: KeyFiles, tmp_path: Path
) -> None:
    document = model.publish_run()
    assert len(document.artifacts) == 5

    for artifact in document.artifacts:
        folder, signature = tmp_path / "copy" / artifact.name, tmp_path / f"{artifact.name}.sig"
        for found in store.list(artifact.key):
            path = folder / found.key.removeprefix(f"{artifact.key}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content(store, found.key))
        signature.write_bytes(content(store, signature_key(MODEL, document.version, artifact.name)))

        check_by_model_signing(folder, signature, key)
        first = next(path for path in folder.iterdir())
        first.write_bytes(first.read_bytes() + b" ")
        with pytest.raises(ValueError, match=f"Signature mismatch.*{first.name}"):
            check_by_model_signing(folder, signature, key)


def test_a_signature_says_what_model_signing_says_about_the_same_folder(tmp_path: Path, key: KeyFiles) -> None:
    folder = edge_folder(tmp_path / EDGE, seed=1)
    (folder / "deep" / "er").mkdir(parents=True)
    for name in ("deep/er/a.json", "deep.json", "deep-1.json"):
        (folder / name).write_text(name)
    files = [fingerprint(folder / path).entry(path) for path in list_files(folder)]
    theirs = tmp_path / "theirs.sig"
    done = model_signing("sign", "key", folder, "--signature", theirs, "--private_key", key.private)
    assert done == (0, "Signing succeeded\n")

    ours, expected = payload_of(sign_files(read_private_key(key.private), EDGE, files)), payload_of(theirs.read_bytes())

    assert expected["predicate"]["serialization"].pop("ignore_paths")
    assert ours == expected


def test_signatures_by_model_signing_are_accepted_and_refused_as_ours(tmp_path: Path, key: KeyFiles) -> None:
    folder, theirs = edge_folder(tmp_path / EDGE, seed=1), tmp_path / "theirs.sig"
    files = [fingerprint(folder / path).entry(path) for path in list_files(folder)]
    model_signing("sign", "key", folder, "--signature", theirs, "--private_key", key.private)

    check_files(theirs.read_bytes(), "theirs.sig", EDGE, files, key.keys)

    with pytest.raises(InvalidInput, match=r"theirs.sig is the signature of other files than those of edge-bnb-int8"):
        check_files(theirs.read_bytes(), "theirs.sig", EDGE, files[1:], key.keys)
    with pytest.raises(InvalidInput, match=r"theirs.sig is signed by another key: [0-9a-f]{12}, and the trusted ones"):
        check_files(theirs.read_bytes(), "theirs.sig", EDGE, files, make_key(tmp_path / "other").keys)


def test_model_signing_refuses_another_key(store: Store, model: PublishedModel, tmp_path: Path) -> None:
    document, signature = model.publish(), tmp_path / "edge.sig"
    signature.write_bytes(content(store, signature_key(MODEL, document.version, EDGE)))
    folder = model.folder / document.edge.quantize_digest / EDGE

    with pytest.raises(ValueError, match="Key mismatch"):
        check_by_model_signing(folder, signature, make_key(tmp_path / "other"))


def test_the_provenance_names_document_files_inputs_images_and_the_commit(
    store: Store, model: PublishedModel, key: KeyFiles
) -> None:
    document = model.publish_run()

    statement = open_bundle(content(store, provenance_key(MODEL, document.version)), "here", key.keys)

    assert statement.predicate_type == "https://slsa.dev/provenance/v1"
    names = [subject.name for subject in statement.subject]
    assert names == [version_key(MODEL, document.version), *(f"{EDGE}/{each.path}" for each in document.edge.files)]
    definition = statement.predicate["buildDefinition"]
    assert definition["externalParameters"]["spec"] == document.provenance.parameters
    assert definition["resolvedDependencies"] == [
        {"name": "baseModel", "digest": {"sha256": "a" * 64}, "uri": "hf://org/model"},
        {"name": "dataset/train", "digest": {"sha256": "b" * 64}, "uri": "s3://datasets/train.jsonl"},
        {"name": "dataset/eval", "digest": {"sha256": "c" * 64}, "uri": "s3://datasets/eval.jsonl"},
        {
            "name": "image",
            "uri": f"registry.example/edgetune/jobs@sha256:{'5' * 64}",
            "digest": {"sha256": "5" * 64},
        },
        {"name": "source", "annotations": {"revision": REVISION}, "digest": {"gitCommit": "7" * 40}},
    ]
    details = statement.predicate["runDetails"]
    assert details["metadata"] == {
        "invocationId": document.version,
        "startedOn": "2026-11-24T08:00:00+00:00",
        "finishedOn": document.created_at,
    }
    assert details["builder"]["version"]["edgetune"]


def test_a_version_that_its_gates_refused_has_no_signature(store: Store, model: PublishedModel) -> None:
    document = model.publish(refusals=("minScore: too low",))

    assert list(store.list(signatures_key(MODEL, document.version))) == []


def test_a_candidate_that_was_not_chosen_has_no_signature(store: Store, model: PublishedModel) -> None:
    document = model.publish_run()
    place = manifest_key(Stage.QUANTIZE, document.edge.quantize_digest)
    manifest = json.loads(content(store, place))
    renamed = json.loads(json.dumps([manifest["result"]["artifacts"], manifest["files"]]).replace(EDGE, "edge-ct-w8a8"))
    manifest["result"]["artifacts"] += renamed[0]
    manifest["files"] += renamed[1]
    store.put(place, json.dumps(manifest).encode())
    folder = signatures_key(MODEL, document.version)
    before = {found.key for found in store.list(folder)}
    store.delete_tree(folder)

    model.publisher.restore(document.version)

    assert {found.key for found in store.list(folder)} == before


def test_a_version_that_is_published_again_keeps_its_signatures_and_gets_those_of_a_new_key(
    store: Store, model: PublishedModel, tmp_path: Path
) -> None:
    document = model.publish()
    place = provenance_key(MODEL, document.version)
    before = content(store, place)

    model.publisher.publish(document)
    assert content(store, place) == before

    new = make_key(tmp_path / "new")
    model.signing_key = new.private
    model.publisher.restore(document.version)
    open_bundle(content(store, place), "here", new.keys)


def test_a_version_that_was_published_without_a_key_is_signed_when_it_is_published_again(
    store: Store, tmp_path: Path, key: KeyFiles
) -> None:
    model = PublishedModel(store, tmp_path / "local")
    document = model.publish()
    assert list(store.list(signatures_key(MODEL, document.version))) == []

    model.signing_key = key.private
    model.publisher.restore(document.version)

    open_bundle(content(store, provenance_key(MODEL, document.version)), "here", key.keys)


def test_nothing_is_published_with_a_key_that_cannot_sign(store: Store, tmp_path: Path) -> None:
    (tmp_path / "signing.pem").write_text("no key")
    model = PublishedModel(store, tmp_path / "local", signing_key=tmp_path / "signing.pem")

    with pytest.raises(InvalidInput, match="is not a private key in PEM; make one with"):
        model.publish()

    assert list(store.list(f"models/{MODEL}")) == []

"""Verification of versions, stages and artifacts: each damage is reported with its file."""

import json
from pathlib import Path

import pytest

from edgetune_contract.access.s3_service import ChecksumMode
from edgetune_contract.digest import manifest_key, pointer_key, version_key
from edgetune_contract.request import Artifact, FileEntry, Manifest
from edgetune_contract.stages import Stage
from edgetune_contract.version import EdgeModel, StoredArtifact, VersionDocument
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.addresses import ModelAddress, StageAddress
from edgetune_jobs.publishing.publisher import encode
from edgetune_jobs.publishing.verification import Verification, verify
from edgetune_jobs.store.files import file_list_digest, fingerprint
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.manifests import read_manifest, require_manifest
from edgetune_jobs.store.s3.client import create_client
from edgetune_jobs.store.s3.store import S3Store
from edgetune_jobs.store.store import Store, uri_of, write_model
from support.fault_proxy import Fault, FaultProxy
from support.published import ATTEMPT, EDGE, MODEL, PublishedModel, truncated_weights
from support.versitygw import S3Server

WEIGHTS = "model.safetensors"
DIGEST = "0" * 64


@pytest.fixture
def document(store: Store, tmp_path: Path) -> VersionDocument:
    """A published version that the pointer names."""
    return PublishedModel(store, tmp_path / "local").publish()


@pytest.fixture
def latest(store: Store) -> ModelAddress:
    return ModelAddress(store.uri, MODEL, None)


def quantize_of(store: Store, document: VersionDocument, artifact: str | None = None) -> StageAddress:
    return StageAddress(store.uri, Stage.QUANTIZE, document.edge.quantize_digest, artifact)


def manifest_of(store: Store, document: VersionDocument) -> Manifest:
    return require_manifest(store, Stage.QUANTIZE, document.edge.quantize_digest)


def content_of(store: Store, key: str) -> bytes:
    content = store.read(key)
    assert content is not None
    return content.data


def problem_of(found: Verification, path: str) -> str:
    """The problem in a file's row."""
    (artifact,) = found.artifacts
    return next(file.problem for file in artifact.files if file.path == path)


def test_an_unchanged_version_has_no_problems(store: Store, document: VersionDocument, latest: ModelAddress) -> None:
    found = verify(store, latest)

    assert found.problems == ()
    assert found.document == f"{store.uri}/models/{MODEL}/latest.json"
    assert found.version == document
    (artifact,) = found.artifacts
    assert artifact.uri == uri_of(store, document.edge.key)
    assert [file.path for file in artifact.files] == ["config.json", "edgetune.json", WEIGHTS]
    assert verify(store, ModelAddress(store.uri, MODEL, document.version)).problems == ()


@pytest.mark.parametrize("artifact", [None, f"{ATTEMPT}/{EDGE}"])
def test_a_stage_and_its_artifact_are_checked_against_the_manifest(
    store: Store, document: VersionDocument, artifact: str | None
) -> None:
    found = verify(store, quantize_of(store, document, artifact))

    assert found.problems == ()
    assert found.manifest == manifest_of(store, document)
    assert [check.artifact.name for check in found.artifacts] == [EDGE]


def test_a_changed_card_and_a_missing_one_are_problems_of_the_version(
    store: Store, tmp_path: Path, latest: ModelAddress
) -> None:
    document = PublishedModel(store, tmp_path / "local", has_cards=True).publish()
    _, card = verify(store, latest).artifacts
    assert card.uri == uri_of(store, f"models/{MODEL}/versions/{document.version}/{EDGE}")
    assert [(file.path, file.problem) for file in card.files] == [("README.md", "")]

    key = f"models/{MODEL}/versions/{document.version}/{EDGE}/README.md"
    content = content_of(store, key)
    store.put(key, content.replace(b"license", b"License"))
    changed = verify(store, latest)
    store.delete(key)
    missing = verify(store, latest)

    (problem,) = changed.problems
    assert problem.startswith(f"card of {EDGE}/README.md: its content was changed: SHA-256 ")
    assert missing.problems == (f"card of {EDGE}/README.md: is missing",)


def test_a_flipped_byte_is_reported_with_its_file(
    store: Store, document: VersionDocument, latest: ModelAddress
) -> None:
    key = f"{document.edge.key}/{WEIGHTS}"
    content = bytearray(content_of(store, key))
    content[-1] ^= 1
    store.put(key, bytes(content))

    found = verify(store, latest)

    (problem,) = found.problems
    assert problem.startswith(f"{EDGE}/{WEIGHTS}: its content was changed: SHA-256 ")
    assert problem.endswith(f" instead of {document.edge.files[-1].sha256}")
    assert problem_of(found, "config.json") == ""
    assert found.problems == verify(store, quantize_of(store, document)).problems


def test_a_truncated_file_is_reported_with_both_sizes(
    store: Store, document: VersionDocument, latest: ModelAddress
) -> None:
    entry = document.edge.files[-1]
    key = f"{document.edge.key}/{entry.path}"
    store.put(key, content_of(store, key)[:-3])

    assert verify(store, latest).problems == (
        f"{EDGE}/{WEIGHTS}: has {entry.bytes - 3:,} bytes instead of {entry.bytes:,}",
    )


def test_a_missing_file_is_reported(store: Store, document: VersionDocument, latest: ModelAddress) -> None:
    store.delete(f"{document.edge.key}/config.json")

    assert verify(store, latest).problems == (f"{EDGE}/config.json: is missing",)


def test_a_file_that_was_added_later_is_reported(store: Store, document: VersionDocument, latest: ModelAddress) -> None:
    store.put(f"{document.edge.key}/deep/pytorch_model.bin", b"a pickle")

    found = verify(store, latest)

    assert found.problems == (
        f"{EDGE}/deep/pytorch_model.bin: is not in the artifact's list of files: it was added later",
    )
    assert found.artifacts[0].extra == ("deep/pytorch_model.bin",)


def test_all_damages_are_reported_at_once(store: Store, document: VersionDocument, latest: ModelAddress) -> None:
    store.delete(f"{document.edge.key}/config.json")
    store.put(f"{document.edge.key}/edgetune.json", b"{}")
    store.put(f"{document.edge.key}/extra", b"")

    names = [problem.partition(":")[0] for problem in verify(store, latest).problems]

    assert names == [f"{EDGE}/config.json", f"{EDGE}/edgetune.json", f"{EDGE}/extra"]


def rewritten(store: Store, document: VersionDocument, tmp_path: Path, content: bytes, path: str = WEIGHTS) -> Manifest:
    """Replace a file and write a manifest that matches, with new digests."""
    store.put(f"{document.edge.key}/{path}", content)
    (tmp_path / "new").write_bytes(content)
    new = fingerprint(tmp_path / "new")
    others = [entry for entry in document.edge.files if entry.path != path]
    entries = (*others, FileEntry(path=path, bytes=new.bytes, sha256=new.sha256))
    old = manifest_of(store, document)
    artifact = old.result.artifacts[0].model_copy(
        update={"bytes": sum(entry.bytes for entry in entries), "sha256": file_list_digest(entries)}
    )
    files = tuple(entry.model_copy(update={"path": f"{ATTEMPT}/{EDGE}/{entry.path}"}) for entry in entries)
    result = old.result.model_copy(update={"artifacts": (artifact,)})
    manifest = old.model_copy(update={"files": files, "result": result})
    write_model(store, manifest_key(Stage.QUANTIZE, result.digest), manifest)
    return manifest


def test_a_wrong_header_is_reported_even_if_the_manifest_matches_the_file(
    store: Store, document: VersionDocument, tmp_path: Path
) -> None:
    rewritten(store, document, tmp_path, truncated_weights())

    assert verify(store, quantize_of(store, document)).problems == (
        f"{EDGE}/{WEIGHTS}: {WEIGHTS} is not a valid safetensors file: tensor 'weight' ends at byte 9, but the file "
        "has only 8 bytes of tensors and may be truncated; save or copy the model again",
    )


def test_a_manifest_that_was_replaced_does_not_match_the_version(
    store: Store, document: VersionDocument, latest: ModelAddress, tmp_path: Path
) -> None:
    manifest = rewritten(store, document, tmp_path, b'{"model_type": "other"}', path="config.json")

    problems = verify(store, latest).problems

    assert verify(store, quantize_of(store, document)).problems == ()
    assert problems[0] == (
        f"latest.json: lists {EDGE} with SHA-256 {document.edge.artifact.sha256}, but "
        f"{uri_of(store, quantize_of(store, document).key)} lists {manifest.result.artifacts[0].sha256}"
    )
    assert problems[1].startswith(f"{EDGE}/config.json: has 23 bytes instead of ")


def test_a_changed_list_of_files_no_longer_has_the_artifacts_digest(
    store: Store, document: VersionDocument, latest: ModelAddress
) -> None:
    edge = EdgeModel(artifact=document.edge.artifact, files=document.edge.files[:-1])
    forged = document.model_copy(update={"edge": edge})
    for key in (pointer_key(MODEL), version_key(MODEL, document.version)):
        store.put(key, encode(forged))

    problems = verify(store, latest).problems

    assert problems[0].startswith(f"{EDGE}: its list of files was changed: 2 files, ")
    size = document.edge.artifact.bytes
    assert problems[0].endswith(f" instead of {size:,} bytes with SHA-256 {document.edge.artifact.sha256}")
    assert problems[1] == f"{EDGE}/{WEIGHTS}: is not in the artifact's list of files: it was added later"


@pytest.mark.parametrize("content", [b"", b"{}", b"<html>", b"[]"])
def test_an_invalid_document_fails_the_check(
    store: Store, document: VersionDocument, latest: ModelAddress, content: bytes
) -> None:
    store.put(latest.key, content)
    store.put(quantize_of(store, document).key, content)

    for address in (latest, quantize_of(store, document)):
        found = verify(store, address)
        (problem,) = found.problems
        assert problem.startswith(f"{uri_of(store, address.key)} is damaged: ")
        assert found.artifacts == ()


def test_a_document_with_a_folder_outside_of_stages_fails_the_check(
    store: Store, document: VersionDocument, latest: ModelAddress
) -> None:
    forged = json.loads(encode(document))
    forged["edge"]["artifact"]["key"] = "models/evil"
    store.put(latest.key, json.dumps(forged).encode())

    (problem,) = verify(store, latest).problems

    assert "models/evil is not the folder of the edge model" in problem


def test_a_path_outside_of_the_artifacts_folder_is_never_read(
    store: Store, document: VersionDocument, latest: ModelAddress
) -> None:
    entry = FileEntry(path="../../../../../secret", bytes=6, sha256=DIGEST)
    store.put("secret", b"secret")
    edge = EdgeModel(artifact=document.edge.artifact, files=(*document.edge.files, entry))
    store.put(latest.key, encode(document.model_copy(update={"edge": edge})))

    assert f"{EDGE}/../../../../../secret: is missing" in verify(store, latest).problems


def test_a_version_of_another_model_or_under_another_digest_is_reported(
    store: Store, document: VersionDocument
) -> None:
    store.put(version_key("other", DIGEST), encode(document))

    assert verify(store, ModelAddress(store.uri, "other", DIGEST)).problems == (
        f"{DIGEST}.json: belongs to the model {MODEL}, not to other",
        f"{DIGEST}.json: belongs to version {document.version}",
    )


def test_a_manifest_in_the_folder_of_another_stage_is_reported(store: Store, document: VersionDocument) -> None:
    manifest = manifest_of(store, document)
    write_model(store, manifest_key(Stage.MERGE, DIGEST), manifest)

    problems = verify(store, StageAddress(store.uri, Stage.MERGE, DIGEST, None)).problems

    assert problems[0] == (f"manifest.json: belongs to the stage quantize with digest {document.edge.quantize_digest}")
    assert problems[1:] == tuple(f"{EDGE}/{entry.path}: is missing" for entry in document.edge.files)


def test_a_pointer_that_differs_from_its_versions_document_is_reported(
    store: Store, document: VersionDocument, latest: ModelAddress
) -> None:
    better = document.scores.model_copy(update={"edge": 1.0})
    store.put(latest.key, encode(document.model_copy(update={"scores": better})))
    version = uri_of(store, version_key(MODEL, document.version))
    altered = verify(store, latest).problems
    store.delete(version_key(MODEL, document.version))

    assert altered == (f"latest.json: differs from the document of its version: {version}",)
    assert verify(store, latest).problems == (f"latest.json: the document of its version is missing: {version}",)


def test_a_pointer_to_a_version_that_the_gates_refused_is_reported(store: Store, tmp_path: Path) -> None:
    refused = PublishedModel(store, tmp_path / "local").publish(refusals=("minScore: too bad",))
    store.put(pointer_key(MODEL), encode(refused))

    by_pointer = verify(store, ModelAddress(store.uri, MODEL, None)).problems

    assert by_pointer == ("latest.json: points to a version that its gates refused: minScore: too bad",)
    assert verify(store, ModelAddress(store.uri, MODEL, refused.version)).problems == (), "it is unchanged"


def test_a_version_whose_stage_has_no_manifest_is_reported(
    store: Store, document: VersionDocument, latest: ModelAddress
) -> None:
    manifest = quantize_of(store, document).key
    store.delete(manifest)

    assert verify(store, latest).problems == (
        f"latest.json: the manifest of {EDGE} is missing: {uri_of(store, manifest)}",
    )


def test_an_artifact_that_is_not_in_the_manifest_is_reported(store: Store, document: VersionDocument) -> None:
    place = f"{ATTEMPT}/merged"

    assert verify(store, quantize_of(store, document, place)).problems == (
        f"manifest.json: has no artifact at {place}",
    )


def test_an_artifact_without_files_is_reported(store: Store, document: VersionDocument) -> None:
    manifest = manifest_of(store, document)
    write_model(store, quantize_of(store, document).key, manifest.model_copy(update={"files": ()}))

    assert verify(store, quantize_of(store, document)).problems == (f"manifest.json: lists no files of {EDGE}",)


def test_an_address_without_a_document_is_refused(store: Store) -> None:
    for address in (ModelAddress(store.uri, "nobody", None), StageAddress(store.uri, Stage.TRAIN, DIGEST, None)):
        with pytest.raises(InvalidInput, match=f"there is nothing at {uri_of(store, address.key)}"):
            verify(store, address)


def states(found: Verification) -> dict[str, str]:
    return {each.stage: each.state for each in found.stages}


def test_a_copied_store_is_whole_in_its_new_place_and_names_nothing_of_the_old_one(tmp_path: Path) -> None:
    PublishedModel(LocalFolderStore((tmp_path / "old").as_uri()), tmp_path / "local").publish_run()
    (tmp_path / "deeper" / "down").mkdir(parents=True)
    (tmp_path / "old").rename(tmp_path / "deeper" / "down" / "new")
    store = LocalFolderStore((tmp_path / "deeper" / "down" / "new").as_uri())

    found = verify(store, ModelAddress(store.uri, MODEL, None))

    assert found.problems == ()
    assert set(states(found).values()) == {"whole"}
    assert list(states(found)) == ["prepare", "train", "merge", "quantize", "evaluate", "publish"]
    texts = [path.read_text() for path in (tmp_path / "deeper").rglob("*.json")]
    assert [text for text in texts if (tmp_path / "old").as_uri() in text] == []
    manifest = read_manifest(store, Stage.PUBLISH, found.version.version if found.version else "")
    assert manifest is not None
    assert manifest.result.publication is not None
    assert manifest.result.publication.pointer == uri_of(store, pointer_key(MODEL))


def test_what_an_incomplete_copy_lacks_is_said_by_stage(store: Store, tmp_path: Path) -> None:
    document = PublishedModel(store, tmp_path / "local").publish_run()
    address = ModelAddress(store.uri, MODEL, None)
    train = document.provenance.stages[Stage.TRAIN].digest
    store.delete_tree("stages/publish")
    without_publish = verify(store, address)
    store.delete(f"stages/train/{train}/{ATTEMPT}/train/data.json")
    found = verify(store, address)

    assert (without_publish.problems, states(without_publish)["publish"]) == ((), "missing")
    assert found.problems == (
        f"train: 1 of 1 file missing or of another size in {store.uri}/stages/train/{train}: {ATTEMPT}/train/data.json",
    )
    assert (states(found)["train"], states(found)["merge"]) == ("incomplete", "whole")


def test_a_document_of_an_older_release_is_read_without_the_address_in_it(
    store: Store, document: VersionDocument, latest: ModelAddress
) -> None:
    older = json.loads(encode(document))
    for artifact in (older["edge"]["artifact"], *older["artifacts"]):
        artifact["uri"] = f"s3://old/stages/place/{artifact.pop('key')}"
    for key in (pointer_key(MODEL), version_key(MODEL, document.version)):
        store.put(key, json.dumps(older).encode())

    found = verify(store, latest)

    assert (found.problems, found.version) == ((), document)


def test_each_format_of_a_version_is_checked(store: Store, document: VersionDocument, latest: ModelAddress) -> None:
    manifest = manifest_of(store, document)
    folder = f"{quantize_of(store, document).folder}/{ATTEMPT}/edge-gguf-q8_0"
    store.put(f"{folder}/model.gguf", b"GGUF\x03\0\0\0 and tensors")
    sha256 = "0" * 64
    entry = FileEntry(path="model.gguf", bytes=20, sha256=sha256)
    gguf = Artifact(name="edge-gguf-q8_0", uri=uri_of(store, folder), bytes=20, sha256=file_list_digest([entry]))
    edge = EdgeModel(artifact=StoredArtifact.of(gguf), files=(entry,))
    further = document.model_copy(update={"further_edges": (edge,)})
    result = manifest.result.model_copy(update={"artifacts": (*manifest.result.artifacts, gguf)})
    write_model(store, quantize_of(store, document).key, manifest.model_copy(update={"result": result}))
    for key in (pointer_key(MODEL), version_key(MODEL, document.version)):
        store.put(key, encode(further))

    (problem,) = verify(store, latest).problems

    assert problem.startswith("edge-gguf-q8_0/model.gguf: its content was changed: SHA-256 ")


def test_a_file_that_was_damaged_in_transfer_is_read_again(
    s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, tmp_path: Path
) -> None:
    direct = S3Store(s3_server.location(s3_prefix).uri, s3_server.client())
    PublishedModel(direct, tmp_path / "local").publish()
    # Without the service's checksums, which would detect the damage.
    location = s3_server.location(s3_prefix, s3_proxy.endpoint, checksums=ChecksumMode.WHEN_REQUIRED)
    store = S3Store(direct.uri, create_client(location, s3_server.admin))
    s3_proxy.faults += [
        Fault("GET", WEIGHTS, times=1, flip_byte=20),
        Fault("GET", "config.json", times=1, cut_after=5),
    ]

    assert verify(store, ModelAddress(store.uri, MODEL, None)).problems == ()
    assert sum(method == "GET" and path.endswith(WEIGHTS) for method, path in s3_proxy.requests) == 2

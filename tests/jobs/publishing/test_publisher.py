"""Versions and the pointer, in a local folder and on a real S3 server."""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edgetune_contract.digest import pointer_key, version_key
from edgetune_contract.request import Manifest, Result
from edgetune_contract.stages import Stage
from edgetune_contract.version import VersionDocument
from edgetune_jobs.errors import InvalidInput, TransientError
from edgetune_jobs.publishing.publisher import Pointer, encode
from edgetune_jobs.publishing.versions import Versions
from edgetune_jobs.stages.publish import edge_artifacts
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.store import Content, Store
from support.published import MODEL, PublishedModel
from support.threads import run_concurrently


def test_a_quantize_manifest_without_an_edge_model_is_refused() -> None:
    manifest = Manifest(result=Result(stage=Stage.QUANTIZE, digest="0" * 64), created_at="2026-11-24T08:00:00+00:00")

    with pytest.raises(InvalidInput, match="the manifest of the stage quantize has no edge model: delete it"):
        edge_artifacts(manifest)


@pytest.fixture
def model(store: Store, tmp_path: Path) -> PublishedModel:
    return PublishedModel(store, tmp_path / "local")


def pointer_version(store: Store) -> str | None:
    return Pointer(store, MODEL).version


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(InvalidInput) as caught:
        call()
    return str(caught.value)


def test_the_pointer_is_a_copy_of_the_published_version(store: Store, model: PublishedModel) -> None:
    document = model.publish()

    version, pointer = store.read(version_key(MODEL, document.version)), store.read(pointer_key(MODEL))
    assert version is not None
    assert pointer is not None
    assert version.data == pointer.data
    assert VersionDocument.model_validate_json(pointer.data) == document
    assert list(json.loads(pointer.data)) == sorted(json.loads(pointer.data)), "canonical: equal versions, equal bytes"


def test_a_publication_names_the_pointer(store: Store, model: PublishedModel) -> None:
    document = model.publish()

    publication = model.publisher.publish(document)

    assert publication.published
    assert (publication.version, publication.pointer) == (document.version, f"{store.uri}/models/{MODEL}/latest.json")


def test_a_version_that_is_published_again_keeps_its_document_and_its_time(store: Store, model: PublishedModel) -> None:
    document = model.publish()
    before = store.read(version_key(MODEL, document.version))

    model.publisher.publish(document.model_copy(update={"created_at": "2026-11-25T08:00:00+00:00"}))

    assert store.read(version_key(MODEL, document.version)) == before == store.read(pointer_key(MODEL))


def test_a_version_that_differs_when_it_is_published_again_is_overwritten(store: Store, model: PublishedModel) -> None:
    document = model.publish()
    refused = document.model_copy(update={"published": False, "refusals": ("minScore: too bad",)})

    model.publisher.publish(refused)

    assert Versions(store, MODEL).read(document.version) == refused


def test_a_refused_version_is_written_without_moving_the_pointer(store: Store, model: PublishedModel) -> None:
    first = model.publish()

    refused = model.publish(refusals=("minScore: too bad",))

    assert Versions(store, MODEL).read(refused.version) == refused
    assert pointer_version(store) == first.version
    assert model.publisher.publish(refused).pointer is None


def test_a_pin_moves_the_pointer_to_an_older_version_by_its_first_digits(store: Store, model: PublishedModel) -> None:
    first, second = model.publish(), model.publish()

    publication = model.publisher.pin(first.version[:12])

    assert (publication.version, publication.pinned, publication.published) == (first.version, True, True)
    assert publication.pointer == f"{store.uri}/models/{MODEL}/latest.json"
    assert pointer_version(store) == first.version
    assert model.publisher.pin(second.version).version == second.version
    assert pointer_version(store) == second.version


def test_what_is_live_is_read_from_the_pointer_and_never_invented(store: Store, model: PublishedModel) -> None:
    pointer = Pointer(store, MODEL)
    assert pointer.read_live() is None

    document = model.publish()
    live = pointer.read_live()
    store.put(pointer_key(MODEL), b"no document")

    assert live is not None
    assert (live.version, live.scores) == (document.version, document.scores.model_copy(update={"details": {}}))
    assert abs(datetime.now(UTC) - datetime.fromisoformat(live.since)) < timedelta(minutes=5)
    assert pointer.read_live() is None


def test_publishing_what_is_live_already_keeps_the_time_since_when_it_is(store: Store, model: PublishedModel) -> None:
    document = model.publish()
    content = store.read(pointer_key(MODEL))

    model.publisher.publish(document)
    again = store.read(pointer_key(MODEL))

    assert content is not None
    assert again is not None
    assert again.written_at == content.written_at


def test_the_pointer_is_an_exact_copy_of_an_older_version_too(store: Store, model: PublishedModel) -> None:
    first, _ = model.publish(), model.publish()
    written_by_another_release = encode(first) + b"\n"
    store.put(version_key(MODEL, first.version), written_by_another_release)

    model.publisher.pin(first.version)

    content = store.read(pointer_key(MODEL))
    assert content is not None
    assert content.data == written_by_another_release


def test_a_pin_to_the_version_at_the_pointer_writes_nothing(store: Store, model: PublishedModel) -> None:
    document = model.publish()
    before = store.put(pointer_key(MODEL), encode(document) + b" ")

    model.publisher.pin(document.version)

    content = store.read(pointer_key(MODEL))
    assert content is not None
    assert content.etag == before


def test_the_message_about_a_pin_to_an_unknown_version_lists_all_versions(store: Store, model: PublishedModel) -> None:
    first, refused, second = model.publish(0.91), model.publish(0.5, ("minScore: too bad",)), model.publish(0.92)

    message = refusal(lambda: model.publisher.pin("f" * 12))

    assert message == (
        f"spec.publish.pin: {MODEL} has no version {'f' * 12}; versions, newest first: "
        f"{second.version[:12]} (2026-11-24T08:03:00+00:00, edge score 92.0%), "
        f"{refused.version[:12]} (2026-11-24T08:02:00+00:00, edge score 50.0%, refused by its gates), "
        f"{first.version[:12]} (2026-11-24T08:01:00+00:00, edge score 91.0%)"
    )
    assert pointer_version(store) == second.version


def test_a_pin_of_a_model_without_versions_is_refused(model: PublishedModel) -> None:
    assert refusal(lambda: model.publisher.pin("f" * 12)) == (
        f"spec.publish.pin: {MODEL} has no version {'f' * 12}; it has no versions"
    )


def test_of_many_versions_the_newest_ten_are_listed(model: PublishedModel) -> None:
    for _ in range(13):
        model.publish()

    message = refusal(lambda: model.publisher.pin("f" * 12))

    assert message.count("edge score") == 10
    assert "T08:13:00+00:00" in message
    assert message.endswith(" and 3 more")


def test_the_message_about_an_ambiguous_pin_lists_the_matching_versions(store: Store, model: PublishedModel) -> None:
    document = model.publish()
    twins = [document.model_copy(update={"version": "e" * 12 + ending * 52}) for ending in "12"]
    for twin in twins:
        model.publisher.publish(twin)

    message = refusal(lambda: model.publisher.pin("e" * 12))

    assert message.startswith(f"spec.publish.pin: 2 versions of {MODEL} begin with {'e' * 12}; versions, newest first:")
    assert message.count("e" * 12 + " (") == 2
    assert pointer_version(store) == twins[1].version


def test_a_pin_to_a_version_that_the_gates_refused_is_refused(store: Store, model: PublishedModel) -> None:
    first, refused = model.publish(), model.publish(0.5, ("minScore: the edge model scores 0.5",))

    message = refusal(lambda: model.publisher.pin(refused.version[:12]))

    assert f"the gates refused version {refused.version[:12]} (minScore: the edge model scores 0.5)" in message
    assert f"newest first: {refused.version[:12]}" in message
    assert pointer_version(store) == first.version


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_pin_to_a_version_with_missing_or_truncated_files_is_refused(
    store: Store, model: PublishedModel, damage: str
) -> None:
    first, second = model.publish(), model.publish()
    key = f"{first.edge.key}/model.safetensors"
    store.delete(key)
    if damage == "truncated":
        store.put(key, b"12345")

    message = refusal(lambda: model.publisher.pin(first.version))

    problem = "is missing" if damage == "missing" else f"has 5 bytes instead of {first.edge.files[-1].bytes:,}"
    assert message == (
        f"the pointer cannot move to version {first.version[:12]} of {MODEL}: {store.uri}/{key} {problem}; "
        "restore it, or pin another version"
    )
    assert pointer_version(store) == second.version


def test_a_version_with_a_damaged_document_is_listed_as_unreadable_and_hides_no_other(
    store: Store, model: PublishedModel
) -> None:
    first, second = model.publish(), model.publish()
    store.put(version_key(MODEL, first.version), b"{}")

    known = Versions(store, MODEL).all()

    assert [(each.version, each.document is None) for each in known] == [(second.version, False), (first.version, True)]
    assert f"{first.version}.json is damaged: Field required" in known[1].problem
    assert "is damaged" in refusal(lambda: model.publisher.pin(first.version))
    assert f"{first.version[:12]} (unreadable)" in refusal(lambda: model.publisher.pin("f" * 12))


def test_a_document_with_a_field_of_another_release_is_not_reported_as_damaged(
    store: Store, model: PublishedModel
) -> None:
    document = model.publish()
    newer = json.dumps({**json.loads(encode(document)), "signature": "x"}).encode()
    store.put(version_key(MODEL, document.version), newer)

    message = refusal(lambda: model.publisher.pin(document.version))

    assert message.endswith(
        f"/versions/{document.version}.json has the unknown field 'signature': "
        "use the release of Edgetune that wrote it"
    )


def test_restoring_a_version_needs_its_document(store: Store, model: PublishedModel) -> None:
    first, second = model.publish(), model.publish()

    model.publisher.restore(first.version)

    assert pointer_version(store) == first.version != second.version
    assert "c.json: it is missing; restore it" in refusal(lambda: model.publisher.restore("c" * 64))


def test_each_of_eight_concurrent_writers_moves_the_pointer(store: Store, model: PublishedModel) -> None:
    documents = [model.publish() for _ in range(8)]
    barrier = threading.Barrier(8)
    failures: list[BaseException] = []

    def move(document: VersionDocument) -> None:
        barrier.wait()
        try:
            Pointer(store, MODEL).move(encode(document))
        except TransientError as error:
            failures.append(error)

    run_concurrently(move, documents)

    assert failures == []
    content = store.read(pointer_key(MODEL))
    assert content is not None
    assert content.data in [encode(document) for document in documents]


class OvertakenStore(LocalFolderStore):
    """A store in which another writer moves the pointer after each of the first `moves` reads."""

    def __init__(self, uri: str, moves: int) -> None:
        super().__init__(uri)
        self._moves = moves
        self._is_writing = False

    def read(self, key: str) -> Content | None:
        content = super().read(key)
        if key == pointer_key(MODEL) and not self._is_writing and self._moves > 0:
            self._moves -= 1
            self.put(key, f'{{"version": "another {self._moves}"}}'.encode())
        return content

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        self._is_writing = True
        try:
            return super().put(key, data, if_none_match=if_none_match, if_match=if_match)
        finally:
            self._is_writing = False


@pytest.mark.parametrize("moves", [1, 2, 9])
def test_a_pointer_that_another_writer_moves_at_the_same_time_is_read_again(tmp_path: Path, moves: int) -> None:
    store = OvertakenStore((tmp_path / "store").as_uri(), moves)

    document = PublishedModel(store, tmp_path / "local").publish()

    assert pointer_version(store) == document.version


def test_a_pointer_that_other_writers_move_each_time_is_a_transient_error(tmp_path: Path) -> None:
    store = OvertakenStore((tmp_path / "store").as_uri(), moves=1000)

    with pytest.raises(TransientError, match=r"other writers moved .*/latest\.json 10 times in a row"):
        PublishedModel(store, tmp_path / "local").publish()


@pytest.mark.parametrize("content", [b"<html>", b"[]", b'{"version": 1}'])
def test_an_invalid_pointer_is_overwritten(store: Store, model: PublishedModel, content: bytes) -> None:
    store.put(pointer_key(MODEL), content)
    assert pointer_version(store) is None

    document = model.publish()

    assert pointer_version(store) == document.version

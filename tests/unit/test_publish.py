"""Gates, versions and the pointer."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_contract.digest import pointer_key, version_key
from edgetune_contract.request import Artifact, Manifest, Publication, Result, Scores
from edgetune_contract.spec import Gates
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput, TransientFault
from edgetune_jobs.folder_store import LocalFolderStore
from edgetune_jobs.publisher import Pointer, StorePublisher
from edgetune_jobs.stages.publish import edge_artifact, judge
from edgetune_jobs.store import Content

SCORES = Scores(base=0.25, tuned=0.853, merged=0.85, edge=0.812)
NO_SCORES = Scores()
WHY = "no evaluation row has an expected keyword or a reference answer; add some, or take the gate away"


@pytest.mark.parametrize(
    ("gates", "scores", "refusal"),
    [
        ({"minScore": 0.9}, SCORES, "minScore: the edge model scores 0.812; the limit is 0.900"),
        ({"minScore": 0.8124}, SCORES, "minScore: the edge model scores 0.8120; the limit is 0.8124"),
        ({"minScore": 0.9}, NO_SCORES, f"minScore: the edge model has no score: {WHY}"),
        (
            {"maxDrop": 0.02},
            SCORES,
            "maxDrop: the edge model scores 0.812, 0.041 below the tuned model's 0.853; the limit is 0.020",
        ),
        ({"maxDrop": 0.02}, NO_SCORES, f"maxDrop: the tuned and the edge model have no scores: {WHY}"),
        (
            {"minImprovement": 70},
            SCORES,
            "minImprovement: the tuned model scores 0.853, 60.3 points above the base model's 0.250; "
            "the limit is 70.0 points",
        ),
        (
            {"minImprovement": 0},
            Scores(base=0.5, tuned=0.4),
            "minImprovement: the tuned model scores 0.400, 10.0 points below the base model's 0.500; "
            "the limit is 0.0 points",
        ),
        ({"minImprovement": 0}, NO_SCORES, f"minImprovement: the base and the tuned model have no scores: {WHY}"),
        (
            {"maxEdgeBytes": "1Ki"},
            SCORES,
            "maxEdgeBytes: the edge model has 2,000 bytes; the limit is 1Ki, 1,024 bytes",
        ),
    ],
)
def test_a_gate_that_does_not_hold_is_one_sentence_with_figure_and_limit(
    gates: Mapping[str, object], scores: Scores, refusal: str
) -> None:
    assert judge(Gates.model_validate(gates), scores, edge_bytes=2000) == (refusal,)


@pytest.mark.parametrize(
    "gates",
    [
        {},
        {"minScore": 0.812},
        {"maxDrop": 0.041},
        {"minImprovement": 60.3},
        {"maxEdgeBytes": 2000},
        {"maxEdgeBytes": "2k"},
    ],
)
def test_a_figure_that_is_exactly_the_limit_holds(gates: Mapping[str, object]) -> None:
    assert judge(Gates.model_validate(gates), SCORES, edge_bytes=2000) == ()


def test_each_gate_that_does_not_hold_has_its_own_sentence() -> None:
    gates = Gates(min_score=0.9, min_improvement=70, max_drop=0.01, max_edge_bytes="1")

    names = [refusal.partition(":")[0] for refusal in judge(gates, SCORES, edge_bytes=2)]

    assert names == ["minScore", "minImprovement", "maxDrop", "maxEdgeBytes"]


@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_the_drop_gate_decides_as_whole_numbers_do(tuned: int, edge: int, limit: int) -> None:
    scores = Scores(tuned=tuned / 1000, edge=edge / 1000)

    refused = judge(Gates(max_drop=limit / 1000), scores, edge_bytes=0)

    assert bool(refused) == (tuned - edge > limit)


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_refusal_never_prints_the_same_number_for_figure_and_limit(edge: float, limit: float) -> None:
    for refusal in judge(Gates(min_score=limit), Scores(edge=edge), edge_bytes=0):
        figure, _, printed_limit = refusal.removeprefix("minScore: the edge model scores ").partition("; the limit is ")
        assert figure != printed_limit


def manifest(stage: Stage, *artifacts: Artifact) -> Manifest:
    result = Result(stage=stage, digest="0" * 64, artifacts=artifacts)
    return Manifest(result=result, created_at="2026-11-24T08:00:00+00:00")


def test_a_quantize_manifest_without_an_edge_model_is_refused() -> None:
    with pytest.raises(InvalidInput, match="the manifest of quantize names no edge model"):
        edge_artifact(manifest(Stage.QUANTIZE))


@pytest.fixture
def store(tmp_path: Path) -> LocalFolderStore:
    return LocalFolderStore(tmp_path.as_uri())


@pytest.fixture
def publisher(store: LocalFolderStore) -> StorePublisher:
    return StorePublisher(store, "m", manifest)


def pointed_at(store: LocalFolderStore) -> str | None:
    content = store.read(pointer_key("m"))
    return None if content is None else json.loads(content.data)["version"]


def test_the_pointer_is_a_copy_of_the_version_that_was_published(
    store: LocalFolderStore, publisher: StorePublisher
) -> None:
    publication = publisher.publish({"scores": {"edge": 0.9}}, Publication(published=True, version="a" * 64))

    version, pointer = store.read(version_key("m", "a" * 64)), store.read(pointer_key("m"))
    assert version is not None
    assert version == pointer
    document = json.loads(version.data)
    assert (document["version"], document["scores"]) == ("a" * 64, {"edge": 0.9})
    assert document["createdAt"]
    assert publication.pointer == f"{store.uri}/models/m/latest.json"


def test_a_refused_version_is_written_and_the_pointer_stays(store: LocalFolderStore, publisher: StorePublisher) -> None:
    publisher.publish({}, Publication(published=True, version="a" * 64))

    publication = publisher.publish({}, Publication(published=False, version="b" * 64, refusals=("too bad",)))

    assert publication.pointer is None
    assert store.read(version_key("m", "b" * 64)) is not None
    assert pointed_at(store) == "a" * 64


class OvertakenStore(LocalFolderStore):
    """A store in which another writer moves the pointer after each of the first `moves` reads."""

    def __init__(self, uri: str, moves: int) -> None:
        super().__init__(uri)
        self._moves = moves
        self._is_writing = False

    def read(self, key: str) -> Content | None:
        content = super().read(key)
        if key == pointer_key("m") and not self._is_writing and self._moves > 0:
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
    store = OvertakenStore(tmp_path.as_uri(), moves)

    StorePublisher(store, "m", manifest).publish({}, Publication(published=True, version="b" * 64))

    assert pointed_at(store) == "b" * 64


def test_a_pointer_that_is_always_moved_by_others_is_a_passing_fault(tmp_path: Path) -> None:
    store = OvertakenStore(tmp_path.as_uri(), moves=1000)

    with pytest.raises(TransientFault, match="was moved by others 10 times in a row"):
        Pointer(store, "m").move(b"{}")


def test_moving_back_needs_the_versions_document(store: LocalFolderStore, publisher: StorePublisher) -> None:
    publisher.publish({}, Publication(published=True, version="a" * 64))
    publisher.publish({}, Publication(published=True, version="b" * 64))
    pointer = Pointer(store, "m")

    pointer.move_back("a" * 64)

    assert pointer.names("a" * 64)
    with pytest.raises(InvalidInput, match=rf"versions/{'c' * 64}\.json is missing"):
        pointer.move_back("c" * 64)


def test_a_pointer_that_is_no_json_is_written_anew(store: LocalFolderStore, publisher: StorePublisher) -> None:
    store.put(pointer_key("m"), b"<html>")
    assert not Pointer(store, "m").names("a" * 64)

    publisher.publish({}, Publication(published=True, version="a" * 64))

    assert pointed_at(store) == "a" * 64

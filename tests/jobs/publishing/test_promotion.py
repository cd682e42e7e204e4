"""Promotion between stores: local folders, and two buckets of a real S3 server with a user for each."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgetune_contract.digest import pointer_key, version_key
from edgetune_contract.stages import Stage
from edgetune_contract.version import VersionDocument
from edgetune_jobs.errors import AccessDenied, InvalidInput, TransientError
from edgetune_jobs.publishing.addresses import ModelAddress, StageAddress
from edgetune_jobs.publishing.model_card.card import with_cards
from edgetune_jobs.publishing.promotion import Promotion, Stores, promote
from edgetune_jobs.publishing.publisher import Pointer, encode, read_done_stage
from edgetune_jobs.publishing.verification import stages_of_version, verify
from edgetune_jobs.runtime.clean_up import clean_up
from edgetune_jobs.store.files import Fingerprint, fingerprint_of_bytes
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.manifests import require_manifest, write_manifest_once
from edgetune_jobs.store.s3.client import Credentials
from edgetune_jobs.store.s3.store import S3Store
from edgetune_jobs.store.store import DamagedObject, Store
from support.published import MODEL, OTHER_STAGES, PublishedModel
from support.versitygw import S3Server, allow, create_user


def quiet(_: str) -> None:
    """Progress that nobody reads."""


DEV, PROD = Credentials("dev", "dev-secret"), Credentials("prod", "prod-secret")
PROD_BUCKET = "edgetune-prod"


@pytest.fixture(scope="module")
def users(s3_server: S3Server) -> S3Server:
    """The server with a user who reads the one bucket, and one who writes the other bucket."""
    for user in (DEV, PROD):
        create_user(s3_server, user)
    s3_server.client().create_bucket(Bucket=PROD_BUCKET)
    allow(
        s3_server,
        PROD_BUCKET,
        PROD,
        objects=["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
        bucket_actions=["s3:ListBucket", "s3:ListBucketMultipartUploads"],
    )
    return s3_server


@dataclass(frozen=True)
class Ends:
    """A store with a published model, and an empty one."""

    model: PublishedModel
    target: Store
    scratch: Path

    @property
    def stores(self) -> Stores:
        return Stores(self.model.store, self.target, MODEL, self.scratch)

    def promote(self, version: str | None = None, edge_only: bool = False) -> Promotion:
        return promote(self.stores, version, edge_only, quiet)

    def pointed(self) -> str | None:
        return Pointer(self.target, MODEL).version

    def states(self) -> dict[str, str]:
        found = verify(self.target, ModelAddress(self.target.uri, MODEL, None))
        assert found.problems == ()
        return {check.stage: check.state for check in found.stages}


@pytest.fixture(params=["folder", "buckets", "folder to bucket"])
def ends(request: pytest.FixtureRequest, tmp_path: Path, s3_prefix: str) -> Iterator[Ends]:
    (tmp_path / "scratch").mkdir()
    source: Store = LocalFolderStore((tmp_path / "dev" / "team-a").as_uri())
    target: Store = LocalFolderStore((tmp_path / "prod" / "team-b").as_uri())
    if request.param != "folder":
        server: S3Server = request.getfixturevalue("users")
        target = S3Store(f"s3://{PROD_BUCKET}/{s3_prefix}/team-b", server.client(credentials=PROD))
    if request.param == "buckets":
        source = S3Store(f"s3://{server.bucket}/{s3_prefix}/team-a", server.client())
    yield Ends(PublishedModel(source, tmp_path / "local"), target, tmp_path / "scratch")
    # After a failure, other transfers may still be ending.
    deadline = time.monotonic() + 30
    while list((tmp_path / "scratch").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list((tmp_path / "scratch").iterdir()) == []


def test_the_target_is_whole_and_the_same_recipe_finds_every_stage_there(ends: Ends) -> None:
    document = ends.model.publish_run()

    done = ends.promote()

    assert (done.version, done.notes, done.found_files) == (document.version, [], 0)
    assert ends.pointed() == document.version
    assert set(ends.states().values()) == {"whole"}
    for stage, digest in stages_of_version(document).items():
        manifest = read_done_stage(ends.target, MODEL, stage, digest)
        assert manifest is not None, stage
        for artifact in manifest.result.artifacts:
            assert artifact.uri.startswith(f"{ends.target.uri}/stages/{stage}/{digest}/")
        if manifest.result.publication is not None:
            assert manifest.result.publication.pointer == f"{ends.target.uri}/{pointer_key(MODEL)}"


def test_a_second_promotion_copies_nothing(ends: Ends) -> None:
    ends.model.publish_run()
    first = ends.promote()

    second = ends.promote()

    assert (second.copied_files, second.found_files) == (0, first.copied_files)


def test_a_version_is_promoted_by_its_first_digits_and_the_pointer_goes_back_to_it(ends: Ends) -> None:
    older, newer = ends.model.publish_run(), ends.model.publish_run()
    ends.promote()
    assert ends.pointed() == newer.version

    ends.promote(older.version[:12])

    assert ends.pointed() == older.version


def test_model_cards_are_copied_with_their_version(ends: Ends) -> None:
    ends.model.has_cards = True
    document = ends.model.publish_run()

    done = ends.promote(edge_only=True)

    assert done.copied_files == 4
    found = verify(ends.target, ModelAddress(ends.target.uri, MODEL, None))
    assert found.version == document
    assert [check.artifact.name for check in found.artifacts] == ["edge-bnb-int8", "card of edge-bnb-int8"]
    assert found.problems == ()


def test_the_edge_model_alone_is_enough_for_edge_devices(ends: Ends) -> None:
    ends.model.publish_run()

    done = ends.promote(edge_only=True)

    assert done.copied_files == 3
    assert ends.states() == {
        **dict.fromkeys(OTHER_STAGES, "missing"),
        Stage.QUANTIZE: "whole",
        Stage.PUBLISH: "missing",
    }


class _StoppingStore(LocalFolderStore):
    """A store that refuses from the nth object on that is written."""

    def __init__(self, uri: str, writes: int) -> None:
        super().__init__(uri)
        self._left = writes
        self._lock = threading.Lock()

    def _count(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left < 0:
                raise TransientError("stopped")

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        self._count()
        return super().put(key, data, if_none_match=if_none_match, if_match=if_match)

    def upload_file(self, path: Path, key: str) -> Fingerprint:
        self._count()
        return super().upload_file(path, key)


def test_wherever_it_is_stopped_nothing_half_is_visible_and_the_next_one_finishes(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    model = PublishedModel(LocalFolderStore((tmp_path / "dev").as_uri()), tmp_path / "local")
    document = model.publish_run()
    stopped = True
    writes = 0
    while stopped:
        target = LocalFolderStore((tmp_path / f"prod-{writes}").as_uri())
        stopping = _StoppingStore(target.uri, writes)
        try:
            promote(Stores(model.store, stopping, MODEL, tmp_path / "scratch"), None, False, quiet)
            stopped = False
        except TransientError:
            assert Pointer(target, MODEL).version is None
            for stage, digest in stages_of_version(document).items():
                if read_done_stage(target, MODEL, stage, digest) is not None:
                    assert verify_stage(target, stage, digest) == ()
        ends = Ends(model, target, tmp_path / "scratch")
        ends.promote()
        assert (ends.pointed(), set(ends.states().values())) == (document.version, {"whole"})
        writes += 1
    assert writes > 20


def verify_stage(store: Store, stage: Stage, digest: str) -> tuple[str, ...]:
    return verify(store, StageAddress(store.uri, stage, digest, None)).problems


def test_two_promotions_at_once_leave_a_whole_store_that_names_one_of_them(ends: Ends) -> None:
    older, newer = ends.model.publish_run(), ends.model.publish_run()
    failures: list[BaseException] = []

    def run(version: str) -> None:
        try:
            ends.promote(version)
        except BaseException as error:  # noqa: BLE001 - reported by the test
            failures.append(error)

    threads = [threading.Thread(target=run, args=(each.version,)) for each in (older, newer, older, newer)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert ends.pointed() in (older.version, newer.version)
    for version in (older.version, newer.version):
        found = verify(ends.target, ModelAddress(ends.target.uri, MODEL, version))
        assert (found.problems, {check.state for check in found.stages}) == ((), {"whole"})


def test_a_changed_file_of_the_source_stops_it_before_the_pointer(ends: Ends) -> None:
    document = ends.model.publish_run()
    entry = document.edge.files[0]
    ends.model.store.put(f"{document.edge.key}/{entry.path}", b"x" * entry.bytes)

    with pytest.raises(DamagedObject, match="is damaged"):
        ends.promote()

    assert ends.pointed() is None


def test_a_file_that_the_target_has_with_other_content_is_replaced(ends: Ends) -> None:
    document = ends.model.publish_run()
    entry = document.edge.files[0]
    ends.target.put(f"{document.edge.key}/{entry.path}", b"x" * entry.bytes)

    ends.promote()

    assert set(ends.states().values()) == {"whole"}


def test_a_stage_that_a_run_in_the_target_has_made_stays_and_another_edge_model_is_refused(ends: Ends) -> None:
    document = ends.model.publish_run()
    for stage in (Stage.TRAIN, Stage.QUANTIZE):
        digest = stages_of_version(document)[stage]
        manifest = require_manifest(ends.model.store, stage, digest)
        other = [entry.model_copy(update={"sha256": "0" * 64}) for entry in manifest.files]
        ends.target.delete_tree("stages/train")
        write_manifest_once(ends.target, stage, digest, manifest.model_copy(update={"files": tuple(other)}))

    with pytest.raises(InvalidInput, match="has another edge model from the same inputs, made by a run there"):
        ends.promote()

    assert ends.pointed() is None
    assert [found.key for found in ends.target.list("models")] == []


def with_papers(document: VersionDocument, said: str, examples: int) -> tuple[VersionDocument, dict[str, bytes]]:
    """A version with a report, and a card with this number of examples; and the files."""
    scores = document.scores.model_copy(update={"examples": examples})
    report = fingerprint_of_bytes(said.encode()).entry("report.html")
    document, files = with_cards(document.model_copy(update={"scores": scores, "report": report}))
    return document, {**files, f"{document.reports_key}/report.html": said.encode()}


@pytest.mark.parametrize("examples", [64, 32])
def test_a_document_of_the_targets_own_keeps_its_cards_and_its_report(ends: Ends, examples: int) -> None:
    """The cards of both are equal with 64 examples, and differ with 32."""
    document, files = with_papers(ends.model.publish_run(), "of dev", 64)
    ends.model.publisher.publish(document, files)
    ends.promote(edge_only=True)
    own, own_files = with_papers(document, "of prod", examples)
    assert (own.edges == document.edges) == (examples == 64)
    PublishedModel(ends.target, ends.scratch).publisher.publish(own, own_files)

    done = ends.promote()

    assert [note for note in done.notes if "with a document of its own, whose model cards, report" in note]
    found = verify(ends.target, ModelAddress(ends.target.uri, MODEL, None))
    assert (found.version, found.problems) == (own, ())


def test_what_cannot_be_promoted_is_refused(ends: Ends) -> None:
    refused = ends.model.publish(refusals=("minScore: 0.2 is below 0.8",))
    with pytest.raises(InvalidInput, match="there is nothing at"):
        ends.promote()
    with pytest.raises(InvalidInput, match="--version: the gates refused version"):
        ends.promote(refused.version[:12])
    with pytest.raises(InvalidInput, match="--version: sensor-faults has no version 0123456789ab"):
        ends.promote("0123456789ab")
    document = ends.model.publish_run()
    with pytest.raises(InvalidInput, match="is both the source and the target"):
        promote(Stores(ends.model.store, ends.model.store, MODEL, ends.scratch), None, False, quiet)
    published = document.model_copy(update={"published": False, "refusals": ("no",)})
    ends.target.put(version_key(MODEL, document.version), encode(published))
    with pytest.raises(InvalidInput, match="is there with a refusal by its gates"):
        ends.promote()
    ends.model.store.delete_tree("stages/quantize")
    with pytest.raises(InvalidInput, match="the manifest of edge-bnb-int8 is missing"):
        ends.promote()


def test_a_clean_up_of_another_object_keeps_what_was_promoted(ends: Ends) -> None:
    document = ends.model.publish_run()
    ends.promote()

    clean_up(ends.target, "another")

    assert set(ends.states().values()) == {"whole"}
    removed = clean_up(ends.target, MODEL)
    assert removed.removed_objects > len(document.edge.files)
    assert [found.key for folder in ("models", "stages", "uses") for found in ends.target.list(folder)] == []


def test_each_user_reaches_only_its_own_bucket(users: S3Server, tmp_path: Path, s3_prefix: str) -> None:
    """The first attempt uses the source's key for both ends."""
    source = S3Store(f"s3://{users.bucket}/{s3_prefix}", users.client())
    PublishedModel(source, tmp_path / "local").publish_run()
    target = S3Store(f"s3://{PROD_BUCKET}/{s3_prefix}", users.client(credentials=DEV))

    with pytest.raises(AccessDenied):
        promote(Stores(source, target, MODEL, tmp_path), None, False, quiet)


def test_a_store_copied_by_hand_without_its_publications_is_promoted_with_a_note(tmp_path: Path) -> None:
    model = PublishedModel(LocalFolderStore((tmp_path / "dev").as_uri()), tmp_path / "local")
    model.publish_run()
    model.store.delete_tree("stages/publish")
    (tmp_path / "dev").rename(tmp_path / "copied")
    source, target = (LocalFolderStore((tmp_path / name).as_uri()) for name in ("copied", "prod"))

    done = promote(Stores(source, target, MODEL, tmp_path), None, False, quiet)

    assert done.notes == [f"publish is not in {source.uri}: a run with {done.pointer} runs it again"]
    assert verify(target, ModelAddress(target.uri, MODEL, None)).problems == ()

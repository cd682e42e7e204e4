"""Pruning of a store, in a folder and in a real bucket: only what nothing needs is removed."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from edgetune_contract.digest import base_gguf_digest, manifest_key, signatures_key, stage_key, use_key, version_key
from edgetune_contract.stages import Stage
from edgetune_jobs.publishing.publisher import Pointer
from edgetune_jobs.publishing.versions import Versions
from edgetune_jobs.runtime.pruning import Kept, plan_pruning, prune
from edgetune_jobs.store.artifact_uses import Use, Uses, is_in_use
from edgetune_jobs.store.store import Store
from support.gguf_adapters import PublishedAdapters
from support.published import MODEL, PublishedModel
from support.signing import make_key
from support.stage_runs import wait_until
from support.used_stages import MERGED, TRAINED, keys, make_stage

LATER = datetime.now(UTC) + timedelta(days=1)
ONE = Kept(since=LATER)


@pytest.fixture
def model(store: Store, tmp_path: Path) -> PublishedModel:
    return PublishedModel(store, tmp_path / "local", has_cards=True)


def mark_run(store: Store, model: PublishedModel) -> str:
    """Publish a version whose stages its object has marked; its digest."""
    document = model.publish_run()
    stages = {stage: origin.digest for stage, origin in document.provenance.stages.items()}
    for stage, digest in {**stages, Stage.PUBLISH: document.version}.items():
        Uses(store, model.name).mark(Use(stage, digest))
    return document.version


def test_the_newest_published_version_keeps_all_stages_of_its_run_and_older_ones_go(
    store: Store, model: PublishedModel
) -> None:
    older = mark_run(store, model)
    known = keys(store)
    newer = mark_run(store, model)
    of_newer = keys(store) - known

    documents = sum(each.bytes for each in store.list(f"models/{MODEL}/versions") if older in each.key)

    plan = plan_pruning(store, ONE)
    removed = prune(store, plan)

    assert removed.bytes == plan.bytes + documents
    assert removed.items == [*plan.versions, *plan.outputs, *plan.copies]
    assert [(each.version, each.why) for each in plan.versions] == [(older, "not among the newest 1")]
    assert [each.use.stage for each in plan.outputs] == list(Stage)[::-1]
    assert all(each.models == (MODEL,) for each in plan.outputs)
    assert keys(store) == of_newer | {f"models/{MODEL}/latest.json"}
    Versions(store, MODEL).require_files(Versions(store, MODEL).find(newer))


def test_the_signatures_of_a_version_go_with_it(store: Store, tmp_path: Path) -> None:
    model = PublishedModel(store, tmp_path / "local", signing_key=make_key(tmp_path / "key").private)
    older, newer = mark_run(store, model), mark_run(store, model)
    of_newer = [found.key for found in store.list(signatures_key(MODEL, newer))]

    prune(store, plan_pruning(store, ONE))

    assert list(store.list(signatures_key(MODEL, older))) == []
    assert [found.key for found in store.list(signatures_key(MODEL, newer))] == of_newer != []


def test_the_current_and_the_pinned_version_are_kept_however_old(store: Store, model: PublishedModel) -> None:
    pinned, current, newest = (mark_run(store, model) for _ in range(3))
    model.publisher.pin(current)

    plan = plan_pruning(store, replace(ONE, pins={MODEL: pinned[:12]}))

    assert plan.is_empty
    assert Pointer(store, MODEL).version == current != newest


def test_a_refused_version_goes_unless_it_is_in_the_status_of_an_object(store: Store, model: PublishedModel) -> None:
    mark_run(store, model)
    refused = model.publish(0.1, ("minScore: bad",)).version

    kept = plan_pruning(store, replace(ONE, digests={refused}))
    plan = plan_pruning(store, ONE)

    assert kept.is_empty
    assert [(each.version, each.why) for each in plan.versions] == [(refused, "refused by its gates")]


def test_what_was_used_since_is_kept(store: Store, model: PublishedModel) -> None:
    for _ in range(2):
        mark_run(store, model)

    assert plan_pruning(store, Kept(since=datetime.now(UTC) - timedelta(hours=1))).is_empty


def test_an_output_that_another_object_needs_is_kept_and_the_last_user_decides(
    store: Store, model: PublishedModel
) -> None:
    mark_run(store, model)
    make_stage(store, Stage.TRAIN, TRAINED)
    for name in (MODEL, "pump-faults"):
        Uses(store, name).mark(Use(Stage.TRAIN, TRAINED))

    kept = plan_pruning(store, replace(ONE, digests={TRAINED}))
    plan = plan_pruning(store, ONE)
    prune(store, plan)

    assert kept.is_empty
    assert [(each.use.digest, each.models) for each in plan.outputs] == [(TRAINED, ("pump-faults", MODEL))]
    assert not {key for key in keys(store) if TRAINED in key}, "neither files, nor checkpoints, nor marks"


def test_an_output_that_a_run_marks_meanwhile_is_kept_with_its_mark(store: Store, model: PublishedModel) -> None:
    mark_run(store, model)
    make_stage(store, Stage.MERGE, MERGED)
    use = Use(Stage.MERGE, MERGED)
    Uses(store, MODEL).mark(use)
    plan = plan_pruning(store, ONE)
    Uses(store, "newcomer").mark(use)

    prune(store, plan)

    assert store.read(manifest_key(*vars(use).values())) is not None
    assert len([*store.list(stage_key(Stage.MERGE, MERGED))]) == 3
    assert store.read(use_key(Stage.MERGE, MERGED, "newcomer")) is not None


def written_at(store: Store, key: str) -> datetime:
    content = store.read(key)
    assert content is not None
    return content.written_at


def mark_again(store: Store, use: Use, name: str) -> None:
    """Mark an output at another time: a bucket has whole seconds."""
    key = use_key(use.stage, use.digest, name)
    before = written_at(store, key)

    def is_marked_later() -> bool:
        Uses(store, name).mark(use)
        return written_at(store, key) > before

    wait_until(is_marked_later, "another time of the mark")


def test_an_output_that_its_own_object_marks_again_meanwhile_is_kept_with_its_mark(
    store: Store, model: PublishedModel
) -> None:
    mark_run(store, model)
    make_stage(store, Stage.MERGE, MERGED)
    use = Use(Stage.MERGE, MERGED)
    Uses(store, MODEL).mark(use)
    before = keys(store)
    plan = plan_pruning(store, ONE)
    mark_again(store, use, MODEL)

    removed = prune(store, plan)

    assert [each.use for each in plan.outputs] == [use]
    assert (removed.items, removed.objects, keys(store)) == ([], 0, before)
    assert is_in_use(store, use, MODEL)


def test_what_cannot_be_judged_any_more_when_it_is_removed_is_kept(store: Store, model: PublishedModel) -> None:
    for _ in range(3):
        mark_run(store, model)
    before = keys(store)
    plan = plan_pruning(store, ONE)
    store.put(version_key(MODEL, "f" * 64), b"{}")  # nothing that the object has used can be judged any more

    prune(store, replace(plan, versions=()))

    assert len(plan.outputs) == 2 * len(Stage)
    assert keys(store) == before | {version_key(MODEL, "f" * 64)}


def test_a_base_in_gguf_is_kept_with_an_output_that_was_marked_meanwhile(store: Store, tmp_path: Path) -> None:
    mark_run(store, PublishedAdapters(store, tmp_path / "local"))
    store.delete_tree("models")
    base = [found.key for found in store.list("shared")]
    plan = plan_pruning(store, ONE)
    (quantized,) = (each.use for each in plan.outputs if each.use.stage is Stage.QUANTIZE)
    Uses(store, "newcomer").mark(quantized)

    prune(store, plan)

    assert [each.folder for each in plan.copies] == [f"shared/{base_gguf_digest('a' * 64)}"]
    assert [found.key for found in store.list("shared")] == base
    assert {key.split("/")[1] for key in keys(store) if key.startswith("stages/")} == {Stage.QUANTIZE}


def test_a_training_that_has_written_a_checkpoint_since_is_kept_with_all_that_its_object_has_used(
    store: Store, model: PublishedModel
) -> None:
    mark_run(store, model)
    prepared = "9" * 64
    for name, stage, digest in (
        ("bearings", Stage.PREPARE, prepared),
        ("bearings", Stage.TRAIN, TRAINED),
        ("pumps", Stage.MERGE, MERGED),
    ):
        make_stage(store, stage, digest)
        Uses(store, name).mark(Use(stage, digest))
    store.delete(manifest_key(Stage.TRAIN, TRAINED))
    before = max(written_at(store, key) for key in keys(store))
    checkpoint = f"checkpoints/{TRAINED}/step-200/manifest.json"

    def is_written_later() -> bool:
        store.put(checkpoint, b"{}")
        return written_at(store, checkpoint) > before

    wait_until(is_written_later, "a checkpoint that is newer than the marks")

    during = plan_pruning(store, Kept(since=written_at(store, checkpoint)))
    after = plan_pruning(store, ONE)

    assert [each.use.digest for each in during.outputs] == [MERGED]
    assert [each.use.digest for each in after.outputs] == [MERGED, TRAINED, prepared]


def test_all_that_a_model_with_an_unreadable_version_has_used_is_kept(store: Store, model: PublishedModel) -> None:
    mark_run(store, model)
    mark_run(store, model)
    store.put(version_key(MODEL, "f" * 64), b"{}")

    plan = plan_pruning(store, ONE)

    assert plan.outputs == ()
    assert plan.notes[0].startswith(f"all that {MODEL} has used is kept: ")


def test_a_copy_of_a_base_model_goes_when_no_output_is_left_that_was_made_from_it(
    store: Store, model: PublishedModel
) -> None:
    mark_run(store, model)
    for digest in ("a" * 64, "9" * 64):  # the first is the base of the published versions
        store.put(f"sources/{digest}/89ab/model.safetensors", b"ten bytes.")
        store.put(f"sources/{digest}/manifest.json", b'{"files": []}')

    plan = plan_pruning(store, ONE)
    prune(store, plan)

    assert [(each.digest, each.bytes) for each in plan.copies] == [("9" * 64, 23)]
    assert {key.split("/")[1] for key in keys(store) if key.startswith("sources/")} == {"a" * 64}


def test_a_base_in_gguf_goes_when_no_version_has_it_and_no_output_was_made_from_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark_run(store, PublishedAdapters(store, tmp_path / "local"))
    named, unused = base_gguf_digest("a" * 64), "9" * 64
    monkeypatch.setattr("edgetune_contract.digest._BASE_GGUF_VERSION", 2)  # a run would make and find another one
    next_one = base_gguf_digest("a" * 64)
    for digest in (next_one, unused):
        store.put(f"shared/{digest}/base.gguf", b"ten bytes.")
        store.put(f"shared/{digest}/manifest.json", b'{"files": []}')

    plan = plan_pruning(store, ONE)
    prune(store, plan)

    assert [(each.folder, each.bytes) for each in plan.copies] == [(f"shared/{unused}", 23)]
    assert {each.key.split("/")[1] for each in store.list("shared")} == {named, next_one}

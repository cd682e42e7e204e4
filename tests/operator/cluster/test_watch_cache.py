"""The watch cache: what it keeps, and which changes wake an object. test_resync covers what is removed, and when."""

from typing import Any

import pytest

from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.cluster.watch_cache import Cache, Kind
from support.builders import NAMESPACE, UID, JobBuilder, PodBuilder, lora_fine_tune

KEY = Key(NAMESPACE, "sensor-faults")
OWNER = {"namespace": NAMESPACE, "uid": UID}
JOB = "sensor-faults-train-0123456789"


def at(version: int, document: dict[str, Any]) -> dict[str, Any]:
    """A document with this resource version."""
    document["metadata"]["resourceVersion"] = str(version)
    return document


def job(version: int, **status: Any) -> dict[str, Any]:
    """The object's Job."""
    built = at(version, JobBuilder(Stage.TRAIN, "0123456789" * 6 + "abcd", name=JOB).build())
    built["status"] |= status
    return built


def pod(version: int, builder: PodBuilder) -> dict[str, Any]:
    """A Pod of that Job."""
    return at(version, builder.build())


@pytest.fixture
def cache() -> Cache:
    """A cache that has the object, in version 1."""
    cache = Cache()
    assert cache.put(Kind.OBJECT, at(1, lora_fine_tune().build())) == KEY
    return cache


def test_a_document_is_read_as_it_was_written(cache: Cache) -> None:
    cache.put(Kind.JOB, job(2))
    cache.put(Kind.POD, pod(3, PodBuilder(JOB, "pod").running()))

    assert cache.get_object(KEY) == at(1, lora_fine_tune().with_metadata(annotations={}).build())
    assert [found["metadata"]["name"] for found in cache.jobs_of(OWNER)] == [JOB]
    assert [found["status"]["phase"] for found in cache.pods_of(OWNER)] == ["Running"]


def test_the_annotation_of_kubectl_is_dropped(cache: Cache) -> None:
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "team": "a"}
    cache.put(Kind.OBJECT, at(2, lora_fine_tune().with_metadata(annotations=annotations, managedFields=[{}]).build()))

    found = cache.get_object(KEY)
    assert found is not None
    assert found["metadata"]["annotations"] == {"team": "a"}
    assert "managedFields" not in found["metadata"]


def test_the_watch_event_of_an_own_write_wakes_nothing(cache: Cache) -> None:
    written = at(2, lora_fine_tune().with_status({"phase": "Training"}).build())
    cache.put_object(written)
    cache.put_job(job(3))

    assert cache.put(Kind.OBJECT, written) is None
    assert cache.put(Kind.JOB, job(3)) is None


def test_a_stale_version_is_ignored(cache: Cache) -> None:
    cache.put(Kind.OBJECT, at(3, lora_fine_tune().with_status({"phase": "Training"}).build()))

    assert cache.put(Kind.OBJECT, at(2, lora_fine_tune().build())) is None
    assert cache.phases() == {"Training": 1}


def test_a_recreated_object_replaces_the_old_one_even_with_a_lower_version(cache: Cache) -> None:
    cache.put(Kind.OBJECT, at(9, lora_fine_tune().build()))

    assert cache.put(Kind.OBJECT, at(5, lora_fine_tune().with_metadata(uid="another").build())) == KEY


def test_the_fields_of_a_job_that_a_pass_compares_are_kept(cache: Cache) -> None:
    manifest = job(7)
    manifest["metadata"]["annotations"][names.SETTINGS_ANNOTATION] = "0123456789abcdef"
    stage = {"name": "stage", "resources": {"requests": {"nvidia.com/gpu": "2"}, "limits": {"nvidia.com/gpu": "2"}}}
    limits = {"backoffLimit": 3, "activeDeadlineSeconds": 600, "suspend": True}
    pod_spec = {"containers": [stage | {"image": "edgetune"}, {"name": "sidecar"}], "nodeSelector": {}}
    manifest["spec"] = {**limits, "template": {"metadata": {}, "spec": pod_spec}, "completions": 1}

    cache.put(Kind.JOB, manifest)

    (kept,) = cache.jobs_of(OWNER)
    assert kept["metadata"]["annotations"][names.SETTINGS_ANNOTATION] == "0123456789abcdef"
    containers = [stage, {"name": "sidecar", "resources": {}}]
    assert kept["spec"] == {**limits, "template": {"spec": {"containers": containers}}}


def test_a_job_wakes_its_object_only_if_a_field_changed_that_a_pass_reads(cache: Cache) -> None:
    assert cache.put(Kind.JOB, job(2)) == KEY
    assert cache.put(Kind.JOB, job(3, ready=1, uncountedTerminatedPods={})) is None
    assert cache.put(Kind.JOB, job(4, active=0, succeeded=1)) == KEY


def test_a_pod_wakes_its_object_only_if_a_field_changed_that_a_pass_reads(cache: Cache) -> None:
    builder = PodBuilder(JOB, "pod")
    finished = pod(4, builder.ended(0, "{}"))

    assert cache.put(Kind.POD, pod(2, builder.running())) == KEY
    assert cache.put(Kind.POD, finished) == KEY
    # The Job controller has counted it and removed its finalizer.
    assert cache.put(Kind.POD, at(5, finished | {"metadata": finished["metadata"] | {"finalizers": []}})) is None


def test_a_job_that_is_being_deleted_wakes_its_object_once_it_is_gone(cache: Cache) -> None:
    cache.put(Kind.JOB, job(2))
    cache.mark_job_deleting(OWNER, JOB, "2026-11-24T08:00:00Z")
    assert cache.jobs_of(OWNER)[0]["metadata"]["deletionTimestamp"] == "2026-11-24T08:00:00Z"

    assert cache.remove(Kind.JOB, job(3)) == KEY
    assert cache.jobs_of(OWNER) == []


def test_a_job_is_kept_until_its_object_is_known() -> None:
    cache = Cache()

    assert cache.put(Kind.JOB, job(2)) is None
    assert cache.put(Kind.OBJECT, at(1, lora_fine_tune().build())) == KEY
    assert len(cache.jobs_of(OWNER)) == 1


def test_a_job_that_no_longer_exists_is_removed_with_its_pods(cache: Cache) -> None:
    cache.put(Kind.JOB, job(2))
    cache.put(Kind.POD, pod(3, PodBuilder(JOB, "pod").ended(0, "{}")))

    cache.forget_job(OWNER, JOB)
    cache.forget_job(OWNER, "never-there")

    assert (cache.jobs_of(OWNER), cache.pods_of(OWNER)) == ([], [])


def test_a_job_of_an_unknown_object_is_not_marked_as_deleted(cache: Cache) -> None:
    cache.mark_job_deleting(OWNER | {"uid": "unknown"}, JOB, "2026-11-24T08:00:00Z")

    assert cache.documents(Kind.JOB) == []
    assert not cache._jobs


def test_a_job_in_another_namespace_that_claims_the_uid_is_not_the_objects(cache: Cache) -> None:
    """Anybody can set labels and owner references, and a name is unique only within a namespace."""
    cache.put(Kind.JOB, job(2))
    cache.put(Kind.POD, pod(3, PodBuilder(JOB, "pod").running()))
    forged_job, forged_pod = job(4), pod(5, PodBuilder(JOB, "pod").ended(0, "{}"))
    clean_up = JobBuilder(Stage.PUBLISH, "", name="clean-up").complete().build()
    clean_up["metadata"]["labels"] = {names.STAGE_LABEL: names.CLEAN_UP, names.UID_LABEL: UID}
    forged = [(Kind.JOB, forged_job), (Kind.JOB, at(6, clean_up)), (Kind.POD, forged_pod)]
    for _, body in forged:
        body["metadata"] |= {"namespace": "team-b", "uid": "forged"}

    woken = [cache.put(kind, body) for kind, body in forged]
    woken += [cache.remove(kind, body) for kind, body in forged[1:]]

    assert woken == [None] * 5
    assert [found["metadata"]["uid"] for found in cache.jobs_of(OWNER)] == [f"uid-of-{JOB}"]
    assert [found["metadata"]["uid"] for found in cache.pods_of(OWNER)] == ["uid-of-pod"]


def test_a_pod_reported_after_its_job_was_deleted_is_removed_when_it_is_deleted(cache: Cache) -> None:
    ended = PodBuilder(JOB, "pod").ended(0, "{}")
    cache.put(Kind.JOB, job(2))
    cache.put(Kind.POD, pod(3, PodBuilder(JOB, "pod").running()))
    cache.remove(Kind.JOB, job(4))

    cache.put(Kind.POD, pod(5, ended))
    cache.remove(Kind.POD, pod(6, ended))

    assert cache.documents(Kind.POD) == []


def test_a_job_that_loses_its_owner_leaves_its_object_at_once(cache: Cache) -> None:
    cache.put(Kind.JOB, job(2))
    cache.put(Kind.POD, pod(3, PodBuilder(JOB, "pod", job_uid=f"uid-of-{JOB}").ended(0)))
    orphan = job(4)
    orphan["metadata"]["ownerReferences"] = []

    assert cache.put(Kind.JOB, orphan) == KEY
    assert (cache.jobs_of(OWNER), cache.pods_of(OWNER)) == ([], [])
    assert cache.remove(Kind.JOB, orphan) is None


def test_a_job_whose_deletion_is_the_first_news_of_its_lost_owner_is_removed(cache: Cache) -> None:
    cache.put(Kind.JOB, job(2))
    orphan = job(4)
    del orphan["metadata"]["ownerReferences"]

    assert cache.remove(Kind.JOB, orphan) == KEY
    assert cache.jobs_of(OWNER) == []


def test_a_job_that_another_object_takes_wakes_the_one_that_had_it(cache: Cache) -> None:
    cache.put(Kind.JOB, job(2))
    taken, stale = job(4), job(3)
    taken["metadata"]["ownerReferences"][0]["uid"] = stale["metadata"]["ownerReferences"][0]["uid"] = "of-another"

    assert cache.put(Kind.JOB, taken) == KEY
    assert cache.put(Kind.JOB, job(2)) is None, "an older version does not bring it back"
    assert cache.jobs_of(OWNER) == []
    assert len(cache.jobs_of({"namespace": NAMESPACE, "uid": "of-another"})) == 1


def test_a_pod_whose_label_is_changed_is_removed_when_it_is_deleted(cache: Cache) -> None:
    cache.put(Kind.JOB, job(2))
    cache.put(Kind.POD, pod(3, PodBuilder(JOB, "pod").running()))
    relabelled = pod(4, PodBuilder(JOB, "pod").running())
    relabelled["metadata"]["labels"] = {names.UID_LABEL: "of-another"}

    assert cache.remove(Kind.POD, relabelled) == KEY
    assert cache.pods_of(OWNER) == []


def test_a_deleted_pod_counts_as_ended_by_its_stage_and_not_by_its_sidecar(cache: Cache) -> None:
    cache.put(Kind.JOB, job(2))
    ended = pod(3, PodBuilder(JOB, "ended").ended(0).outlived_by("istio-proxy"))
    running = pod(4, PodBuilder(JOB, "running").running())
    running["status"]["containerStatuses"].append({"name": "istio-proxy", "state": {"terminated": {"exitCode": 1}}})
    for each in (ended, running):
        cache.put(Kind.POD, each)
        cache.remove(Kind.POD, each)

    assert [(each["metadata"]["name"], each["status"]["phase"]) for each in cache.pods_of(OWNER)] == [
        ("ended", "Failed")
    ]

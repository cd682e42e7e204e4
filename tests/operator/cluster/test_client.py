"""The client, against an API server whose answers the test sets."""

import asyncio
from collections.abc import Mapping
from typing import Any
from unittest.mock import Mock

import pytest
from kubernetes.aio.client.exceptions import ApiException

from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.cluster.client import KubernetesCluster
from edgetune_operator.cluster.watch_cache import Cache, Kind
from edgetune_operator.decisions.manifests.job_manifests import render_service
from edgetune_operator.reconcile import JobRefused, StaleRead
from support.builders import NAMESPACE, JobBuilder, lora_fine_tune

JOB = {**JobBuilder(Stage.TRAIN, "0123456789").build(), "spec": {}}
JOB["metadata"] |= {"namespace": NAMESPACE, "resourceVersion": "7"}


class AnsweringCluster(KubernetesCluster):
    """A cluster whose requests have the test's answers, by method; others are refused."""

    def __init__(self, **answers: dict[str, Any] | int) -> None:
        self.cache = Cache()
        self.cache.put(Kind.OBJECT, lora_fine_tune().build())
        self.answers = answers
        super().__init__(Mock(), self.cache, Mock())

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,  # noqa: ARG002 - the answer does not depend on it
        content_type: str = "",  # noqa: ARG002 - as above
        query: Mapping[str, str] | None = None,  # noqa: ARG002 - as above
    ) -> dict[str, Any]:
        """The test's answer: a body, or the status of an error."""
        answer = self.answers[method]
        if isinstance(answer, int):
            raise ApiException(status=answer, reason=path)
        return answer


def test_a_job_that_was_created_and_has_ended_while_no_answer_came_is_seen_at_once() -> None:
    """The watch reports it too, but nothing that is new to the cache: no pass would follow."""
    ended = {**JOB, "status": JobBuilder(Stage.TRAIN, "0123456789").complete().status}
    cluster = AnsweringCluster(POST=409, GET=ended)

    with pytest.raises(StaleRead, match="has ended already"):
        asyncio.run(cluster.create_job(JOB))

    assert [job["metadata"]["name"] for job in cluster.cache.jobs_of(lora_fine_tune().build()["metadata"])] == [
        JOB["metadata"]["name"]
    ]


def test_a_job_that_was_created_while_no_answer_came_and_runs_is_the_object_s() -> None:
    assert asyncio.run(AnsweringCluster(POST=409, GET=JOB).create_job(JOB)) == ""


@pytest.mark.parametrize("answer", [403, 500])
def test_a_conflict_stays_one_if_the_object_cannot_be_read_again(answer: int) -> None:
    """The watch brings the new version; roles made by hand may not allow to get an object."""
    metadata = {**lora_fine_tune().build()["metadata"], "resourceVersion": "1"}
    cluster = AnsweringCluster(PATCH=409, GET=answer)

    with pytest.raises(StaleRead, match="has changed since it was read"):
        asyncio.run(cluster.write_status(metadata, {"phase": "Training"}))

    assert cluster.cache.keys() == [names.Key(metadata["namespace"], metadata["name"])]


@pytest.mark.parametrize(("suspend", "answer"), [(True, JobRefused), (False, StaleRead)])
def test_a_refused_change_of_a_job_is_a_stale_read_only_if_the_job_waits_no_longer(
    suspend: bool, answer: type[Exception]
) -> None:
    present = {**JOB, "spec": {"suspend": suspend}}
    cluster = AnsweringCluster(PATCH=422, GET=present)

    with pytest.raises(answer):
        asyncio.run(cluster.change_job(lora_fine_tune().build()["metadata"], JOB["metadata"]["name"], []))

    (job,) = cluster.cache.jobs_of(lora_fine_tune().build()["metadata"])
    assert job["spec"]["suspend"] is suspend


SERVICE = render_service(lora_fine_tune().build()["metadata"], JOB["metadata"]["name"], "uid-of-the-job")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(SERVICE, True), ({"metadata": {"ownerReferences": [{"uid": "an earlier Job"}]}}, False), (404, False)],
    ids=["its own", "that of an earlier Job", "none"],
)
def test_a_job_has_its_service_if_it_owns_it(answer: dict[str, Any] | int, expected: bool) -> None:
    owner = lora_fine_tune().build()["metadata"]
    found = AnsweringCluster(GET=answer).has_service(owner, SERVICE["metadata"]["name"], "uid-of-the-job")

    assert asyncio.run(found) is expected


def test_a_service_of_an_earlier_job_with_the_same_name_is_left_to_its_end() -> None:
    asyncio.run(AnsweringCluster(POST=409).create_service(SERVICE))


def test_a_refused_service_is_reported_with_what_it_is_for() -> None:
    """Such as after an upgrade with Roles made by hand, which do not allow to look for Services either."""
    cluster, owner = AnsweringCluster(GET=403, POST=403), lora_fine_tune().build()["metadata"]

    assert not asyncio.run(cluster.has_service(owner, SERVICE["metadata"]["name"], "uid-of-the-job"))
    with pytest.raises(JobRefused, match="without which the Pods of the Job cannot find each other") as refusal:
        asyncio.run(cluster.create_service(SERVICE))
    assert refusal.value.reason == "ServiceRefused"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_api_server_that_does_not_answer_is_not_a_refused_service(method: str) -> None:
    cluster, owner = AnsweringCluster(GET=503, POST=503), lora_fine_tune().build()["metadata"]
    call = cluster.has_service(owner, "any", "uid") if method == "GET" else cluster.create_service(SERVICE)

    with pytest.raises(ApiException):
        asyncio.run(call)

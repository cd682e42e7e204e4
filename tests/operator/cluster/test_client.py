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

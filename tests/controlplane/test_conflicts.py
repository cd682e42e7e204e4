"""Writes of the operator that meet another writer, on a real API server: a conflict, and never an error."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kubernetes.aio import client, config
from prometheus_client import REGISTRY

from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.cluster.client import KubernetesCluster
from edgetune_operator.cluster.progress import ProgressReader
from edgetune_operator.cluster.watch_cache import Cache, Kind
from edgetune_operator.process.controller import Controller
from edgetune_operator.process.workqueue import WorkQueue
from edgetune_operator.reconcile import StaleRead
from support.apiserver import ApiServer
from support.builders import lora_fine_tune
from support.scenario import PROFILE

OBJECT = (names.API_VERSION, names.KIND)
NAMESPACE = "conflicts"
_LIMIT_SECONDS = 60
_FLAP_SECONDS = 0.1


@pytest.fixture
def applied(apiserver: ApiServer, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A new object in the test's namespace."""
    apiserver.request("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    name = f"tune-{abs(hash(request.node.name)):x}"
    spec = lora_fine_tune().build()["spec"]
    metadata = {"name": name, "namespace": NAMESPACE}
    return apiserver.apply({"apiVersion": OBJECT[0], "kind": OBJECT[1], "metadata": metadata, "spec": spec})


def annotate(apiserver: ApiServer, document: dict[str, Any], value: str) -> None:
    """A tenant changes an annotation of the object."""
    change = {"metadata": {"annotations": {"team/flapping": value}}}
    apiserver.merge(*OBJECT, NAMESPACE, document["metadata"]["name"], change)


def with_cluster(
    apiserver: ApiServer, document: dict[str, Any], scene: Callable[[KubernetesCluster, Cache], Awaitable[None]]
) -> None:
    """Run a scene with the operator's client, whose cache has the object."""

    async def run() -> None:
        cache = Cache()
        cache.put(Kind.OBJECT, document)
        configuration = client.Configuration()
        await config.load_kube_config(config_file=str(apiserver.kubeconfig), client_configuration=configuration)
        async with client.ApiClient(configuration) as api:
            await scene(KubernetesCluster(api, cache, ProgressReader(cache, 60, lambda _: None)), cache)

    asyncio.run(run())


@pytest.mark.parametrize("what", ["status", "finalizers"])
def test_a_write_of_an_object_that_has_changed_is_a_conflict_and_the_next_one_succeeds(
    apiserver: ApiServer, applied: dict[str, Any], what: str
) -> None:
    async def scene(cluster: KubernetesCluster, _: Cache) -> None:
        async def write() -> None:
            found = await cluster.read_object(Key(NAMESPACE, applied["metadata"]["name"]))
            assert found is not None
            if what == "status":
                await cluster.write_status(found["metadata"], {"observedGeneration": 1, "phase": "Training"})
            else:
                await cluster.write_finalizers(found["metadata"], [names.FINALIZER])

        with pytest.raises(StaleRead, match="has changed since it was read"):
            await write()
        await write()  # the conflict has brought the new version, without a watch

    annotate(apiserver, applied, "1")
    with_cluster(apiserver, applied, scene)

    found = apiserver.get(*OBJECT, NAMESPACE, applied["metadata"]["name"])
    assert found is not None
    assert found["metadata"]["annotations"] == {"team/flapping": "1"}
    assert (found.get("status") or {}).get("phase") == ("Training" if what == "status" else None)
    assert found["metadata"].get("finalizers") == ([names.FINALIZER] if what == "finalizers" else None)
    apiserver.merge(*OBJECT, NAMESPACE, applied["metadata"]["name"], {"metadata": {"finalizers": None}})


def test_a_write_of_an_object_that_was_created_again_is_a_conflict(
    apiserver: ApiServer, applied: dict[str, Any]
) -> None:
    async def scene(cluster: KubernetesCluster, _: Cache) -> None:
        with pytest.raises(StaleRead):
            await cluster.write_status(applied["metadata"], {"observedGeneration": 1})

    name = applied["metadata"]["name"]
    apiserver.delete(*OBJECT, NAMESPACE, name)
    again = {"apiVersion": OBJECT[0], "kind": OBJECT[1], "metadata": {"name": name, "namespace": NAMESPACE}}
    apiserver.apply({**again, "spec": applied["spec"]})
    with_cluster(apiserver, applied, scene)


def test_a_value_that_the_api_server_refuses_is_an_error_and_no_conflict(
    apiserver: ApiServer, applied: dict[str, Any]
) -> None:
    async def scene(cluster: KubernetesCluster, _: Cache) -> None:
        with pytest.raises(client.ApiException) as refused:
            await cluster.write_status(applied["metadata"], {"observedGeneration": 1, "phase": "Sleeping"})
        assert "422" in str(refused.value)
        assert "status.phase: Unsupported value" in str(refused.value)
        assert "\n" not in str(refused.value)

    with_cluster(apiserver, applied, scene)


def test_a_job_of_the_same_name_that_somebody_else_created_since_is_not_deleted(
    apiserver: ApiServer, applied: dict[str, Any]
) -> None:
    path = apiserver.path("batch/v1", "Job", NAMESPACE)
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "other", "image": "none"}]}}
    name = f"{applied['metadata']['name']}-job"

    async def scene(cluster: KubernetesCluster, cache: Cache) -> None:
        owner = {"kind": names.KIND, "uid": applied["metadata"]["uid"], "controller": True}
        mine = {"name": name, "namespace": NAMESPACE, "uid": "of-the-first", "ownerReferences": [owner]}
        cache.put(Kind.JOB, {"metadata": mine})
        with pytest.raises(StaleRead, match="is already gone"):
            await cluster.delete_job(applied["metadata"], name)
        assert cache.jobs_of(applied["metadata"]) == []

    job = {"metadata": {"name": name}, "spec": {"template": template}}
    assert apiserver.request("POST", path, job).accepted
    with_cluster(apiserver, applied, scene)

    found = apiserver.get("batch/v1", "Job", NAMESPACE, name)
    assert found is not None
    assert "deletionTimestamp" not in found["metadata"]


@contextmanager
def flapping(apiserver: ApiServer, document: dict[str, Any]) -> Iterator[None]:
    """A tenant changes an annotation ten times a second; one who never pauses can win every race against a pass."""
    stopped = threading.Event()

    def flap() -> None:
        number = 0
        while not stopped.wait(_FLAP_SECONDS):
            annotate(apiserver, document, str(number := number + 1))

    thread = threading.Thread(target=flap)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def passes(result: str) -> float:
    return REGISTRY.get_sample_value("edgetune_passes_total", {"result": result}) or 0.0


def test_passes_over_an_object_whose_annotation_flaps_are_conflicts_and_succeed(
    apiserver: ApiServer, applied: dict[str, Any]
) -> None:
    key = Key(NAMESPACE, applied["metadata"]["name"])
    before = {result: passes(result) for result in ("error", "conflict", "changed")}

    async def scene(cluster: KubernetesCluster, cache: Cache) -> None:
        queue: WorkQueue[Key] = WorkQueue()
        controller = Controller(cluster, cache, queue, {"default": PROFILE})
        tasks = [asyncio.create_task(controller.work()), asyncio.create_task(queue.run_delays())]
        queue.add(key)
        async with asyncio.timeout(_LIMIT_SECONDS):
            while passes("changed") == before["changed"]:
                await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()

    annotate(apiserver, applied, "0")  # the cache has the version before
    with flapping(apiserver, applied):
        with_cluster(apiserver, applied, scene)

    found = apiserver.get(*OBJECT, *(NAMESPACE, key.name))
    assert found is not None
    assert found["status"]["phase"] == "Preparing"
    assert passes("conflict") > before["conflict"]
    assert passes("error") == before["error"]

"""Objects that are deleted with their artifacts, except for those that another object uses."""

from collections.abc import Iterator

import pytest

from edgetune_contract.digest import stage_key
from edgetune_contract.stages import Stage
from support.kube import Kube
from support.live_object import LiveObject
from support.tiny_inputs import tiny_fine_tune
from support.versitygw import S3Server

from .conftest import Durations, InstalledOperator, team

pytestmark = pytest.mark.e2e
OWN = (Stage.EVALUATE, Stage.PUBLISH)
SHARED = tuple(stage for stage in Stage if stage not in OWN)


@pytest.fixture(scope="module")
def own_namespace(kube: Kube) -> Iterator[str]:
    """A namespace, and therefore a folder of the bucket, that no other test uses."""
    with team(kube) as name:
        yield name


@pytest.fixture(scope="module")
def twins(
    kube: Kube, s3: S3Server, own_namespace: str, operator: InstalledOperator, durations: Durations
) -> tuple[LiveObject, LiveObject]:
    """Two objects with deletionPolicy Delete that share a training and have a publication each."""
    del operator  # only required to be installed
    spec = {"training": {"maxSteps": 10}, "deletionPolicy": "Delete"}
    with durations.timed("two short runs that share a training"):
        first = LiveObject.apply(kube, tiny_fine_tune(s3, own_namespace, "first", **spec))
        assert first.wait_for_end()["phase"] == "Succeeded"
        other_scores = {"evaluation": {"maxNewTokens": 16}}
        second = LiveObject.apply(kube, tiny_fine_tune(s3, own_namespace, "second", **spec, **other_scores))
        assert second.wait_for_end()["phase"] == "Succeeded"
    return first, second


def test_deleting_one_object_keeps_what_the_other_uses(s3: S3Server, twins: tuple[LiveObject, LiveObject]) -> None:
    first, second = twins
    digests = {stage: second.row(stage)["digest"] for stage in Stage}
    kept = {stage: first.row(stage)["digest"] for stage in Stage}
    assert [digests[stage] for stage in SHARED[1:]] == [kept[stage] for stage in SHARED[1:]]

    second.delete()
    second.wait_until_gone()

    keys = _keys(s3, second.namespace)
    for stage in OWN:
        assert not any(key.startswith(f"{stage_key(stage, digests[stage])}/") for key in keys), stage
    for stage in list(Stage)[1:]:
        assert any(key.startswith(f"{stage_key(stage, kept[stage])}/") for key in keys), stage
    assert not any(key.startswith(f"models/{second.name}/") for key in keys)
    assert f"models/{first.name}/latest.json" in keys


def test_deleting_the_last_object_leaves_nothing(s3: S3Server, twins: tuple[LiveObject, LiveObject]) -> None:
    first, _ = twins
    first.delete()
    first.wait_until_gone()

    # Scores of the base alone belong to no object.
    assert {key for key in _keys(s3, first.namespace) if not key.startswith("scores/base/")} == set()


def _keys(server: S3Server, namespace: str) -> set[str]:
    """All keys of a namespace."""
    root = f"artifacts/{namespace}/"
    pages = server.client().get_paginator("list_objects_v2").paginate(Bucket=server.bucket, Prefix=root)
    return {entry["Key"].removeprefix(root) for page in pages for entry in page.get("Contents", ())}

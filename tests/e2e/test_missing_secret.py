"""A namespace that was forgotten: no Secret for the store. The real kubelet says so in an Event only."""

import pytest

from cluster import playground
from support.kube import Document, Kube
from support.live_object import LiveObject
from support.tiny_inputs import tiny_fine_tune
from support.versitygw import S3Server

from .conftest import Durations, InstalledOperator, team

pytestmark = pytest.mark.e2e


def _condition(status: Document, kind: str) -> Document:
    return next((each for each in status.get("conditions", ()) if each["type"] == kind), {})


def test_a_missing_secret_is_named_and_the_stage_continues_once_it_exists(
    kube: Kube, s3: S3Server, operator: InstalledOperator, durations: Durations
) -> None:
    del operator  # it only has to be there
    with team(kube) as namespace:
        secret = next(each for each in playground.team_manifests(namespace) if each["kind"] == "Secret")
        name = secret["metadata"]["name"]
        kube.delete("v1", "Secret", namespace, name)
        run = LiveObject.apply(kube, tiny_fine_tune(s3, namespace, "without-secret"))

        with durations.timed("until a missing Secret is told"):
            status = run.wait(lambda status: status.get("phase") == "Stalled", "it is stalled")
        kube.apply(secret)
        with durations.timed("from the Secret to the end of prepare"):
            mended = run.wait(lambda status: _condition(status, "Prepared").get("status") == "True", "it is prepared")

        stalled = _condition(status, "Stalled")
        assert (stalled["reason"], stalled["message"]) == (
            "SecretNotFound",
            f"prepare: there is no Secret {name} in namespace {namespace}; create it, and the stage goes on by itself",
        )
        assert _condition(mended, "Stalled") == {}
        run.delete()

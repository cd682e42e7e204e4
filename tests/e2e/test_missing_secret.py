"""A namespace without the store's Secret. The real kubelet reports it only in an Event."""

import pytest

from cluster import playground
from support.kube import Document, Kube
from support.live_object import LiveObject
from support.tiny_inputs import tiny_fine_tune
from support.versitygw import S3Server

from .conftest import Durations, InstalledOperator, team

pytestmark = pytest.mark.e2e


def _condition(status: Document, condition_type: str) -> Document:
    return next((each for each in status.get("conditions", ()) if each["type"] == condition_type), {})


def test_a_missing_secret_is_named_and_the_stage_continues_once_it_exists(
    kube: Kube, s3: S3Server, operator: InstalledOperator, durations: Durations
) -> None:
    del operator  # only required to be installed
    with team(kube) as namespace:
        secret = next(each for each in playground.team_manifests(namespace) if each["kind"] == "Secret")
        name = secret["metadata"]["name"]
        kube.delete("v1", "Secret", namespace, name)
        run = LiveObject.apply(kube, tiny_fine_tune(s3, namespace, "without-secret"))

        with durations.timed("until a missing Secret is reported"):
            status = run.wait(
                lambda status: _condition(status, "Ready").get("reason") == "SecretNotFound", "it is named"
            )
        kube.apply(secret)
        with durations.timed("from the Secret to the end of prepare"):
            fixed = run.wait(lambda status: _condition(status, "Prepared").get("status") == "True", "it is prepared")

        waiting = _condition(status, "Reconciling")
        assert (waiting["reason"], waiting["message"]) == (
            "SecretNotFound",
            f"prepare: Secret {name} not found in namespace {namespace}; create it, and the stage continues by itself",
        )
        assert _condition(fixed, "Stalled") == {}
        run.delete()

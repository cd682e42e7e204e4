"""A profile with a signing key: which requests ask for signatures, and which Pods have the key."""

from typing import Any

import pytest

from edgetune_contract.request import MAX_REVISION, Request
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.profiles.profile import Signing
from edgetune_operator.decisions.manifests.job_manifests import SIGNING_DIR
from support.builders import ObjectBuilder, lora_fine_tune
from support.golden import DEFAULT, job_of
from support.scenario import PROFILE, Scenario, request_of

SIGNING = Signing(secret_name="edgetune-signing", key="team-a.pem")
SIGNED = PROFILE.model_copy(update={"signing": SIGNING})
REVISION = "main@sha1:" + "7" * 40


def requests_of(builder: ObjectBuilder) -> dict[Stage, Request]:
    """The requests of all stages of a run with the key."""
    scenario = Scenario(builder, SIGNED)
    scenario.finish_all()
    requests = [request_of(job) for job in scenario.cluster.created]
    return {request.stage: request for request in requests}


def at_revision(revision: Any) -> ObjectBuilder:
    return lora_fine_tune().with_metadata(annotations={names.SOURCE_REVISION_ANNOTATION: revision})


def test_prepare_and_publish_know_that_the_version_is_signed_and_publish_knows_its_commit() -> None:
    requests = requests_of(at_revision(REVISION))

    assert [stage for stage, each in requests.items() if each.sign] == [Stage.PREPARE, Stage.PUBLISH]
    assert {stage: each.source_revision for stage, each in requests.items() if each.source_revision} == {
        Stage.PUBLISH: REVISION
    }


def test_the_commit_is_in_no_digest() -> None:
    with_commit, without = requests_of(at_revision(REVISION)), requests_of(lora_fine_tune())
    assert {each.digest for each in with_commit.values()} == {each.digest for each in without.values()}


@pytest.mark.parametrize("revision", ["", "x" * (MAX_REVISION + 1), None, 7])
def test_an_annotation_that_is_no_commit_says_nothing(revision: Any) -> None:
    assert requests_of(at_revision(revision))[Stage.PUBLISH].source_revision is None


def test_a_pin_signs_nothing_and_waits_for_no_key() -> None:
    scenario = Scenario(lora_fine_tune(), SIGNED)
    scenario.finish_all()
    scenario.change(scenario.builder.edited("publish.pin", scenario.pointer[:12]))
    scenario.reconcile()

    pin = scenario.cluster.created[-1]
    assert request_of(pin).is_pin
    assert request_of(pin).sign is None
    assert "signing-key" not in [volume["name"] for volume in pin["spec"]["template"]["spec"]["volumes"]]


def test_only_the_pod_of_publish_has_the_key_and_nothing_else_of_its_secret() -> None:
    profile = DEFAULT.model_copy(update={"signing": SIGNING})
    pods = {stage: job_of(stage, profile)["spec"]["template"]["spec"] for stage in Stage}

    volumes = {stage: [each for each in pod["volumes"] if "secret" in each] for stage, pod in pods.items()}
    assert {stage: found for stage, found in volumes.items() if found} == {
        Stage.PUBLISH: [
            {
                "name": "signing-key",
                "secret": {
                    "secretName": "edgetune-signing",
                    "items": [{"key": "team-a.pem", "path": "team-a.pem"}],
                    "defaultMode": 0o440,
                },
            }
        ]
    }
    (container,) = pods[Stage.PUBLISH]["containers"]
    assert {"name": "signing-key", "mountPath": SIGNING_DIR, "readOnly": True} in container["volumeMounts"]
    assert {"name": "EDGETUNE_SIGNING_KEY", "value": f"{SIGNING_DIR}/team-a.pem"} in container["env"]


def test_a_new_key_replaces_only_a_waiting_job_of_publish() -> None:
    other = SIGNING.model_copy(update={"secret_name": "another"})
    profiles = [DEFAULT.model_copy(update={"signing": signing}) for signing in (SIGNING, other)]

    def settings(stage: Stage, profile: Any) -> str:
        return str(job_of(stage, profile)["metadata"]["annotations"][names.SETTINGS_ANNOTATION])

    changed = [stage for stage in Stage if len({settings(stage, profile) for profile in profiles}) == 2]

    assert changed == [Stage.PUBLISH]
    assert settings(Stage.TRAIN, profiles[0]) == settings(Stage.TRAIN, DEFAULT)

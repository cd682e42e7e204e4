"""What may pass by itself is Reconciling for five minutes, and only then Stalled; quota waits like a queue."""

from datetime import timedelta
from typing import Any

import pytest

from edgetune_contract.stages import Stage
from edgetune_operator.api.reasons import BLOCKING, MAY_PASS, Reason
from edgetune_operator.decisions.causes.patience import PATIENCE, quota_reason
from edgetune_operator.reconcile import JobRefused
from support.builders import lora_fine_tune
from support.scenario import PROFILE, TICK, Scenario

CONTAINER_REASONS = [
    *("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "ImageInspectError"),
    *("CreateContainerConfigError", "CreateContainerError"),
]


@pytest.fixture
def scenario() -> Scenario:
    """The smallest object, with prepare's Job."""
    scenario = Scenario(lora_fine_tune())
    scenario.reconcile()
    return scenario


def verdict(scenario: Scenario) -> tuple[str, str]:
    """The condition that tools read beside Ready, and its reason."""
    found = {name: scenario.condition(name) for name in ("Reconciling", "Stalled")}
    ((name, condition),) = [(name, each) for name, each in found.items() if each is not None]
    assert condition is not None
    return name, condition[1]


def assert_patient_for_five_minutes(scenario: Scenario, reason: str) -> None:
    """Reconciling with the reason, a pass when the time is over, and then Stalled."""
    first = scenario.reconcile()
    assert verdict(scenario) == ("Reconciling", reason)
    assert scenario.status.phase != "Stalled"
    assert first.plan.look_again is not None
    scenario.let_pass(PATIENCE - 2 * TICK)
    almost = scenario.reconcile()
    assert verdict(scenario) == ("Reconciling", reason)
    assert almost.plan.look_again is not None
    assert almost.plan.look_again <= TICK
    scenario.reconcile()
    assert verdict(scenario) == ("Stalled", reason)
    assert scenario.status.phase == "Stalled"
    again = scenario.reconcile()
    assert (verdict(scenario), again.wrote_status) == (("Stalled", reason), False)


@pytest.mark.parametrize("reason", CONTAINER_REASONS)
def test_a_container_that_cannot_start_has_five_minutes(scenario: Scenario, reason: str) -> None:
    scenario.end_pod(lambda pod: pod.waiting(reason, "the kubelet's words"))

    assert_patient_for_five_minutes(scenario, reason)


def test_a_pod_that_fits_no_node_has_five_minutes(scenario: Scenario) -> None:
    scenario.end_pod(lambda pod: pod.unschedulable("0/3 nodes are available"))

    assert_patient_for_five_minutes(scenario, "Unschedulable")


def test_a_restart_that_sees_the_job_before_its_pod_does_not_begin_the_time_again(scenario: Scenario) -> None:
    scenario.end_pod(lambda pod: pod.waiting("ImagePullBackOff", "the kubelet's words"))
    scenario.reconcile()
    since, pods = scenario.status.waiting_since, dict(scenario.cluster.pods)

    scenario.cluster.pods.clear()
    scenario.reconcile()
    between = scenario.status.phase
    scenario.cluster.pods |= pods
    scenario.reconcile()

    assert between == "Preparing"
    assert scenario.status.waiting_since == since is not None


def test_a_late_profile_has_five_minutes() -> None:
    scenario = Scenario(lora_fine_tune(), profile=None)

    assert_patient_for_five_minutes(scenario, "ProfileNotFound")

    scenario.profiles = {"default": PROFILE}
    scenario.reconcile()
    assert verdict(scenario) == ("Reconciling", "JobRunning")
    assert scenario.status.waiting_since is None


def test_a_refused_job_has_five_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = Scenario(lora_fine_tune())

    async def refuses(job: Any) -> None:  # noqa: ARG001 - the signature is the cluster's
        raise JobRefused("JobRefused", "the webhook does not answer")

    monkeypatch.setattr(scenario.cluster, "create_job", refuses)

    assert_patient_for_five_minutes(scenario, "JobRefused")


def test_image_pull_errors_that_alternate_are_one_wait(scenario: Scenario) -> None:
    for reason in ("ErrImagePull", "ImagePullBackOff") * 15:
        scenario.end_pod(lambda pod, reason=reason: pod.waiting(reason))
        scenario.reconcile()

    scenario.reconcile()
    assert verdict(scenario) == ("Stalled", "ImagePullBackOff")


def test_a_wait_that_has_passed_leaves_the_next_one_its_whole_time(scenario: Scenario) -> None:
    scenario.end_pod(lambda pod: pod.waiting("ImagePullBackOff"))
    scenario.reconcile()
    scenario.let_pass(timedelta(minutes=4))
    scenario.end_pod(lambda pod: pod.running())
    scenario.reconcile()
    assert scenario.status.waiting_since is None

    scenario.end_pod(lambda pod: pod.waiting("ImagePullBackOff"))

    assert_patient_for_five_minutes(scenario, "ImagePullBackOff")


def test_an_edit_begins_the_time_again(scenario: Scenario) -> None:
    scenario.end_pod(lambda pod: pod.waiting("ImagePullBackOff"))
    scenario.reconcile()
    scenario.let_pass(PATIENCE)
    scenario.reconcile()
    assert verdict(scenario) == ("Stalled", "ImagePullBackOff")

    scenario.change(scenario.builder.edited("evaluation.maxExamples", 10))

    assert_patient_for_five_minutes(scenario, "ImagePullBackOff")


@pytest.mark.parametrize("reason", ["InvalidImageName"])
def test_what_no_time_can_remove_is_stalled_at_once(scenario: Scenario, reason: str) -> None:
    scenario.end_pod(lambda pod: pod.waiting(reason))
    scenario.reconcile()

    assert verdict(scenario) == ("Stalled", reason)
    assert {Reason.NODE_UNRESPONSIVE, Reason.QUEUE_TOO_SMALL, Reason.QUOTA_TOO_SMALL} <= BLOCKING - MAY_PASS


def test_an_invalid_spec_is_stalled_at_once() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("lora.rank", 0))
    scenario.reconcile()

    assert verdict(scenario) == ("Stalled", "InvalidSpec")


def test_a_used_up_quota_waits_like_a_queue(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario.finish()
    created = scenario.cluster.create_job

    async def refuses(job: Any) -> None:  # noqa: ARG001 - the signature is the cluster's
        raise JobRefused(Reason.QUOTA_EXCEEDED, "exceeded quota: gpus")

    monkeypatch.setattr(scenario.cluster, "create_job", refuses)
    for _ in range(3):
        done = scenario.reconcile()
        scenario.let_pass(PATIENCE)
    waiting = verdict(scenario), scenario.status.phase, scenario.row(Stage.TRAIN).state
    monkeypatch.setattr(scenario.cluster, "create_job", created)
    scenario.reconcile()

    assert waiting == (("Reconciling", "QuotaExceeded"), "Queued", "Pending")
    assert done.plan.look_again is not None
    assert (verdict(scenario), scenario.status.phase) == (("Reconciling", "JobRunning"), "Training")


@pytest.mark.parametrize(
    ("figures", "reason"),
    [
        ("requested: pods=1, used: pods=4, limited: pods=4", "QuotaExceeded"),
        ("requested: pods=1, used: pods=0, limited: pods=0", "QuotaTooSmall"),
        (
            "requested: requests.cpu=500m,requests.memory=4Gi, used: requests.cpu=1,requests.memory=0, "
            "limited: requests.cpu=1,requests.memory=4096Mi",
            "QuotaExceeded",
        ),
        (
            "requested: requests.cpu=500m,requests.memory=4Gi, used: requests.cpu=0,requests.memory=0, "
            "limited: requests.cpu=1,requests.memory=4095Mi",
            "QuotaTooSmall",
        ),
        ("requested: strange=1e3, used: strange=0, limited: strange=1", "QuotaExceeded"),
        ("in words that nobody knows", "QuotaExceeded"),
    ],
)
def test_a_quota_that_can_never_be_enough_has_a_reason_of_its_own(figures: str, reason: str) -> None:
    assert quota_reason(f'pods "x" is forbidden: exceeded quota: team, {figures}') == reason


def test_another_refusal_is_none_by_a_quota() -> None:
    assert quota_reason("maximum memory usage per Container is 1Mi") is None

"""kstatus, Argo CD's Lua and Flux's CEL agree with what the states of an object mean."""

from collections import Counter
from typing import Any

import pytest

from edgetune_operator.api.names import RETRY_REQUESTED_ANNOTATION
from support.builders import lora_fine_tune
from support.gitops_engines import find_program, judge
from support.gitops_walk import Meaning, Snapshot, Walk
from support.kstatus import kstatus as by_rules
from support.scenario import Scenario

pytestmark = [
    pytest.mark.skipif(find_program() is None, reason="no gitops-engines in the cache: run `make programs`"),
    pytest.mark.slow,
]

WALKS = 28
STEPS = 60
DISTINCT = 1500


def problem(snapshot: Snapshot, found: tuple[str, ...]) -> str:
    """How verdicts differ from what a snapshot means."""
    conditions = {each["type"]: each for each in snapshot.document["status"].get("conditions", [])}
    ready = conditions.get("Ready", {})
    return f"{snapshot.meaning} but {found}: {ready.get('reason')}: {ready.get('message')}; after {snapshot.why}"


def test_the_engines_agree_with_the_meaning_of_every_state_of_random_walks() -> None:
    distinct = {each.identity: each for seed in range(WALKS) for each in Walk(seed).snapshots(STEPS)}
    snapshots = list(distinct.values())

    problems = []
    for snapshot, verdict in zip(snapshots, judge(each.document for each in snapshots), strict=True):
        kstatus, argo, flux = snapshot.meaning.value
        if snapshot.retry_waits:
            argo, flux = "Progressing", "InProgress"
        found = by_rules(snapshot.document), verdict.kstatus, verdict.flux_default, verdict.argo, verdict.flux
        if found != (kstatus, kstatus, kstatus, argo, flux):
            problems.append(problem(snapshot, found))

    assert problems == []
    assert len(snapshots) >= DISTINCT
    seen = Counter((each.meaning, each.retry_waits) for each in snapshots)
    assert {*((meaning, False) for meaning in Meaning), (Meaning.PUBLISHED, True)} <= set(seen), seen


def test_a_new_object_is_current_for_no_engine() -> None:
    document = lora_fine_tune().build() | {"status": {"observedGeneration": -1}}

    (verdict,) = judge([document])

    found = verdict.kstatus, verdict.flux_default, verdict.flux, verdict.argo
    assert found == ("InProgress", "InProgress", "InProgress", "Progressing")
    assert verdict.message == "waits for the operator"


def published(scenario: Scenario) -> dict[str, Any]:
    """The object after its run."""
    scenario.finish_all()
    return scenario.cluster.document


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({}, ("Healthy", "Current")),
        ({RETRY_REQUESTED_ANNOTATION: ""}, ("Healthy", "Current")),
        ({RETRY_REQUESTED_ANNOTATION: "again"}, ("Progressing", "InProgress")),
        ({RETRY_REQUESTED_ANNOTATION: "x" * 256}, ("Progressing", "InProgress")),
        # The status has a hash of a longer token, which no script can compare.
        ({RETRY_REQUESTED_ANNOTATION: "x" * 257}, ("Healthy", "Current")),
        ({"another": "annotation"}, ("Healthy", "Current")),
    ],
    ids=["none", "empty token", "token", "longest token", "hashed token", "other annotation"],
)
def test_argo_and_flux_wait_for_a_requested_retry_that_no_pass_has_seen(
    annotations: dict[str, str], expected: tuple[str, str]
) -> None:
    document = published(Scenario(lora_fine_tune()))
    document["metadata"]["annotations"] = annotations

    (verdict,) = judge([document])

    assert (verdict.argo, verdict.flux) == expected


def test_a_token_that_was_handled_before_another_one_does_not_wait() -> None:
    document = published(Scenario(lora_fine_tune()))
    document["metadata"]["annotations"] = {RETRY_REQUESTED_ANNOTATION: "first"}
    document["status"] |= {"lastHandledRetry": "second", "handledRetries": ["second", "first"]}

    (verdict,) = judge([document])

    assert (verdict.argo, verdict.flux) == ("Healthy", "Current")


def test_argo_shows_the_operators_message() -> None:
    (verdict,) = judge([published(Scenario(lora_fine_tune()))])

    assert verdict.message.startswith("s3://artifacts/edgetune/team-a/models/sensor-faults/latest.json names version ")

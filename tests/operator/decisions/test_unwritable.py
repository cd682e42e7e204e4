"""Values that the status cannot have: results outside the contract are lost, and everything else is said."""

import asyncio
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from edgetune_contract.stages import Stage
from edgetune_operator.api.names import Key
from edgetune_operator.api.spec import MAX_RETRY_TOKEN
from edgetune_operator.api.status.stage_status import StageState
from edgetune_operator.decisions.reporting.status import UnwritableStatus, check_writable
from edgetune_operator.generate.crd import object_schema
from edgetune_operator.reconcile import report_failure
from support.builders import NAMESPACE, lora_fine_tune
from support.scenario import Scenario, created

KEY = Key(NAMESPACE, "sensor-faults")

ARTIFACT = {"name": "adapter", "uri": "s3://artifacts/adapter", "bytes": 5, "sha256": "a" * 64}
UNWRITABLE: Mapping[str, tuple[str, dict[str, Any]]] = {
    "10^30 bytes": ("artifacts.0.bytes", {"artifacts": [{**ARTIFACT, "bytes": 10**30}]}),
    "2^63 bytes": ("artifacts.0.bytes", {"artifacts": [{**ARTIFACT, "bytes": 2**63}]}),
    "negative bytes": ("artifacts.0.bytes", {"artifacts": [{**ARTIFACT, "bytes": -1}]}),
    "an artifact twice": ("an artifact is there twice: adapter, adapter", {"artifacts": [ARTIFACT, ARTIFACT]}),
    "a long artifact name": ("artifacts.0.name", {"artifacts": [{**ARTIFACT, "name": "a" * 65}]}),
    "a long URI": ("artifacts.0.uri", {"artifacts": [{**ARTIFACT, "uri": "s3://" + "a" * 2100}]}),
    "a long metric name": ("metrics", {"metrics": {"m" * 100: 1.0}}),
    "base of 10^30 bytes": ("metrics.baseBytes", {"metrics": {"baseBytes": 1e30}}),
    "a negative step": ("metrics.resumedFromStep", {"metrics": {"resumedFromStep": -1}}),
    "negative base bytes": ("metrics.baseBytes", {"metrics": {"baseBytes": -5.0}}),
    "a share above 1": ("metrics.quantizedShare", {"metrics": {"quantizedShare": 1.5}}),
    "a negative duration": ("seconds", {"seconds": -1.0}),
    "a score above 1": ("scores.tuned", {"scores": {"tuned": 1e300}}),
    "10^30 examples": ("scores.examples", {"scores": {"examples": 10**30}}),
    "parameters of 401 digits": (
        "metrics.trainableParameters",
        {"metrics": {"trainableParameters": 10**400, "totalParameters": 1}},
    ),
    "no digits": ("Invalid JSON", {}),
}


@pytest.mark.parametrize(("where", "fields"), UNWRITABLE.values(), ids=UNWRITABLE)
def test_a_result_outside_the_contract_is_lost_and_the_reason_says_what_is_wrong(
    where: str, fields: dict[str, Any]
) -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(Stage.TRAIN)
    message = json.dumps({"stage": "train", "digest": scenario.request.digest, **fields}) if fields else "{"
    for _ in range(2):
        scenario.end_pod(lambda pod: pod.ended(0, message))
        scenario.end_job(lambda job: job.complete(scenario.cluster.timestamp()))
        scenario.reconcile()
        scenario.reconcile()

    row = scenario.row(Stage.TRAIN)
    assert (row.state, row.reason) == (StageState.FAILED, "ResultLost")
    assert row.message.startswith("the stage ended without a readable result (")
    assert where in row.message


def test_a_result_with_the_artifact_of_another_stage_is_lost() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(Stage.MERGE)
    result = scenario.simulated_result(scenario.request)
    adapter = scenario.artifact(Stage.TRAIN, scenario.request.digest)
    scenario.finish(result.model_copy(update={"artifacts": (adapter,)}))

    scenario.reconcile()

    assert scenario.row(Stage.MERGE).reason == "ResultLost"


@pytest.mark.parametrize("reason", ["", "R" * 1000])
def test_a_failure_whose_reason_is_too_long_or_empty_is_reported_by_its_exit_code(reason: str) -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.reconcile()
    failure = {"exitCode": 10, "reason": reason, "message": "m"}
    message = json.dumps({"stage": "prepare", "digest": scenario.request.digest, "failure": failure})
    scenario.end_pod(lambda pod: pod.ended(10, message))
    scenario.end_job(lambda job: job.failed("PodFailurePolicy", at=scenario.cluster.timestamp()))

    scenario.reconcile()

    assert scenario.row(Stage.PREPARE).reason == "InvalidInput"


def test_reasons_and_messages_of_others_are_cut_to_what_the_status_takes() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.reconcile()
    scenario.end_pod(lambda pod: pod.waiting("R" * 5000, "m" * 100_000))

    scenario.reconcile()

    check_writable(scenario.cluster.document["status"])
    assert scenario.row(Stage.PREPARE).reason == "R" * 64


def test_a_status_that_cannot_be_written_stops_the_pass_before_its_job_is_created(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(Stage.TRAIN)
    scenario.finish()
    before = dict(scenario.cluster.jobs)
    broken = {**scenario.cluster.document["status"], "warnings": ["w" * 40_000]}
    monkeypatch.setattr("edgetune_operator.reconcile.project", lambda *_: broken)

    with pytest.raises(UnwritableStatus, match=r"the status cannot be written: status\.warnings\.0: "):
        scenario.reconcile()

    assert scenario.cluster.jobs == before


def test_a_lasting_failure_is_reported_and_the_next_good_pass_continues() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(Stage.TRAIN)
    rows = scenario.status.stages

    reported = [
        asyncio.run(report_failure(scenario.cluster, KEY, "ValueError: a bug", scenario.cluster.now)) for _ in range(2)
    ]
    stalled, kept = scenario.condition("Stalled"), scenario.status.stages
    scenario.finish()
    done = scenario.reconcile()

    assert reported == [True, False]
    message = "the operator cannot reconcile this object, and keeps trying: ValueError: a bug"
    assert stalled == ("True", "InternalError", message)
    assert kept == rows
    assert created(done) == [Stage.MERGE]
    assert scenario.condition("Stalled") is None


@pytest.mark.parametrize("field", ["conditions", "stages", "artifacts"])
def test_a_status_with_the_same_key_twice_is_not_writable(field: str) -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.finish_all()
    status = scenario.cluster.document["status"]

    check_writable(status)
    with pytest.raises(UnwritableStatus, match="two items have the same"):
        check_writable({**status, field: [*status[field], status[field][0]]})


def test_every_whole_number_of_the_status_has_bounds_that_kubernetes_can_store() -> None:
    integers = {
        path: (node.get("minimum", -math.inf), node.get("maximum", math.inf))
        for path, node in nodes(object_schema()["properties"]["status"], "status")
        if node.get("type") == "integer"
    }

    assert integers
    assert [path for path, (low, high) in integers.items() if low < -(2**63) or high >= 2**63] == []


def nodes(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a structural schema, with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for child in (schema.get("items"), schema.get("additionalProperties")):
        if isinstance(child, dict):
            yield from nodes(child, f"{path}[]")


def test_retry_tokens_that_begin_equally_are_different() -> None:
    scenario = Scenario(lora_fine_tune().with_retry_requested("t" * MAX_RETRY_TOKEN + "1"))
    scenario.finish_all()
    first = scenario.status.last_handled_retry
    scenario.change(scenario.builder.with_retry_requested("t" * MAX_RETRY_TOKEN + "2"))

    scenario.reconcile()  # deletes prepare's Job
    again = scenario.reconcile()

    assert created(again) == [Stage.PREPARE]
    assert len(first) == MAX_RETRY_TOKEN
    assert scenario.status.last_handled_retry != first


def test_the_end_of_a_job_that_a_clock_puts_an_hour_ahead_is_recorded() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.reconcile()
    scenario.end_job(lambda job: job.complete("2026-11-24T10:00:00Z"))
    job = scenario.live_job if scenario.cluster.live_jobs() else next(iter(scenario.cluster.jobs))
    for pod in scenario.cluster.pods_of(job):
        del scenario.cluster.pods[pod]

    scenario.reconcile()

    assert scenario.row(Stage.PREPARE).reason == "ResultLost"

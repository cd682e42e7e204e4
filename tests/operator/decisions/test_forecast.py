"""The output of `edgetune plan`: exactly the Jobs that real passes then create, and the reason for each."""

import random
from collections.abc import Mapping
from typing import Any

import pytest

from edgetune_contract.digest import sha256_of
from edgetune_contract.request import Request, Result
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api.profiles.gpu_use import Prices
from edgetune_operator.api.profiles.profile import ProfileStore
from edgetune_operator.api.profiles.queue import Queue
from edgetune_operator.api.profiles.tenants import Tenant
from edgetune_operator.api.spec import LoraFineTuneSpec
from edgetune_operator.api.spec_check import InvalidSpec, parse_spec
from edgetune_operator.decisions.admission import admit
from edgetune_operator.decisions.forecast.passes import Forecast, forecast
from edgetune_operator.decisions.observe import observe
from edgetune_operator.decisions.plans import Outcome
from support.builders import lora_fine_tune
from support.model_shapes import MODELS
from support.scenario import PROFILE, Scenario, request_of

WALKS = 240
BASE = sha256_of("s3://models/smollm2-135m-instruct")
EDITS: tuple[tuple[str, Any], ...] = (
    ("lora.rank", 8),
    ("lora.rank", 16),
    ("dataset.template", "ChatTemplate"),
    ("merge.keep", False),
    ("merge.keep", True),
    ("evaluation.gates.minScore", 0.5),
    ("evaluation.maxExamples", 10),
    ("quantization.formats", ["GGUF-Q8_0"]),
    ("training.checkpoint.keep", 4),
    ("retryLimit", 5),
    ("retryLimit", 3),
    ("suspend", True),
    ("suspend", False),
    ("baseModel.revision", BASE),
    ("baseModel.revision", ""),
    ("dataset.train.uri", "s3://datasets/other.jsonl"),
    ("publish.pin", ""),
)


class ScenarioStore:
    """The scenario's store, as a forecast reads it."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario

    def read_result(self, stage: Stage, digest: str) -> Result | None:  # noqa: ARG002 - digests differ between stages
        return self._scenario.manifests[digest] if self._scenario.is_done(digest) else None

    def find_version(self, pin: str) -> str:
        found = [digest for digest in self._scenario.manifests if digest.startswith(pin)]
        if not found:
            raise LookupError(f"sensor-faults has no version {pin}")
        return found[0]


def forecast_of(scenario: Scenario, *, in_store: bool = False, before: LoraFineTuneSpec | None = None) -> Forecast:
    """The forecast for the scenario's object as the next pass would observe it."""
    cluster = scenario.cluster
    document = cluster.document
    spec = parse_spec(document["spec"])
    snapshot = observe(document, list(cluster.jobs.values()), list(cluster.pods.values()), None)
    profile = admit(spec, scenario.profiles, Tenant(snapshot.namespace))
    store = ScenarioStore(scenario) if in_store else None
    return forecast(spec, profile, snapshot, cluster.now, store=store, before=before)


def finished(**changes: Any) -> Scenario:
    """An object whose run is published."""
    builder = lora_fine_tune()
    for path, value in changes.items():
        builder = builder.with_spec(path, value)
    scenario = Scenario(builder)
    scenario.finish_all()
    return scenario


def lines(scenario: Scenario, edit: tuple[str, Any] | None = None, *, in_store: bool = False) -> dict[Stage, str]:
    """By stage, action and reason of the forecast after an edit and a retry, which `edgetune run` requests."""
    before = parse_spec(scenario.cluster.document["spec"])
    builder = scenario.builder.edited(*edit) if edit else scenario.builder
    scenario.change(builder.with_retry_requested("by hand"))
    found = forecast_of(scenario, in_store=in_store, before=before)
    return {each.stage: f"{each.action} {each.why}" for each in found.stages}


def actions(found: Mapping[Stage, str]) -> list[str]:
    return [found[stage].split()[0] for stage in Stage]


def real_jobs(scenario: Scenario) -> list[tuple[Stage, str]]:
    """Stage and digest of the Jobs that real passes create from now on, if every stage succeeds."""
    first = len(scenario.cluster.created)
    for _ in range(60):
        cluster = scenario.cluster
        for name in [name for name, job in cluster.jobs.items() if job["metadata"].get("deletionTimestamp")]:
            cluster.remove_job(name)
        done = scenario.reconcile()
        if not done.plan.actions and not cluster.live_jobs() and done.plan.view.outcome not in (Outcome.RUNNING,):
            break
        if done.plan.view.outcome in (Outcome.RUNNING, Outcome.BLOCKED):
            for name in cluster.live_jobs():
                finish(scenario, request_of(cluster.jobs[name]))
    else:
        raise AssertionError("no end")
    requests = (request_of(job) for job in scenario.cluster.created[first:])
    return [(request.stage, request.digest) for request in requests]


def finish(scenario: Scenario, request: Request) -> None:
    """The live Job succeeds, or fails as publish does for a pin to a missing version."""
    pin = request.parameters.publish.pin if request.stage is Stage.PUBLISH else ""
    if pin and not any(digest.startswith(pin) for digest in scenario.manifests):
        scenario.fail(ExitCode.INVALID, f"sensor-faults has no version {pin}")
    else:
        scenario.finish()


def disturb(scenario: Scenario, chance: random.Random) -> None:
    """A random change: an edit, a retry, the end of a stage, a pass."""
    cluster = scenario.cluster
    live = cluster.live_jobs()
    what = chance.choice(
        ["edit", "edit", "retry", "pass", "finish", "finish", "fail", "time", "pin", "profile", "walk"]
    )
    if what == "edit":
        scenario.change(scenario.builder.edited(*chance.choice(EDITS)))
    elif what == "pin":
        versions = [*(row.digest for row in scenario.status.stages if row.name is Stage.PUBLISH), "a" * 12]
        scenario.change(scenario.builder.edited("publish.pin", chance.choice(versions)[:12]))
    elif what == "retry":
        scenario.change(scenario.builder.with_retry_requested(f"token-{chance.random()}"))
    elif what == "profile":
        queue = chance.choice([None, Queue(name="gpu")])
        scenario.profiles = {"default": PROFILE.model_copy(update={"queue": queue})}
    elif what == "time":
        cluster.remove_ended_jobs()
    elif what == "finish" and live:
        finish(scenario, request_of(cluster.jobs[live[0]]))
    elif what == "fail" and live:
        scenario.fail(chance.choice([ExitCode.INVALID, ExitCode.DIVERGED]), "it did not work")
    elif what == "walk":
        real_jobs(scenario)
    scenario.reconcile()


def known_spec(scenario: Scenario) -> LoraFineTuneSpec | None:
    try:
        return parse_spec(scenario.cluster.document["spec"])
    except InvalidSpec:
        return None


@pytest.mark.parametrize("walk", range(WALKS))
def test_real_passes_create_the_jobs_that_were_forecast(walk: int) -> None:
    chance = random.Random(walk)
    scenario = Scenario(lora_fine_tune())
    for _ in range(chance.randint(0, 12)):
        disturb(scenario, chance)
    before = known_spec(scenario)
    # `edgetune run` edits and retries; in a cluster, the next pass may also start without either.
    if chance.random() < 0.5:
        scenario.change(scenario.builder.edited(*chance.choice(EDITS)))
    if chance.random() < 0.5:
        scenario.change(scenario.builder.with_retry_requested(f"last-{walk}"))

    recorded = forecast_of(scenario, before=before)
    found = forecast_of(scenario, in_store=True, before=before)
    planned = [(request.stage, request.digest) for request in found.jobs]
    unsure = {each.stage for each in found.stages if each.why.startswith("unless its output")}
    real = real_jobs(scenario)

    if not unsure:
        assert real == planned
    else:
        stages, certain = [stage for stage, _ in real], [stage for stage, _ in planned if stage not in unsure]
        assert [stage for stage in stages if stage not in unsure] == certain
        assert set(stages) <= {stage for stage, _ in planned}
    assert (scenario.status.phase == "Succeeded") is (found.outcome is Outcome.PUBLISHED)
    # Without the store, a forecast may have more stages than run, never fewer; only the pointer may have moved.
    assert {stage for stage, _ in real} - {Stage.PUBLISH} <= {request.stage for request in recorded.jobs}


def test_before_the_first_run_every_stage_would_run() -> None:
    found = lines(Scenario(lora_fine_tune()))

    assert found[Stage.PREPARE] == "run never finished"
    assert {found[stage] for stage in list(Stage)[1:]} == {
        "run unless its output for the inputs that prepare finds is in the store"
    }


def test_an_unchanged_object_only_has_its_inputs_checked() -> None:
    found = lines(finished())

    assert actions(found) == ["check", "keep", "keep", "keep", "keep", "keep"]
    assert found[Stage.PREPARE] == "check whether base and data have changed"
    assert found[Stage.TRAIN] == f"keep done, digest {finished().row(Stage.TRAIN).digest[:12]}"


def test_an_edit_runs_the_stages_that_it_changes_and_names_the_field() -> None:
    found = lines(finished(), ("evaluation.maxNewTokens", 8))

    assert actions(found) == ["check", "keep", "keep", "keep", "run", "run"]
    assert found[Stage.EVALUATE] == "run changed: spec.evaluation.maxNewTokens"
    assert found[Stage.PUBLISH] == "run evaluate runs again"


def test_a_field_outside_every_digest_runs_nothing_and_is_not_a_reason() -> None:
    scenario = finished()
    before = parse_spec(scenario.cluster.document["spec"])
    scenario.change(scenario.builder.edited("retryLimit", 9).edited("lora.rank", 8).with_retry_requested("by hand"))

    found = {each.stage: f"{each.action} {each.why}" for each in forecast_of(scenario, before=before).stages}

    assert actions(lines(finished(), ("retryLimit", 9))) == ["check", "keep", "keep", "keep", "keep", "keep"]
    assert found[Stage.TRAIN] == "run changed: spec.lora.rank"


def test_after_a_change_of_the_data_uri_later_stages_depend_on_what_prepare_finds() -> None:
    found = lines(finished(), ("dataset.train.uri", "s3://datasets/other.jsonl"))

    assert found[Stage.PREPARE] == "run changed: spec.dataset.train.uri"
    assert found[Stage.TRAIN] == "run unless its output for the inputs that prepare finds is in the store"


def test_a_pin_to_the_resolved_content_runs_only_prepare() -> None:
    found = lines(finished(), ("baseModel.revision", BASE))

    assert actions(found) == ["run", "keep", "keep", "keep", "keep", "keep"]
    assert found[Stage.PREPARE] == "run changed: spec.baseModel.revision"


def test_a_suspended_object_runs_nothing_and_says_so() -> None:
    scenario = finished()
    lines(scenario, ("lora.rank", 8))
    scenario.change(scenario.builder.edited("suspend", True))

    found = forecast_of(scenario)

    assert (found.jobs, found.outcome) == ((), Outcome.SUSPENDED)
    assert found.message == "spec.suspend is true; set it to false to continue with prepare"
    assert [each.action for each in found.stages] == ["wait"] * 6


def test_a_failed_stage_is_retried() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.advance_to(Stage.TRAIN)
    scenario.fail(ExitCode.DIVERGED, "the loss is nan")
    scenario.reconcile()

    found = lines(scenario)

    assert actions(found) == ["check", "run", "run", "run", "run", "run"]
    assert found[Stage.TRAIN] == "run it failed: TrainingDiverged"
    assert found[Stage.MERGE] == "run train runs again"


def test_a_pin_comes_first_and_runs_only_publish() -> None:
    scenario = finished()
    version = scenario.row(Stage.PUBLISH).digest
    scenario.change(scenario.builder.edited("lora.rank", 8))
    scenario.finish_all()

    pinned = lines(scenario, ("publish.pin", version[:12]), in_store=True)
    real_jobs(scenario)
    again = lines(scenario)
    removed = lines(scenario, ("publish.pin", ""))

    assert next(iter(pinned.items())) == (
        Stage.PUBLISH,
        f"run points latest.json at version {version[:12]}, as set by spec.publish.pin",
    )
    assert actions(pinned) == ["check", "keep", "keep", "keep", "keep", "run"]
    assert again[Stage.PUBLISH] == f"keep latest.json names version {version[:12]}, as set by spec.publish.pin"
    assert removed[Stage.PUBLISH] == "run changed: spec.publish.pin"


def test_a_pin_to_a_missing_version_fails_and_nothing_else_runs() -> None:
    scenario = finished()
    lines(scenario, ("publish.pin", "f" * 12))

    found = forecast_of(scenario, in_store=True)

    assert [request.stage for request in found.jobs] == [Stage.PUBLISH]
    assert (found.outcome, found.message) == (Outcome.FAILED, f"publish: sensor-faults has no version {'f' * 12}")
    assert (found.stages[0].action, found.stages[0].why) == ("fail", f"sensor-faults has no version {'f' * 12}")
    assert {each.action for each in found.stages[1:]} <= {"wait", "keep"}


def test_merge_is_skipped_if_its_output_is_not_kept() -> None:
    found = lines(finished(), ("merge.keep", False))

    assert found[Stage.MERGE] == "skip spec.merge.keep is false: quantize merges on the fly"
    assert found[Stage.QUANTIZE] == "run changed: spec.merge.keep"


def test_stages_whose_output_is_in_the_store_from_an_earlier_edit_do_not_run_again() -> None:
    scenario = finished()
    scenario.change(scenario.builder.edited("lora.rank", 8))
    scenario.finish_all()

    without_store, with_store = lines(scenario, ("lora.rank", 16)), lines(scenario, in_store=True)

    assert actions(without_store) == ["check", "run", "run", "run", "run", "run"]
    assert actions(with_store) == ["check", "keep", "keep", "keep", "keep", "run"]
    assert with_store[Stage.TRAIN].startswith("keep its output is in the store, digest ")


def test_a_stage_whose_output_was_deleted_from_the_store_runs_again() -> None:
    scenario = finished()
    del scenario.manifests[scenario.row(Stage.QUANTIZE).digest]

    found = lines(scenario, in_store=True)

    assert actions(found) == ["check", "keep", "keep", "run", "keep", "keep"]
    assert found[Stage.QUANTIZE] == "run its output is not in the store"


def test_an_object_without_its_profile_is_stalled_with_the_reason() -> None:
    scenario = finished()
    scenario.profiles = {}

    found = forecast_of(scenario)

    assert (found.jobs, found.outcome) == ((), Outcome.STALLED)
    assert "profile 'default' not found" in found.message


def test_after_a_change_of_store_no_stage_is_assumed_done() -> None:
    scenario = finished()
    scenario.profiles = {"default": PROFILE.model_copy(update={"store": ProfileStore(uri="s3://copied")})}

    found = lines(scenario)

    assert actions(found) == ["check", "run", "run", "run", "run", "run"]
    assert found[Stage.TRAIN] == "run the profile's store changed"


def test_the_forecast_has_what_jobs_request_as_soon_as_the_model_is_known() -> None:
    prices = Prices(currency="EUR", gpu_hour=2.5)
    scenario = Scenario(lora_fine_tune(), PROFILE.model_copy(update={"prices": prices}))
    first = forecast_of(scenario)
    scenario.reconcile()
    prepared = scenario.simulated_result(scenario.request)
    scenario.finish(prepared.model_copy(update={"metrics": dict(MODELS["Llama-3.1-8B"])}))
    scenario.reconcile()

    again = forecast_of(scenario)

    assert {line.requests for line in first.stages} == {""}
    assert {line.stage: line.requests for line in again.stages if line.requests} == {
        Stage.MERGE: "2Gi memory, 2Gi disk",
        Stage.QUANTIZE: "2Gi memory, 2Gi disk",
        Stage.EVALUATE: "8Gi memory, 46Gi disk, 1 GPU for 2.50 EUR an hour",
        Stage.PUBLISH: "1Gi memory",
    }

"""From the first pass to the outcome: which Job is created when, and what the status says."""

import pytest

from edgetune_contract.digest import prepare_digest, sha256_of
from edgetune_contract.request import MAX_RESULT_BYTES, Result
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.profiles.profile import Profile, ProfileStore
from edgetune_operator.api.spec_check import parse_spec
from edgetune_operator.api.status.stage_status import ProgressStatus, StageState
from edgetune_operator.decisions.plans import Outcome
from support.builders import JobBuilder, PodBuilder, lora_fine_tune
from support.scenario import PROFILE, Scenario, created, deleted


@pytest.fixture
def scenario() -> Scenario:
    """The smallest object, before its first pass."""
    return Scenario(lora_fine_tune())


def test_the_first_pass_creates_the_job_of_prepare(scenario: Scenario) -> None:
    done = scenario.reconcile()

    spec = parse_spec(lora_fine_tune().build()["spec"])
    assert created(done) == [Stage.PREPARE]
    assert scenario.request.digest == prepare_digest(spec.parameters)
    assert scenario.request.resolved is None
    assert scenario.status.phase == "Preparing"
    assert scenario.condition("Ready") == ("False", "JobRunning", "prepare: running")
    assert scenario.condition("Reconciling") == ("True", "JobRunning", "prepare: running")
    assert scenario.row(Stage.PREPARE).job == scenario.live_job


def test_a_pass_while_the_job_runs_creates_nothing(scenario: Scenario) -> None:
    scenario.reconcile()

    done = scenario.reconcile()

    assert done.plan.actions == ()
    assert scenario.condition("Reconciling") == ("True", "JobRunning", "prepare: running")
    assert scenario.row(Stage.PREPARE).attempts == 1
    assert scenario.reconcile().wrote_status is False


def test_the_stages_run_one_after_another_until_the_model_is_published(scenario: Scenario) -> None:
    stages = created(scenario.reconcile())
    while scenario.cluster.live_jobs():
        scenario.finish()
        stages += created(scenario.reconcile())

    pointer = "s3://artifacts/edgetune/team-a/models/sensor-faults/latest.json"
    version = scenario.row(Stage.PUBLISH).digest[:12]
    assert stages == list(Stage)
    assert scenario.status.phase == "Succeeded"
    assert scenario.condition("Ready") == ("True", "Published", f"{pointer} names version {version}")
    assert scenario.condition("Reconciling") is None
    assert scenario.held_up is None


def test_a_later_stage_gets_the_content_that_prepare_resolved(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)

    assert scenario.request.resolved is not None
    assert scenario.request.resolved.train == sha256_of("first version of the data")
    assert scenario.status.resolved == scenario.request.resolved
    assert scenario.request.digest == scenario.row(Stage.TRAIN).digest


def test_requests_have_the_namespaces_own_folder_in_the_store(scenario: Scenario) -> None:
    scenario.reconcile()

    assert scenario.request.store.uri == "s3://artifacts/edgetune/team-a"


def test_metrics_and_warnings_of_a_stage_are_in_its_row(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)

    row = scenario.row(Stage.PREPARE)
    assert (row.state, row.reason, row.cached) == (StageState.SUCCEEDED, "Succeeded", False)
    assert row.metrics == {"baseBytes": 1000.0, "rows": 600.0}
    assert scenario.status.warnings[-len(row.warnings) :] == row.warnings != ()


def test_what_a_training_chose_is_in_its_row(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    facts = {"layout": "PaddingFree", "microBatchSize": "4 x 4 accumulated, chosen for 75.0 GiB of free memory"}

    scenario.finish(scenario.simulated_result(scenario.request).model_copy(update={"facts": facts}))
    scenario.reconcile()

    assert scenario.row(Stage.TRAIN).facts == facts


def test_progress_is_shown_for_the_running_stage_only(scenario: Scenario) -> None:
    scenario.advance_to(Stage.TRAIN)
    scenario.cluster.progress = ProgressStatus(stage=Stage.TRAIN, step=120, total_steps=200, loss=0.41)
    scenario.reconcile()
    shown = scenario.status.progress

    scenario.finish()
    scenario.reconcile()

    assert shown == scenario.cluster.progress
    assert scenario.status.progress is None


def test_a_result_is_recorded_before_the_job_is_complete(scenario: Scenario) -> None:
    scenario.reconcile()
    result = scenario.simulated_result(scenario.request)
    scenario.end_pod(lambda pod: pod.succeeded(result))

    done = scenario.reconcile()

    assert created(done) == [Stage.TRAIN]
    assert deleted(done) == []


def test_a_failed_gate_refuses_the_model_finally(scenario: Scenario) -> None:
    scenario.gates_pass = False

    done = scenario.finish_all()

    refusal = "maxDrop: the edge model is 0.03 below the tuned model, at most 0.02 is allowed"
    assert done.plan.view.outcome is Outcome.REFUSED
    assert scenario.status.phase == "Refused"
    assert scenario.condition("Ready") == ("False", "GatesRefused", refusal)
    assert scenario.held_up == ("True", "GatesRefused", refusal)
    assert scenario.condition("Published") == ("False", "GatesRefused", refusal)
    assert scenario.condition("Evaluated") == ("True", "Succeeded", "")
    assert scenario.reconcile().plan.actions == ()


def test_without_a_kept_merge_quantize_follows_training() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("merge.keep", False))

    scenario.advance_to(Stage.QUANTIZE)

    row = scenario.row(Stage.MERGE)
    assert (row.state, row.reason) == (StageState.SKIPPED, "MergeNotKept")
    assert [job["metadata"]["labels"][names.STAGE_LABEL] for job in scenario.cluster.created] == [
        "prepare",
        "train",
        "quantize",
    ]


def test_stages_whose_output_is_in_the_store_are_not_run(scenario: Scenario) -> None:
    scenario.finish_all()
    another = Scenario(lora_fine_tune().with_spec("evaluation.maxExamples", 10))
    another.manifests = scenario.manifests

    another.reconcile()
    another.finish()
    done = another.reconcile()

    train = another.row(Stage.TRAIN)
    assert created(done) == [Stage.EVALUATE]
    assert (train.state, train.cached, train.reason) == (StageState.SUCCEEDED, True, "Cached")
    assert [artifact.name for artifact in another.status.artifacts] == [
        "prepared",
        "adapter",
        "merged",
        "edge-bnb-int8",
    ]


def test_a_reported_stage_with_another_digest_is_not_done(scenario: Scenario) -> None:
    scenario.reconcile()
    result = scenario.simulated_result(scenario.request)
    other = Result(stage=Stage.TRAIN, digest="e" * 64)

    scenario.finish(result.model_copy(update={"done": (other,)}))

    assert created(scenario.reconcile()) == [Stage.TRAIN]


def test_a_stage_that_prepare_could_not_report_finds_its_manifest_in_a_short_run(scenario: Scenario) -> None:
    scenario.finish_all()
    another = Scenario(lora_fine_tune())
    another.manifests = scenario.manifests
    another.reports_later_stages = False

    another.advance_to(Stage.MERGE)

    assert another.row(Stage.TRAIN).reason == "Cached"


def test_a_finished_object_needs_only_its_status(scenario: Scenario) -> None:
    scenario.finish_all()
    scenario.cluster.remove_ended_jobs()

    done = scenario.reconcile()

    assert done.plan.actions == ()
    assert done.wrote_status is False


def test_a_status_that_another_version_wrote_is_rebuilt(scenario: Scenario) -> None:
    scenario.finish_all()
    scenario.cluster.remove_ended_jobs()
    scenario.cluster.document["status"] = {"phase": "Dreaming", "colour": "blue"}

    assert created(scenario.reconcile()) == [Stage.PREPARE]
    scenario.finish()
    assert scenario.reconcile().plan.view.outcome is Outcome.PUBLISHED


@pytest.mark.parametrize("uid", ["another-object", ""])
def test_a_job_of_another_owner_is_neither_read_nor_deleted(scenario: Scenario, uid: str) -> None:
    scenario.reconcile()
    name = scenario.live_job
    own = scenario.cluster.jobs.pop(name)
    foreign = JobBuilder(Stage.PREPARE, scenario.status.stages[0].digest, owner_uid=uid).complete().build()
    scenario.cluster.jobs = {name: foreign, "other": JobBuilder(Stage.TRAIN, "f" * 64, owner_uid=uid).build()}

    done = scenario.reconcile()

    assert own["metadata"]["name"] == foreign["metadata"]["name"]
    assert deleted(done) == []
    assert scenario.row(Stage.PREPARE).state is not StageState.SUCCEEDED


def test_a_pod_that_only_has_our_labels_is_ignored(scenario: Scenario) -> None:
    scenario.reconcile()
    result = scenario.simulated_result(scenario.request).encode().decode()
    forged = PodBuilder(scenario.live_job, "forged", job_uid="of-no-job").ended(0, result).build()
    scenario.cluster.pods["forged"] = forged

    scenario.reconcile()
    before = scenario.row(Stage.PREPARE).state
    forged["metadata"]["ownerReferences"] = []
    scenario.reconcile()

    assert (before, scenario.row(Stage.PREPARE).state) == (StageState.RUNNING, StageState.RUNNING)


def test_a_job_without_our_label_is_not_read(scenario: Scenario) -> None:
    scenario.reconcile()
    scenario.cluster.jobs[scenario.live_job]["metadata"]["labels"] = {}

    done = scenario.reconcile()

    assert created(done) == [Stage.PREPARE]


def test_a_missing_profile_stalls_the_object_and_says_whom_to_ask() -> None:
    scenario = Scenario(lora_fine_tune(), profile=None)

    done = scenario.reconcile()

    message = "spec.profile: profile 'default' not found; namespace team-a may use none: ask the platform team"
    assert done.plan.actions == ()
    assert scenario.status.phase == "Pending"
    assert scenario.held_up == ("True", "ProfileNotFound", message)
    assert scenario.condition("Ready") == ("False", "ProfileNotFound", message)


def test_the_run_starts_when_its_profile_is_added() -> None:
    scenario = Scenario(lora_fine_tune(), profile=None)
    scenario.reconcile()
    scenario.profiles["default"] = PROFILE

    assert created(scenario.reconcile()) == [Stage.PREPARE]
    assert scenario.held_up is None
    assert scenario.status.finished_at is None


def test_file_uris_are_refused_on_a_cluster_with_every_path() -> None:
    builder = lora_fine_tune().with_spec("baseModel.uri", "file:///base").with_spec("dataset.eval.uri", "file:///eval")
    scenario = Scenario(builder)

    done = scenario.reconcile()

    message = "spec.baseModel.uri, spec.dataset.eval.uri: file:// works only in local runs; use s3://"
    assert done.plan.actions == ()
    assert scenario.held_up == ("True", "InvalidSpec", message)


def test_file_uris_are_accepted_if_the_profile_allows_them() -> None:
    profile = Profile(store=ProfileStore(uri="file:///store"), allow_file_uris=True)
    scenario = Scenario(lora_fine_tune().with_spec("baseModel.uri", "file:///base"), profile)

    assert created(scenario.reconcile()) == [Stage.PREPARE]


def test_an_invalid_spec_is_a_condition_with_every_problem() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("lora.rank", 0).with_spec("image", "evil"))

    done = scenario.reconcile()

    message = "spec.lora.rank: input should be greater than or equal to 1, is 0; spec.image: unknown field"
    assert done.plan.actions == ()
    assert scenario.held_up == ("True", "InvalidSpec", message)


def test_a_spec_with_thousands_of_problems_still_gives_a_status() -> None:
    unknown = {f"field{index}": "x" * 100 for index in range(2000)}
    scenario = Scenario(lora_fine_tune().with_spec("training", unknown))

    scenario.reconcile()

    stalled = scenario.held_up
    assert stalled is not None
    assert stalled[2].startswith("spec.training.field0: unknown field; spec.training.field1: unknown field")


def test_warnings_beyond_the_limit_of_the_status_are_dropped(scenario: Scenario) -> None:
    scenario.reconcile()
    result = scenario.simulated_result(scenario.request).model_copy(update={"warnings": ("!",) * 100})
    assert len(result.encode()) <= MAX_RESULT_BYTES

    scenario.finish(result)
    scenario.reconcile()

    assert len(scenario.status.warnings) == 64


def test_an_object_that_is_being_deleted_is_ignored(scenario: Scenario) -> None:
    scenario.change(scenario.builder.with_metadata(deletionTimestamp="2026-11-24T08:00:00Z"))

    with pytest.raises(AssertionError, match="the object is deleted or gone"):
        scenario.reconcile()
    assert scenario.cluster.jobs == {}

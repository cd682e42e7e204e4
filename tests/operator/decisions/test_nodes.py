"""A training on several nodes: one Job with a Pod for each, one Service, and one attempt for all of its Pods."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api import names
from edgetune_operator.api.profiles.gpu_use import Prices
from edgetune_operator.api.profiles.resources import Resources
from edgetune_operator.api.status.stage_status import ProgressStatus, StageState
from edgetune_operator.decisions.accounting.limits import MAX_LOST_PEERS
from edgetune_operator.decisions.plans import CreateService
from support.builders import PodBuilder, failed_result, lora_fine_tune
from support.scenario import PROFILE, Scenario, deleted

ON_TWO_NODES = Resources(requests={"nvidia.com/gpu": 2}, limits={"nvidia.com/gpu": 2}, nodes=2)
Ending = Callable[[PodBuilder], PodBuilder]


@pytest.fixture
def training() -> Scenario:
    """An object whose training has a running Pod on each of two nodes, with two GPUs each."""
    changes = {"resources": {Stage.TRAIN: ON_TWO_NODES}, "prices": Prices(currency="EUR", gpu_hour=3.6)}
    scenario = Scenario(lora_fine_tune(), PROFILE.model_copy(update=changes))
    scenario.advance_to(Stage.TRAIN)
    return scenario


def pod_on(scenario: Scenario, node: int) -> str:
    """Name of the newest Pod of a node."""
    of_node = (name for name in scenario.cluster.pods_of(scenario.live_job)[::-1] if index_of(scenario, name) == node)
    return next(of_node)


def index_of(scenario: Scenario, pod: str) -> int:
    return int(scenario.cluster.pods[pod]["metadata"]["labels"][names.INDEX_LABEL])


def change(scenario: Scenario, node: int, ending: Ending) -> None:
    """Change the newest Pod of a node."""
    name, job = pod_on(scenario, node), scenario.live_job
    created = scenario.cluster.pods[name]["metadata"]["creationTimestamp"]
    scenario.cluster.pods[name] = ending(
        PodBuilder(job, name, created, now=scenario.cluster.timestamp(), node=node)
    ).build()


def ended(scenario: Scenario, code: ExitCode, step: int | None = None) -> Ending:
    """The container ended with a code, and says with which checkpoint."""
    result = failed_result(Stage.TRAIN, scenario.request.digest, code, code.reason, f"it ended with {code}", step)
    return lambda pod: pod.ended(code, result.encode().decode())


def evicted(pod: PodBuilder) -> PodBuilder:
    return pod.ended(137).disrupted()


def lose(scenario: Scenario, endings: Mapping[int, Ending], failed: int = 0) -> None:
    """The attempt ends 100 seconds later, is observed, and the Job controller starts the next one.

    Args:
        scenario: the object.
        endings: of the Pods, by node.
        failed: Pods that the Job counts as failed.
    """
    scenario.let_pass(timedelta(seconds=100))
    for node, ending in endings.items():
        change(scenario, node, ending)
        scenario.reconcile()
    status = scenario.cluster.jobs[scenario.live_job]["status"]
    status["failed"] = status.get("failed", 0) + failed
    scenario.cluster.start_pod(scenario.live_job)
    scenario.reconcile()


def test_a_training_on_two_nodes_succeeds_with_the_result_of_the_first(training: Scenario) -> None:
    job, result = training.live_job, training.simulated_result(training.request)
    other = result.model_copy(update={"metrics": {"finalLoss": 99.0}})

    change(training, 1, lambda pod: pod.succeeded(other))
    training.reconcile()
    before = training.row(Stage.TRAIN).state
    change(training, 0, lambda pod: pod.succeeded(result))
    training.end_job(lambda each: each.complete(training.cluster.timestamp()), job)
    training.reconcile()

    assert before is StageState.RUNNING
    assert training.row(Stage.TRAIN).state is StageState.SUCCEEDED
    assert training.row(Stage.TRAIN).metrics == result.metrics


def test_the_stage_is_done_when_the_first_node_is_although_the_others_still_end(training: Scenario) -> None:
    change(training, 0, lambda pod: pod.succeeded(training.simulated_result(training.request)))

    training.reconcile()

    assert training.row(Stage.TRAIN).state is StageState.SUCCEEDED


def test_one_incident_is_one_failed_attempt_with_the_reason_of_the_pod_that_failed(training: Scenario) -> None:
    lose(training, {0: ended(training, ExitCode.PEER_LOST), 1: ended(training, ExitCode.TRANSIENT)}, failed=1)

    row = training.row(Stage.TRAIN)

    assert (row.attempts, row.preemptions) == (2, 0)
    assert row.message == "an attempt failed and is retried: TransientError: it ended with 14"


@pytest.mark.parametrize("is_started", [True, False], ids=["a new Pod waits for it", "no new Pod yet"])
def test_a_pod_that_outlives_the_loss_of_its_peer_is_replaced_with_its_job(
    training: Scenario, is_started: bool
) -> None:
    job, lost = training.live_job, ended(training, ExitCode.PEER_LOST, step=40)
    training.let_pass(timedelta(seconds=100))
    change(training, 1, evicted)
    change(training, 0, lambda pod: lost(pod).outlived_by("istio-proxy"))
    if is_started:
        training.cluster.start_node(job, 1)
    training.let_pass(timedelta(seconds=30))

    replaced = training.reconcile()
    condition = training.condition("Reconciling")
    training.reconcile()

    assert [name for name, _ in deleted(replaced)] == [job]
    assert condition is not None
    assert condition[1] == "PodOutlivedStage"
    assert "its Pod is still running container istio-proxy" in condition[2]
    row = training.row(Stage.TRAIN)
    assert (row.state, row.attempts, row.preemptions) == (StageState.RUNNING, 1, 1)


def test_pods_that_fail_at_the_same_time_are_one_failed_attempt(training: Scenario) -> None:
    transient = ended(training, ExitCode.TRANSIENT)
    lose(training, {0: transient, 1: transient}, failed=2)

    assert training.row(Stage.TRAIN).attempts == 2
    assert training.row(Stage.TRAIN).state is StageState.RUNNING


def test_a_pod_that_fails_while_another_one_runs_is_part_of_their_attempt(training: Scenario) -> None:
    change(training, 1, ended(training, ExitCode.TRANSIENT))
    training.cluster.jobs[training.live_job]["status"] |= {"failed": 1, "active": 1}

    training.reconcile()

    assert training.row(Stage.TRAIN).attempts == 1


def test_pods_that_are_seen_before_their_job_counts_them_take_no_attempt_away(training: Scenario) -> None:
    transient = ended(training, ExitCode.TRANSIENT)
    lose(training, {0: transient, 1: transient}, failed=2)
    training.let_pass(timedelta(seconds=100))
    for node in (0, 1):
        change(training, node, transient)

    training.reconcile()

    assert training.row(Stage.TRAIN).attempts == 2


def test_a_training_is_retried_as_often_as_its_limit_says_however_many_pods_fail() -> None:
    profile = PROFILE.model_copy(update={"resources": {Stage.TRAIN: ON_TWO_NODES}})
    scenario = Scenario(lora_fine_tune().with_spec("retryLimit", 1), profile)
    scenario.advance_to(Stage.TRAIN)
    transient = ended(scenario, ExitCode.TRANSIENT)
    limit = scenario.cluster.jobs[scenario.live_job]["spec"]["backoffLimit"]
    lose(scenario, {0: transient, 1: transient}, failed=2)
    before = scenario.row(Stage.TRAIN).state
    change(scenario, 1, transient)
    scenario.reconcile()
    ending = scenario.row(Stage.TRAIN).state
    change(scenario, 0, ended(scenario, ExitCode.PEER_LOST))
    scenario.reconcile()

    row = scenario.row(Stage.TRAIN)
    # The Job counts Pods, and allows all of them in the first attempt and one of them in the last one.
    assert limit == 3
    assert (before, ending) == (StageState.RUNNING, StageState.RUNNING)
    assert (row.state, row.attempts) == (StageState.FAILED, 2)
    assert row.message == "it ended with 14 (attempt 2, spec.retryLimit was 1)"
    assert scenario.cluster.live_jobs() == []


def test_a_job_that_also_counts_the_pods_that_it_stops_says_how_many_attempts_failed(training: Scenario) -> None:
    lose(training, {0: ended(training, ExitCode.PEER_LOST), 1: ended(training, ExitCode.TRANSIENT)}, failed=1)
    change(training, 1, ended(training, ExitCode.TRANSIENT))
    change(training, 0, ended(training, ExitCode.INTERRUPTED))
    training.end_job(lambda each: each.failed("BackoffLimitExceeded", attempts=4, at=training.cluster.timestamp()))

    training.reconcile()

    assert training.row(Stage.TRAIN).state is StageState.FAILED
    assert training.row(Stage.TRAIN).message == "it ended with 14 (attempt 2, spec.retryLimit was 3)"


def test_a_failure_that_cannot_pass_says_more_than_what_the_other_nodes_report(training: Scenario) -> None:
    change(training, 0, ended(training, ExitCode.PEER_LOST))
    change(training, 1, ended(training, ExitCode.DIVERGED))
    training.end_job(lambda job: job.failed("PodFailurePolicy", at=training.cluster.timestamp()))

    training.reconcile()

    assert training.row(Stage.TRAIN).reason == "TrainingDiverged"
    assert training.row(Stage.TRAIN).message == "it ended with 13"


@pytest.mark.parametrize("node", [0, 1])
def test_the_preemption_of_one_pod_is_one_preemption(training: Scenario, node: int) -> None:
    lose(training, {node: evicted, 1 - node: ended(training, ExitCode.PEER_LOST, step=40)})

    row = training.row(Stage.TRAIN)

    assert (row.attempts, row.preemptions) == (1, 1)
    assert row.reason == "Evicted"
    assert row.message == "evicted from its node, for example by a drain; resumes from the checkpoint of step 40"


def test_a_queue_that_takes_the_quota_back_is_one_preemption(training: Scenario) -> None:
    lose(training, {node: ended(training, ExitCode.INTERRUPTED, step=7) for node in (0, 1)})

    assert training.row(Stage.TRAIN).preemptions == 1


def test_a_pod_that_is_replaced_before_it_met_the_others_joins_them(training: Scenario) -> None:
    job = training.live_job
    change(training, 1, lambda pod: pod.unschedulable("no node fits"))
    training.reconcile()
    waiting = training.row(Stage.TRAIN)
    change(training, 1, evicted)
    training.cluster.start_node(job, 1)
    training.reconcile()
    running = training.row(Stage.TRAIN)
    lose(training, {1: ended(training, ExitCode.TRANSIENT), 0: ended(training, ExitCode.PEER_LOST)}, failed=1)

    assert (waiting.reason, waiting.message) == ("Unschedulable", "no node fits")
    assert (running.attempts, running.preemptions) == (1, 0)  # the older attempt still runs
    assert (training.row(Stage.TRAIN).attempts, training.row(Stage.TRAIN).preemptions) == (2, 1)


def test_peers_that_never_reach_each_other_end_the_training(training: Scenario) -> None:
    lost = ended(training, ExitCode.PEER_LOST)
    job = training.live_job
    for _ in range(MAX_LOST_PEERS - 1):
        lose(training, {0: lost, 1: lost})
    before = training.row(Stage.TRAIN)
    for node in (0, 1):
        change(training, node, lost)
    training.reconcile()
    row = training.row(Stage.TRAIN)

    assert (before.state, before.preemptions) == (StageState.RUNNING, MAX_LOST_PEERS - 1)
    assert (row.state, row.reason) == (StageState.FAILED, "PeerLost")
    assert row.message == (
        f"{MAX_LOST_PEERS} attempts in a row lost a Pod on another node, and none made a new step: check that no "
        f"NetworkPolicy keeps the Pods of Job {job} from each other (all TCP ports), that Service {job} exists, and "
        "that the cluster's DNS resolves it; then request a retry. The last one: it ended with 76"
    )


@pytest.mark.parametrize(
    "between",
    [
        lambda scenario, attempt: (ended(scenario, ExitCode.PEER_LOST, step=10 * attempt), 0),
        lambda scenario, attempt: (evicted, 0),  # noqa: ARG005 - as above
    ],
    ids=["steps are made", "one was evicted"],
)
def test_peers_that_are_lost_for_a_reason_end_nothing(
    training: Scenario, between: Callable[[Scenario, int], tuple[Ending, int]]
) -> None:
    for attempt in range(1, MAX_LOST_PEERS + 2):
        ending, failed = between(training, attempt)
        lose(training, {0: ended(training, ExitCode.PEER_LOST), 1: ending}, failed)

    assert training.row(Stage.TRAIN).state is StageState.RUNNING


def test_a_node_that_waits_for_room_is_not_a_lost_peer(training: Scenario) -> None:
    change(training, 1, lambda pod: pod.unschedulable("no node fits"))
    for _ in range(MAX_LOST_PEERS + 1):
        training.let_pass(timedelta(seconds=600))
        change(training, 0, ended(training, ExitCode.PEER_LOST))
        training.cluster.start_node(training.live_job, 0)
        training.reconcile()
    started = {"running": {"startedAt": training.cluster.timestamp()}}
    change(training, 1, lambda pod: replace(pod.running(), state=started))
    training.reconcile()

    assert training.row(Stage.TRAIN).state is StageState.RUNNING


def test_gpu_time_and_cost_count_the_pods_of_all_nodes(training: Scenario) -> None:
    lose(training, {0: evicted, 1: ended(training, ExitCode.PEER_LOST)})
    row, gpu = training.row(Stage.TRAIN), training.status.gpu

    assert gpu is not None
    assert gpu.total.seconds == row.gpu_seconds
    # Two GPUs on each node; the second one ended a pass later.
    assert row.gpu_seconds == pytest.approx(2 * (100 + 10) + 2 * (100 + 20), abs=40)
    assert row.active_seconds == pytest.approx(row.gpu_seconds / 4, abs=10)
    assert gpu.total.cost == {"EUR": pytest.approx(row.gpu_seconds / 1000)}
    assert gpu.total.failed_seconds == 0
    assert gpu.total.lost_peer_seconds == 2 * 10


def test_gpu_time_of_all_nodes_is_lost_with_the_one_that_failed(training: Scenario) -> None:
    lose(training, {0: ended(training, ExitCode.PEER_LOST), 1: ended(training, ExitCode.TRANSIENT)}, failed=1)

    gpu = training.status.gpu

    assert gpu is not None
    assert gpu.total.failed_seconds == gpu.total.seconds > 0
    assert gpu.total.lost_peer_seconds == 0


def test_repeated_steps_cost_the_gpus_of_all_nodes(training: Scenario) -> None:
    report = ProgressStatus(
        stage=Stage.TRAIN, step=50, total_steps=100, eta_seconds=500, pod=pod_on(training, 0), resumed_from=0
    )
    training.cluster.progress = report
    training.reconcile()
    lose(training, {1: evicted, 0: ended(training, ExitCode.PEER_LOST)})
    training.cluster.progress = report.model_copy(update={"pod": pod_on(training, 0), "step": 41, "resumed_from": 40})
    training.reconcile()

    gpu = training.status.gpu

    assert gpu is not None
    assert gpu.total.repeated_seconds == 4 * 10 * 10  # GPUs, steps, seconds a step
    assert training.row(Stage.TRAIN).lost_steps == 10


def test_a_running_attempt_holds_the_gpus_of_all_nodes_and_counts_them_if_it_ends_unseen(training: Scenario) -> None:
    training.reconcile()
    held = training.row(Stage.TRAIN).gpu_attempt
    first, job = pod_on(training, 0), training.live_job
    training.let_pass(timedelta(seconds=100))
    change(training, 1, ended(training, ExitCode.PEER_LOST))
    del training.cluster.pods[first]
    training.cluster.start_pod(job)
    training.reconcile()
    gpu = training.status.gpu

    assert held is not None
    assert (held.pod, held.gpus) == (first, 4)
    assert gpu is not None
    # The Pod that is gone is estimated, the other one is counted: neither is counted twice.
    assert 0 < gpu.total.estimated_seconds < gpu.total.seconds
    assert gpu.total.seconds == pytest.approx(4 * 120, abs=60)


def test_a_limit_of_gpu_time_counts_the_pods_that_run_on_all_nodes() -> None:
    changes = {"resources": {Stage.TRAIN: ON_TWO_NODES}}
    scenario = Scenario(lora_fine_tune().edited("maxGpuSeconds", 400), PROFILE.model_copy(update=changes))
    scenario.advance_to(Stage.TRAIN)
    before = scenario.reconcile()
    scenario.let_pass(timedelta(seconds=90))
    scenario.reconcile()

    assert before.plan.look_again is not None
    assert before.plan.look_again <= timedelta(seconds=90)
    assert scenario.row(Stage.TRAIN).reason == "GpuSecondsExceeded"


def test_the_service_of_the_job_is_created_once_and_again_when_it_is_deleted(training: Scenario) -> None:
    job, services = training.live_job, training.cluster.services
    first = training.reconcile()
    second = training.reconcile()
    services.clear()
    third = training.reconcile()

    assert first.plan.actions == (CreateService(job, f"uid-of-{job}"),)
    assert (second.plan.actions, second.plan.look_again) == ((), timedelta(seconds=30))
    assert third.plan.actions == first.plan.actions
    assert services.keys() == {job}
    assert services[job]["spec"]["selector"] == {"batch.kubernetes.io/job-name": job}


def test_the_service_of_an_earlier_job_with_the_same_name_is_waited_for(training: Scenario) -> None:
    job, services = training.live_job, training.cluster.services
    training.reconcile()
    services[job]["metadata"]["ownerReferences"][0]["uid"] = "an earlier Job"
    waiting = training.reconcile()
    services.clear()
    training.reconcile()

    assert waiting.plan.look_again == timedelta(seconds=2)
    assert services[job]["metadata"]["ownerReferences"][0]["uid"] == f"uid-of-{job}"


def test_a_service_that_the_cluster_refuses_holds_the_object_up(training: Scenario) -> None:
    training.cluster.refusal = "exceeded quota: services"
    training.reconcile()
    held_up = training.held_up
    training.cluster.refusal = ""
    training.reconcile()

    assert held_up == ("True", "ServiceRefused", "train: exceeded quota: services")
    assert training.row(Stage.TRAIN).state is StageState.RUNNING
    assert training.held_up is None


def test_a_suspended_job_needs_no_service(training: Scenario) -> None:
    training.cluster.jobs[training.live_job]["spec"]["suspend"] = True

    assert training.reconcile().plan.actions == ()


def test_a_changed_number_of_nodes_leaves_a_running_training_alone(training: Scenario) -> None:
    training.reconcile()
    training.profiles["default"] = PROFILE

    assert training.reconcile().plan.actions == ()
    assert training.row(Stage.TRAIN).state is StageState.RUNNING


def test_the_end_of_a_failed_job_is_awaited_although_earlier_attempts_had_as_many_pods(training: Scenario) -> None:
    lose(training, {0: ended(training, ExitCode.PEER_LOST), 1: ended(training, ExitCode.TRANSIENT)}, failed=1)
    job = training.live_job
    endings = [ended(training, code) for code in (ExitCode.PEER_LOST, ExitCode.OUT_OF_GPU_MEMORY)]
    training.end_job(lambda each: each.failed("BackoffLimitExceeded", attempts=2, at=training.cluster.timestamp()))
    training.reconcile()
    before = training.row(Stage.TRAIN).state
    for pod, ending in zip(training.cluster.newest_pods(job), endings, strict=True):
        training.cluster.change_pod(pod, ending)
    training.reconcile()

    assert before is StageState.RUNNING
    assert training.row(Stage.TRAIN).reason == "OutOfGpuMemory"


def test_the_status_says_how_many_processes_train_and_on_how_many_nodes(training: Scenario) -> None:
    training.reconcile()

    together, display = training.row(Stage.TRAIN).parallelism, training.status.display

    assert together is not None
    assert (together.processes, together.nodes, together.efficiency) == (4, 2, None)
    assert display is not None
    assert display.processes == "4 on 2 nodes"

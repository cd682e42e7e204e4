"""Random walks: whatever users, Pods and the Job controller do, in any order, a run stays consistent and ends."""

import contextlib
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from edgetune_contract.stages import INTERNAL_ERROR, ExitCode, Stage
from edgetune_operator.api.profiles.profile import ProfileStore
from edgetune_operator.api.profiles.queue import Queue
from edgetune_operator.api.profiles.resources import Resources
from edgetune_operator.api.status.object_status import LoraFineTuneStatus
from edgetune_operator.api.status.stage_status import StageState
from edgetune_operator.decisions.plans import CreateJob, Outcome
from edgetune_operator.decisions.reporting.status import dump
from edgetune_operator.generate.reference import REASONS
from edgetune_operator.reconcile import JobRefused, Pass
from support.builders import PodBuilder, lora_fine_tune
from support.scenario import PROFILE, MemoryCluster, Scenario, created, request_of

EDITS: tuple[tuple[str, Any], ...] = (
    ("lora.rank", 8),
    ("lora.rank", 16),
    ("dataset.template", "ChatTemplate"),
    ("merge.keep", False),
    ("merge.keep", True),
    ("evaluation.gates.minScore", 0.5),
    ("evaluation.maxExamples", 10),
    ("training.checkpoint.keep", 4),
    ("retryLimit", 5),
    ("suspend", True),
    ("suspend", False),
    ("lora.rank", 0),
)
FAILURES = tuple(code for code in ExitCode if code is not ExitCode.DONE)


class ClusterUnavailable(Exception):
    """The API server did not answer."""


class Walk(RuleBasedStateMachine):
    """One object, its Jobs and Pods, and everybody who changes them."""

    profile = PROFILE

    def __init__(self) -> None:
        super().__init__()
        self.scenario = Scenario(lora_fine_tune(), self.profile)
        self.tokens = 0

    @property
    def cluster(self) -> MemoryCluster:
        return self.scenario.cluster

    def running(self) -> list[str]:
        """Jobs with a running Pod, including those that are being deleted."""
        return [
            name
            for name in self.cluster.jobs
            if any(self.cluster.pods[pod]["status"]["phase"] == "Running" for pod in self.cluster.pods_of(name))
        ]

    def reconcile(self) -> Pass:
        """One pass, with the invariants of every pass."""
        before = self.scenario.status
        done = self.scenario.reconcile()
        succeeded = {row.digest for row in before.stages if row.state is StageState.SUCCEEDED}
        asked = [action.request for action in done.plan.actions if isinstance(action, CreateJob)]
        assert not [each for each in asked if each.stage is not Stage.PREPARE and each.digest in succeeded]
        assert len(created(done)) <= 1
        assert not created(done) or len(done.plan.actions) == 1
        known = {code.reason for code in ExitCode} | set(REASONS) | {INTERNAL_ERROR, "Unschedulable", ""}
        assert {done.plan.view.reason, *(row.reason for row in done.plan.view.rows)} <= known
        return done

    def settle(self) -> Pass:
        """Passes until nothing is left to do now; then one more does nothing and writes nothing."""
        self.finish_deletions()
        while self.reconcile().plan.actions:
            self.finish_deletions()
        again = self.reconcile()
        assert (again.plan.actions, again.wrote_status) == ((), False)
        return again

    @rule()
    def a_pass(self) -> None:
        self.reconcile()

    @rule()
    def passes_until_nothing_changes(self) -> None:
        self.settle()

    @rule(lost=st.sampled_from(["create_job", "delete_job", "write_status"]), after=st.booleans())
    def a_pass_interrupted_by_the_cluster(self, lost: str, after: bool) -> None:
        whole = getattr(self.cluster, lost)

        async def fails(*arguments: Any) -> None:
            if after:
                await whole(*arguments)
            raise ClusterUnavailable

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ClusterUnavailable):
            patch.setattr(self.cluster, lost, fails)
            self.reconcile()

    @rule()
    def a_pass_whose_job_is_refused(self) -> None:
        async def refuses(job: Any) -> None:  # noqa: ARG001 - the signature is the cluster's
            raise JobRefused("JobRefused", "exceeded quota: gpus")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.cluster, "create_job", refuses)
            self.scenario.reconcile()

    @precondition(lambda self: self.has_running_pod())
    @rule()
    def the_stage_succeeds(self) -> None:
        self.scenario.finish()

    @precondition(lambda self: self.has_running_pod())
    @rule()
    def the_container_succeeds_before_the_job(self) -> None:
        result = self.scenario.simulated_result(self.scenario.request)
        self.scenario.end_pod(lambda pod: pod.succeeded(result))

    @precondition(lambda self: self.has_running_pod())
    @rule()
    def the_result_is_lost(self) -> None:
        self.scenario.simulated_result(self.scenario.request)
        self.scenario.end_pod(lambda pod: pod.ended(0))
        self.scenario.end_job(lambda job: job.complete(self.cluster.timestamp()))

    @precondition(lambda self: self.has_running_pod())
    @rule(code=st.sampled_from(FAILURES))
    def the_stage_fails(self, code: ExitCode) -> None:
        self.scenario.fail(code, "it did not work")

    @precondition(lambda self: self.has_running_pod())
    @rule(code=st.sampled_from(FAILURES), node=st.integers(0, 1))
    def one_of_several_nodes_fails(self, code: ExitCode, node: int) -> None:
        pods = self.cluster.newest_pods(self.scenario.live_job)
        if len(pods) > 1 and not self.cluster.has_ended(pods[node]):
            self.cluster.change_pod(pods[node], lambda pod: pod.ended(code))

    @precondition(lambda self: self.has_running_pod())
    @rule()
    def the_other_nodes_end(self) -> None:
        """Those of an attempt that has lost one; then the Job controller starts the next attempt."""
        pods = self.cluster.newest_pods(self.scenario.live_job)
        if any(self.cluster.has_ended(pod) for pod in pods) and len(pods) > 1:
            self.scenario.end_pod(lambda pod: pod.ended(ExitCode.PEER_LOST))
            self.cluster.start_pod(self.scenario.live_job)

    @precondition(lambda self: self.has_running_pod())
    @rule()
    def the_pod_is_evicted(self) -> None:
        self.scenario.evict()

    @precondition(lambda self: self.has_running_pod())
    @rule()
    def somebody_deletes_the_job(self) -> None:
        self.cluster.remove_job(self.scenario.live_job)

    def has_running_pod(self) -> bool:
        """Whether there is exactly one live Job, with a running Pod."""
        live = self.cluster.live_jobs()
        return len(live) == 1 and live == [name for name in self.running() if name in live]

    @precondition(lambda self: self.has_running_pod())
    @rule()
    def the_pod_is_unschedulable(self) -> None:
        self.scenario.end_pod(lambda pod: pod.unschedulable("no node fits"))

    @rule()
    def pending_pods_are_scheduled(self) -> None:
        for name in [name for name, pod in self.cluster.pods.items() if pod["status"]["phase"] == "Pending"]:
            self.cluster.change_pod(name, PodBuilder.running)

    @rule(queue=st.sampled_from(["", "gpu"]), store=st.sampled_from(["s3://artifacts/edgetune", "s3://copied"]))
    def the_platform_team_changes_the_profile(self, queue: str, store: str) -> None:
        changes = {"queue": Queue(name=queue) if queue else None, "store": ProfileStore(uri=store)}
        self.scenario.profiles = {"default": self.profile.model_copy(update=changes)}

    @rule()
    def the_job_controller_catches_up(self) -> None:
        for name in self.cluster.live_jobs():
            phases = {self.cluster.pods[pod]["status"]["phase"] for pod in self.cluster.newest_pods(name)}
            if phases == {"Succeeded"}:
                self.scenario.end_job(lambda job: job.complete(self.cluster.timestamp()), name)

    @rule()
    def the_time_to_live_removes_ended_jobs(self) -> None:
        self.cluster.remove_ended_jobs()

    @rule(slowly=st.booleans())
    def deletions_take_time(self, slowly: bool) -> None:
        self.cluster.deletes_slowly = slowly

    @rule()
    def finish_deletions(self) -> None:
        for name in [name for name, job in self.cluster.jobs.items() if job["metadata"].get("deletionTimestamp")]:
            self.cluster.remove_job(name)

    @rule(edit=st.sampled_from(EDITS))
    def a_user_edits_the_spec(self, edit: tuple[str, Any]) -> None:
        self.scenario.change(self.scenario.builder.edited(*edit))

    @rule()
    def a_user_requests_a_retry(self) -> None:
        self.tokens += 1
        self.scenario.change(self.scenario.builder.with_retry_requested(f"token-{self.tokens}"))

    @rule()
    def a_user_removes_the_annotation(self) -> None:
        self.scenario.change(self.scenario.builder.with_metadata(annotations={}))

    @rule(version=st.integers(0, 2))
    def the_data_changes(self, version: int) -> None:
        self.scenario.data = f"version {version} of the data"

    @rule(passing=st.booleans())
    def the_gates_pass_or_fail(self, passing: bool) -> None:
        self.scenario.gates_pass = passing

    @rule(reports=st.booleans())
    def prepare_reports_later_stages_or_not(self, reports: bool) -> None:
        self.scenario.reports_later_stages = reports

    @invariant()
    def two_stages_never_run_at_the_same_time(self) -> None:
        assert len(self.running()) <= 1

    @invariant()
    def the_status_is_valid_and_round_trips(self) -> None:
        status = self.cluster.document.get("status")
        if status is not None:
            assert dump(LoraFineTuneStatus.model_validate(status)) == status
            # The API server refuses a list with duplicate keys.
            for field, key in (("conditions", "type"), ("stages", "name"), ("artifacts", "name")):
                keys = [item[key] for item in status.get(field, [])]
                assert len(keys) == len(set(keys))

    @invariant()
    def conditions_follow_kstatus(self) -> None:
        status = self.scenario.status
        conditions = {condition.type: condition.status for condition in status.conditions}
        assert conditions.get("Reconciling", "True") == "True"
        assert conditions.get("Stalled", "True") == "True"
        assert not {"Reconciling", "Stalled"} <= conditions.keys()
        if conditions.get("Ready") == "True":
            assert status.observed_generation >= 1
            assert not {"Reconciling", "Stalled"} & conditions.keys()

    def teardown(self) -> None:
        """From now on every stage succeeds: the run ends; after an edit, and after a retry, it ends well."""
        wanted = Outcome.PUBLISHED, Outcome.REFUSED
        self.cluster.deletes_slowly = False
        self.scenario.change(self.scenario.builder.edited("suspend", False).edited("lora.rank", 32))
        assert self.run_to_the_end().is_final
        self.scenario.change(self.scenario.builder.edited("retryLimit", 7))
        assert self.run_to_the_end() in wanted
        self.a_user_requests_a_retry()
        assert self.run_to_the_end() in wanted
        last = self.scenario.status
        assert last.publication is not None
        assert not last.publication.published or last.publication.version == self.scenario.pointer
        assert last.last_handled_retry == f"token-{self.tokens}"
        assert all(row.state in (StageState.SUCCEEDED, StageState.SKIPPED) for row in last.stages)

    def run_to_the_end(self) -> Outcome:
        """Let every stage succeed until the outcome is final."""
        for _ in range(40):
            done = self.settle()
            if done.plan.view.outcome.is_final:
                assert not self.running()
                return done.plan.view.outcome
            self.pending_pods_are_scheduled()
            if self.has_running_pod():
                self.the_other_nodes_end()
                self.scenario.finish()
            self.the_job_controller_catches_up()
        raise AssertionError(f"no end: {done.plan.view.reason}: {done.plan.view.message}")


Walk.TestCase.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
TestWalk = pytest.mark.timeout(300)(Walk.TestCase)


class WalkOnNodes(Walk):
    """The same with a training on two nodes."""

    profile = PROFILE.model_copy(update={"resources": {Stage.TRAIN: Resources(limits={"nvidia.com/gpu": 1}, nodes=2)}})


WalkOnNodes.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestWalkOnNodes = pytest.mark.timeout(300)(WalkOnNodes.TestCase)


def test_the_request_of_a_job_is_the_one_that_was_planned() -> None:
    scenario = Scenario(lora_fine_tune())

    (planned,) = scenario.reconcile().plan.actions

    assert isinstance(planned, CreateJob)
    assert request_of(scenario.cluster.created[0]) == planned.request

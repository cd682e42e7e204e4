"""The passes of a forecast: each Job that `plan` creates succeeds immediately, and the next pass observes that.

No rule of `plan` is repeated here. A stage's result comes from the status of earlier runs or from the store.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from edgetune_contract.digest import prepared_digest, recipe_digest, stage_digests
from edgetune_contract.pipeline import PIPELINE
from edgetune_contract.request import Failure, Publication, Request, Result, Scores
from edgetune_contract.stages import ExitCode, Stage
from edgetune_contract.values.times import timestamp
from edgetune_operator.api import names
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.spec import LoraFineTuneSpec
from edgetune_operator.api.status.object_status import LoraFineTuneStatus
from edgetune_operator.api.status.stage_status import StageState
from edgetune_operator.decisions.admission import Refusal
from edgetune_operator.decisions.forecast.explanation import Explanation, StageForecast
from edgetune_operator.decisions.forecast.inputs import Inputs
from edgetune_operator.decisions.manifests.stage_needs import METRICS
from edgetune_operator.decisions.observe import JobObservation, JobState, Snapshot
from edgetune_operator.decisions.plans import CreateJob, DeleteJob, Outcome, Plan
from edgetune_operator.decisions.pods import PodObservation
from edgetune_operator.decisions.reporting.status import project
from edgetune_operator.decisions.state_machine import plan

# Each pass except the last creates or deletes Jobs, and no stage runs more than twice.
_MOST_PASSES = 8 * len(Stage)
_VERSION_DIGITS = 64


@dataclass(frozen=True)
class Forecast:
    """What the next passes would do."""

    stages: tuple[StageForecast, ...]
    """In the order in which they would run; with a pin, publish comes first."""

    jobs: tuple[Request, ...]
    """Requests of the Jobs that would be created, in order."""

    outcome: Outcome
    message: str
    """Why the forecast ends with this outcome."""

    warnings: tuple[str, ...] = ()
    """Warnings about the spec, and about the scores of stages that are kept."""


class StoreView(Protocol):
    """The known content of the store."""

    def read_result(self, stage: Stage, digest: str) -> Result | None:
        """Result of a stage; None if the stage is not done. publish is done if the pointer names its version."""
        ...

    def find_version(self, pin: str) -> str:
        """Digest of the published version that a pin names.

        Raises:
            LookupError: no published version matches; the message says why and lists the versions.
        """
        ...


class RecordedStore:
    """The store as the status recorded it, assumed unchanged since the last run."""

    def __init__(self, status: LoraFineTuneStatus, present_store: str) -> None:
        """`present_store`: the profile's current store. If it is not that of the last run, its content is unknown."""
        self._publication = status.publication
        self._scores = status.scores
        self._done = (
            {row.name: row.digest for row in status.stages if row.state is StageState.SUCCEEDED}
            if status.store in ("", present_store)
            else {}
        )

    def read_result(self, stage: Stage, digest: str) -> Result | None:
        if self._done.get(stage) != digest:
            return None
        recorded = self._publication
        publication = Publication.model_validate(recorded.model_dump()) if recorded else None
        return _result(stage, digest, publication, self._scores)

    def find_version(self, pin: str) -> str:
        return pin.ljust(_VERSION_DIGITS, "0")


def forecast(
    spec: LoraFineTuneSpec,
    profile: Profile | Refusal,
    snapshot: Snapshot,
    now: datetime,
    *,
    store: StoreView | None = None,
    before: LoraFineTuneSpec | None = None,
) -> Forecast:
    """What the next passes would do if every Job succeeded, known inputs were unchanged, and all gates passed.

    Args:
        spec: the current spec.
        profile: the profile that the object runs with, or why it may not run.
        snapshot: the object as the next pass would observe it.
        now: current time, with a time zone.
        store: the store that the stages would find; by default, as the status recorded it.
        before: the spec of the last run; None if there was none or it is unknown.
    """
    present = (
        profile.store.for_namespace(snapshot.namespace).display_uri
        if isinstance(profile, Profile)
        else snapshot.previous.store
    )
    inputs = Inputs.expected(spec.parameters, before.parameters if before else None, snapshot.previous)
    known = store or RecordedStore(snapshot.previous, present)
    stages = _Stages(snapshot.name, inputs, known, _model_figures(inputs, snapshot.previous), now)
    created: list[CreateJob] = []
    current, decided = snapshot, plan(spec, profile, snapshot, now)
    for _ in range(_MOST_PASSES):
        created += (action for action in decided.actions if isinstance(action, CreateJob))
        following = _next_snapshot(current, decided, stages)
        if following is None:
            break
        current, decided = following, plan(spec, profile, following, now)
    explanation = Explanation(
        spec=spec,
        before=before,
        name=snapshot.name,
        previous=snapshot.previous,
        inputs=inputs,
        created={action.request.stage for action in created},
        last=decided.view,
        is_store_asked=store is not None,
    )
    prices = profile.prices if isinstance(profile, Profile) else None
    requests = {action.request.stage: action.resources.describe(prices) for action in created} if stages.figures else {}
    gpus = {action.request.stage: action.resources.container.all_gpus for action in created}
    return Forecast(
        tuple(
            replace(each, requests=requests.get(each.stage, ""), gpus=gpus.get(each.stage, 0))
            for each in explanation.stages()
        ),
        tuple(action.request for action in created),
        decided.view.outcome,
        decided.view.message,
        decided.view.warnings,
    )


def _model_figures(inputs: Inputs, previous: LoraFineTuneStatus) -> Mapping[str, float]:
    """Metrics of prepare that resources depend on, from the last run; empty if the base may be another one."""
    metrics = next((row.metrics for row in previous.stages if row.name is Stage.PREPARE), {})
    return {} if inputs.base is None else {name: metrics[name] for name in METRICS if name in metrics}


def _next_snapshot(snapshot: Snapshot, decided: Plan, stages: "_Stages") -> Snapshot | None:
    """What the pass after this one would observe; None if there would be nothing to do."""
    deleted = {action.name for action in decided.actions if isinstance(action, DeleteJob)}
    jobs: Sequence[JobObservation] = [job for job in snapshot.jobs if job.name not in deleted and not job.deleting]
    is_running = decided.view.outcome in (Outcome.RUNNING, Outcome.BLOCKED)
    is_changing = any(job.state is JobState.LIVE for job in jobs) or len(jobs) < len(snapshot.jobs)
    if not decided.actions and not (is_running and is_changing):
        return None
    if is_running:
        jobs = [stages.end(job) if job.state is JobState.LIVE else job for job in jobs]
    created = [stages.run(action) for action in decided.actions if isinstance(action, CreateJob)]
    status = LoraFineTuneStatus.model_validate(project(decided.view, snapshot, stages.now))
    return replace(snapshot, previous=status, jobs=(*jobs, *created), progress=None, events=())


@dataclass(frozen=True)
class _Stages:
    """Stages that end immediately, with their known results."""

    name: str
    inputs: Inputs
    store: StoreView
    figures: Mapping[str, float]
    """Metrics of prepare that resources depend on; empty if unknown."""

    now: datetime
    new_results: dict[tuple[Stage, str], Result] = field(default_factory=dict)
    """Results of stages that have run in this forecast."""

    def run(self, action: CreateJob) -> JobObservation:
        """The Job of a request, after its end."""
        request, time = action.request, timestamp(self.now)
        name = names.job_name(request.name, request.stage, request.digest)
        job = JobObservation(
            name=name,
            uid=name,
            created_at=time,
            stage=request.stage,
            digest=request.digest,
            retry=action.retry,
            looked_for=recipe_digest(request.parameters) if request.stage is Stage.PREPARE else "",
            settings="",
            backoff_limit=None,
            deadline_seconds=None,
            resources={},
            state=JobState.LIVE,
            deleting=False,
            suspended=False,
            reason="",
            message="",
            attempts=1,
            active=1,
            started_at=time,
            finished_at=None,
            pods=(),
        )
        return self.end(job)

    def end(self, job: JobObservation) -> JobObservation:
        """A live Job after its end."""
        result, time = self._result(job), timestamp(self.now)
        failure = result.failure
        pod = PodObservation(
            is_set_up=True,
            node="",
            gone_by=None,
            name=f"{job.name}-forecast",
            uid=f"{job.uid}-forecast",
            created_at=time,
            phase="Failed" if failure else "Succeeded",
            exit_code=failure.exit_code if failure else ExitCode.DONE,
            reason="",
            # Not truncated to the limit of a termination message: a stage that does not fit only takes a short run.
            message=result.model_dump_json(exclude_defaults=True, exclude_none=True),
            disruption="",
            pod_reason="",
            pod_message="",
            started_at=time,
            finished_at=time,
        )
        state = JobState.FAILED if failure else JobState.COMPLETE
        return replace(job, state=state, suspended=False, attempts=1, active=0, finished_at=time, pods=(pod,))

    def _result(self, job: JobObservation) -> Result:
        """Result of a Job's stage."""
        if job.stage is Stage.PREPARE:
            return self._prepared()
        if job.stage is Stage.PUBLISH and (pin := self.inputs.parameters.publish.pin):
            return self._pinned(job.digest, pin)
        return self.new_results.setdefault(
            (job.stage, job.digest), self._read_result(job.stage, job.digest) or _result(job.stage, job.digest)
        )

    def _read_result(self, stage: Stage, digest: str) -> Result | None:
        return self.new_results.get((stage, digest)) or self.store.read_result(stage, digest)

    def _prepared(self) -> Result:
        """Result of prepare: the inputs, and which of the later stages are done."""
        parameters, resolved = self.inputs.parameters, self.inputs.resolved()
        digests = stage_digests(parameters, resolved, self.name)
        done = (self._read_result(stage, digest) for stage, digest in digests.items())
        return Result(
            stage=Stage.PREPARE,
            digest=prepared_digest(parameters, resolved),
            resolved=resolved,
            metrics=dict(self.figures),
            done=tuple(result for result in done if result is not None),
        )

    def _pinned(self, digest: str, pin: str) -> Result:
        try:
            version = self.store.find_version(pin)
        except LookupError as error:
            failure = Failure.brief(ExitCode.INVALID, ExitCode.INVALID.reason, str(error.args[0]))
            return Result(stage=Stage.PUBLISH, digest=digest, failure=failure)
        publication = Publication(published=True, version=version, pinned=True)
        result = Result(stage=Stage.PUBLISH, digest=digest, publication=publication)
        return self.new_results.setdefault((Stage.PUBLISH, digest), result)


def _result(stage: Stage, digest: str, publication: Publication | None = None, scores: Scores | None = None) -> Result:
    """A result with everything that the stage must report."""
    reports = PIPELINE[stage].reports
    return Result(
        stage=stage,
        digest=digest,
        scores=(scores or Scores()) if reports == "scores" else None,
        publication=(publication or Publication(published=True, version=digest)) if reports == "publication" else None,
    )

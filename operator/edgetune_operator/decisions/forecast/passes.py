"""The passes of a forecast: each Job that `plan` creates ends well at once, and the next pass observes that.

No rule of `plan` is written a second time: what a Job's stage would say comes from the status of earlier runs, or from
the store.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from edgetune_contract.digest import prepared_digest, stage_digests
from edgetune_contract.pipeline import PIPELINE
from edgetune_contract.request import Failure, Publication, Request, Result, Scores
from edgetune_contract.stages import ExitCode, Stage
from edgetune_contract.times import timestamp
from edgetune_operator.api import names
from edgetune_operator.api.objects import LoraFineTuneSpec, LoraFineTuneStatus, StageState
from edgetune_operator.api.profiles import Profile
from edgetune_operator.decisions.forecast.explanation import Explanation, StageForecast
from edgetune_operator.decisions.forecast.inputs import Inputs
from edgetune_operator.decisions.observe import JobObservation, JobState, PodObservation, Snapshot
from edgetune_operator.decisions.plan import CreateJob, DeleteJob, Outcome, Plan, plan
from edgetune_operator.decisions.status import project

# Each pass creates a Job, deletes some or is the last, and no stage runs more than twice.
_MOST_PASSES = 8 * len(Stage)
_VERSION_DIGITS = 64


@dataclass(frozen=True)
class Forecast:
    """What the next passes would do."""

    stages: tuple[StageForecast, ...]
    """In the order in which they would run; with a pin, publish comes first."""

    jobs: tuple[Request, ...]
    """Requests of the Jobs that would be created, in their order."""

    outcome: Outcome
    message: str
    """Why it is no other outcome."""


class StoreView(Protocol):
    """What is known of the store that the stages would find."""

    def read_result(self, stage: Stage, digest: str) -> Result | None:
        """Result of a stage that is done; None if it is not. A publication counts while the pointer names it."""
        ...

    def find_version(self, pin: str) -> str:
        """Digest of the published version that a pin names.

        Raises:
            LookupError: there is none that the pointer can name; the message says why, and which there are.
        """
        ...


class RecordedStore:
    """The store as the status recorded it: what the last run left there is taken to be there still."""

    def __init__(self, status: LoraFineTuneStatus, present_store: str) -> None:
        """`present_store`: the profile's store now; of another one than the last run's, nothing is known."""
        self._publication = status.publication
        self._done = (
            {row.name: row.digest for row in status.stages if row.state is StageState.SUCCEEDED}
            if status.store in ("", present_store)
            else {}
        )

    def read_result(self, stage: Stage, digest: str) -> Result | None:
        if self._done.get(stage) != digest:
            return None
        recorded = self._publication
        return _result(stage, digest, Publication.model_validate(recorded.model_dump()) if recorded else None)

    def find_version(self, pin: str) -> str:
        return pin.ljust(_VERSION_DIGITS, "0")


def forecast(
    spec: LoraFineTuneSpec,
    profile: Profile | None,
    snapshot: Snapshot,
    now: datetime,
    *,
    store: StoreView | None = None,
    before: LoraFineTuneSpec | None = None,
) -> Forecast:
    """What the next passes would do if every Job ended well, the inputs were as they are known, and the gates held.

    Args:
        spec: the spec as it is now.
        profile: the profile that it names; None if there is none of that name.
        snapshot: the object as the next pass would observe it.
        now: the one clock, with a time zone.
        store: what the stages would find; by default what the status recorded.
        before: the spec of the last run; None if there was none or it is not known.
    """
    present = profile.store.for_namespace(snapshot.namespace).display_uri if profile else snapshot.previous.store
    inputs = Inputs.expected(spec.parameters, before.parameters if before else None, snapshot.previous)
    stages = _Stages(snapshot.name, inputs, store or RecordedStore(snapshot.previous, present), now)
    created: list[Request] = []
    current, decided = snapshot, plan(spec, profile, snapshot, now)
    for _ in range(_MOST_PASSES):
        created += (action.request for action in decided.actions if isinstance(action, CreateJob))
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
        created={request.stage for request in created},
        last=decided.view,
        is_store_asked=store is not None,
    )
    return Forecast(explanation.stages(), tuple(created), decided.view.outcome, decided.view.message)


def _next_snapshot(snapshot: Snapshot, decided: Plan, stages: "_Stages") -> Snapshot | None:
    """What the pass after this one would observe; None if it would find nothing to do."""
    deleted = {action.name for action in decided.actions if isinstance(action, DeleteJob)}
    jobs: Sequence[JobObservation] = [job for job in snapshot.jobs if job.name not in deleted and not job.deleting]
    runs = decided.view.outcome in (Outcome.RUNNING, Outcome.BLOCKED)
    is_changing = any(job.state is JobState.LIVE for job in jobs) or len(jobs) < len(snapshot.jobs)
    if not decided.actions and not (runs and is_changing):
        return None
    if runs:
        jobs = [stages.end(job) if job.state is JobState.LIVE else job for job in jobs]
    created = [stages.run(action) for action in decided.actions if isinstance(action, CreateJob)]
    status = LoraFineTuneStatus.model_validate(project(decided.view, snapshot, stages.now))
    return replace(snapshot, previous=status, jobs=(*jobs, *created), progress=None, events=())


@dataclass(frozen=True)
class _Stages:
    """Stages that end at once, with the results that are known of them."""

    name: str
    inputs: Inputs
    store: StoreView
    now: datetime
    made: dict[tuple[Stage, str], Result] = field(default_factory=dict)
    """What stages have put into the store since the forecast began."""

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
            name=f"{job.name}-forecast",
            uid=f"{job.uid}-forecast",
            created_at=time,
            phase="Failed" if failure else "Succeeded",
            exit_code=failure.exit_code if failure else ExitCode.DONE,
            reason="",
            # Not cut to what a Pod's status takes: what does not fit costs a run of seconds.
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
        """What the stage of a Job would say."""
        if job.stage is Stage.PREPARE:
            return self._prepared()
        if job.stage is Stage.PUBLISH and (pin := self.inputs.parameters.publish.pin):
            return self._pinned(job.digest, pin)
        return self.made.setdefault(
            (job.stage, job.digest), self._read_result(job.stage, job.digest) or _result(job.stage, job.digest)
        )

    def _read_result(self, stage: Stage, digest: str) -> Result | None:
        return self.made.get((stage, digest)) or self.store.read_result(stage, digest)

    def _prepared(self) -> Result:
        """prepare finds the inputs, and reports which of the later stages are done."""
        parameters, resolved = self.inputs.parameters, self.inputs.resolved()
        digests = stage_digests(parameters, resolved, self.name)
        done = (self._read_result(stage, digest) for stage, digest in digests.items())
        return Result(
            stage=Stage.PREPARE,
            digest=prepared_digest(parameters, resolved),
            resolved=resolved,
            done=tuple(result for result in done if result is not None),
        )

    def _pinned(self, digest: str, pin: str) -> Result:
        try:
            version = self.store.find_version(pin)
        except LookupError as error:
            failure = Failure.brief(ExitCode.INVALID, ExitCode.INVALID.reason, str(error.args[0]))
            return Result(stage=Stage.PUBLISH, digest=digest, failure=failure)
        publication = Publication(published=True, version=version, pinned=True)
        return Result(stage=Stage.PUBLISH, digest=digest, publication=publication)


def _result(stage: Stage, digest: str, publication: Publication | None = None) -> Result:
    """A result with all that a stage has to report."""
    reports = PIPELINE[stage].reports
    return Result(
        stage=stage,
        digest=digest,
        scores=Scores() if reports == "scores" else None,
        publication=(publication or Publication(published=True, version=digest)) if reports == "publication" else None,
    )

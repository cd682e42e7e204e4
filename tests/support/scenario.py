"""One object, a cluster in memory, and a simulated Job controller: passes are the real `run_once`.

    scenario = Scenario(lora_fine_tune())
    scenario.reconcile()          # creates prepare's Job
    scenario.finish()             # its container succeeds
    scenario.reconcile()          # records the result, creates train's Job

Stages are simulated by their results, by digest, and by a store that has the digests that are done.
"""

import asyncio
import copy
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from edgetune_contract.digest import prepared_digest, sha256_of, stage_digests
from edgetune_contract.measurement import EdgeMeasurement
from edgetune_contract.request import Artifact, Publication, Request, Resolved, Result, Scores
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.api.objects import LoraFineTuneStatus, ProgressStatus, StageStatus
from edgetune_operator.api.profiles import Profile, ProfileStore
from edgetune_operator.decisions.state_machine import CreateJob, DeleteJob
from edgetune_operator.reconcile import Pass, run_once
from support.builders import JobBuilder, ObjectBuilder, PodBuilder

PROFILE = Profile(store=ProfileStore(uri="s3://artifacts/edgetune"))
START = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
TICK = timedelta(seconds=10)
_ARTIFACTS = {Stage.PREPARE: "prepared", Stage.TRAIN: "adapter", Stage.MERGE: "merged", Stage.QUANTIZE: "edge-bnb-int8"}
_QUANTIZED_SHARES = {Stage.TRAIN: 0.75, Stage.QUANTIZE: 0.5}


class MemoryCluster:
    """Implements `reconcile.Cluster` with plain dicts."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.progress: ProgressStatus | None = None
        self.now = START
        self.created: list[dict[str, Any]] = []
        self.status_writes = 0
        self._pods_started = 0
        self.deletes_slowly = False
        self.pods_ended = True
        self.finalizer_writes = 0
        self.gone = False
        self.namespace_terminating = False

    async def read_object(self, key: Key) -> dict[str, Any] | None:
        """The object; None for any other key."""
        metadata = self.document["metadata"]
        exists = key == Key(metadata["namespace"], metadata["name"]) and not self.gone
        return copy.deepcopy(self.document) if exists else None

    async def list_jobs(self, owner: Mapping[str, Any]) -> list[dict[str, Any]]:  # noqa: ARG002 - holds one owner's
        """Every Job."""
        return copy.deepcopy(list(self.jobs.values()))

    async def list_pods(self, owner: Mapping[str, Any]) -> list[dict[str, Any]]:  # noqa: ARG002 - holds one owner's
        """Every Pod."""
        return copy.deepcopy(list(self.pods.values()))

    async def list_warnings(self, owner: Mapping[str, Any], uid: str) -> list[dict[str, Any]]:  # noqa: ARG002 - as above
        """The test's warnings about the Job or Pod with this UID."""
        return [copy.deepcopy(event) for event in self.events.get(uid, []) if event["type"] == "Warning"]

    async def read_progress(self, owner: Mapping[str, Any]) -> ProgressStatus | None:  # noqa: ARG002 - as above
        """The value that the test set."""
        return self.progress

    async def create_job(self, job: Mapping[str, Any]) -> str:
        """Create the Job and start its Pod; does nothing if the name exists."""
        name = job["metadata"]["name"]
        if name in self.jobs:
            return ""
        created = copy.deepcopy(dict(job))
        created["metadata"] |= {"uid": f"uid-of-{name}", "creationTimestamp": self.timestamp()}
        self.jobs[name] = created
        self.created.append(created)
        self.start_pod(name)
        return f"uid-of-{name}"

    async def delete_job(self, owner: Mapping[str, Any], name: str) -> None:  # noqa: ARG002 - as above
        """Remove a Job and its Pods, or mark it as being deleted."""
        if name in self.jobs and self.deletes_slowly:
            self.jobs[name]["metadata"]["deletionTimestamp"] = self.timestamp()
        else:
            self.remove_job(name)

    async def is_namespace_terminating(self, namespace: str) -> bool:  # noqa: ARG002 - holds one namespace
        """The value that the test set."""
        return self.namespace_terminating

    async def have_stages_stopped(self, owner: Mapping[str, Any]) -> bool:  # noqa: ARG002 - as above
        """Whether only the clean-up's Job is left, and the test lets all Pods be ended."""
        names_left = {name for name in self.jobs if f"-{names.CLEAN_UP}-" not in name}
        return not names_left and self.pods_ended

    async def write_finalizers(self, owner: Mapping[str, Any], finalizers: Sequence[str]) -> Mapping[str, Any]:  # noqa: ARG002
        """Replace the finalizers; a deleted object without finalizers is gone."""
        metadata = self.document["metadata"]
        metadata["finalizers"] = list(finalizers)
        self.gone = bool(metadata.get("deletionTimestamp")) and not finalizers
        self.finalizer_writes += 1
        return copy.deepcopy(metadata)

    async def write_status(self, owner: Mapping[str, Any], status: Mapping[str, Any]) -> None:  # noqa: ARG002 - as above
        """Replace the status, which must be valid."""
        LoraFineTuneStatus.model_validate(status)
        self.document["status"] = copy.deepcopy(dict(status))
        self.status_writes += 1

    def timestamp(self) -> str:
        """The current time as the API server writes it."""
        return self.now.isoformat(timespec="seconds").replace("+00:00", "Z")

    def start_pod(self, job: str) -> None:
        """The Job controller starts an attempt."""
        self._pods_started += 1
        name = f"{job}-{self._pods_started}"
        self.pods[name] = PodBuilder(job, name, self.timestamp()).running().build()
        self.jobs[job].setdefault("status", {"startTime": self.timestamp()})["active"] = 1

    def pods_of(self, job: str) -> list[str]:
        """Names of a Job's Pods, oldest first."""
        return [name for name, pod in self.pods.items() if pod["metadata"]["ownerReferences"][0]["name"] == job]

    def remove_job(self, name: str) -> None:
        """The Job and its Pods are gone."""
        for pod in self.pods_of(name):
            del self.pods[pod]
        self.jobs.pop(name, None)

    def remove_ended_jobs(self) -> None:
        """The time to live of ended Jobs has expired."""
        for name in [name for name, job in self.jobs.items() if job["status"].get("conditions")]:
            self.remove_job(name)

    def live_jobs(self) -> list[str]:
        """Names of Jobs that have not ended and are not being deleted."""
        return [
            name
            for name, job in self.jobs.items()
            if not job["status"].get("conditions") and not job["metadata"].get("deletionTimestamp")
        ]


class Scenario:
    """One object, and everything that happens to it."""

    def __init__(self, builder: ObjectBuilder, profile: Profile | None = PROFILE) -> None:
        self.cluster = MemoryCluster(builder.build())
        self.profiles = {} if profile is None else {"default": profile}
        self.manifests: dict[str, Result] = {}
        self.store = PROFILE.store.uri
        self.pointer = ""
        self.data = "first version of the data"
        self.gates_pass = True
        self.measurement: EdgeMeasurement | None = None
        self.reports_later_stages = True

    def reconcile(self) -> Pass:
        """One pass, ten seconds after the previous one."""
        self.cluster.now += TICK
        metadata = self.cluster.document["metadata"]
        key = Key(metadata["namespace"], metadata["name"])
        done = asyncio.run(run_once(self.cluster, key, self.profiles, self.cluster.now))
        if not isinstance(done, Pass):
            raise AssertionError(f"the object is deleted or gone: {done}")
        return done

    def let_pass(self, time: timedelta) -> None:
        """Let time pass."""
        self.cluster.now += time

    def change(self, builder: ObjectBuilder) -> None:
        """A user edits the object; the status is kept."""
        status = self.cluster.document.get("status")
        self.cluster.document = (builder if status is None else builder.with_status(status)).build()

    @property
    def builder(self) -> ObjectBuilder:
        """The current object, to be edited."""
        return ObjectBuilder(self.cluster.document)

    @property
    def live_job(self) -> str:
        """Name of the only live Job."""
        (name,) = self.cluster.live_jobs()
        return name

    @property
    def request(self) -> Request:
        """Request of the live Job."""
        return request_of(self.cluster.jobs[self.live_job])

    @property
    def status(self) -> LoraFineTuneStatus:
        """Status of the object."""
        return LoraFineTuneStatus.model_validate(self.cluster.document.get("status", {}))

    def row(self, stage: Stage) -> StageStatus:
        """A stage's row in the status."""
        return next(row for row in self.status.stages if row.name is stage)

    def condition(self, condition_type: str) -> tuple[str, str, str] | None:
        """Status, reason and message of a condition; None if it is absent."""
        found = next((each for each in self.status.conditions if each.type == condition_type), None)
        return (found.status, found.reason, found.message) if found is not None else None

    def finish(self, result: Result | None = None) -> None:
        """The live Job's container succeeds."""
        result = result or self.simulated_result(self.request)
        self.end_pod(lambda pod: pod.succeeded(result))
        self.end_job(lambda job: job.complete(self.cluster.timestamp()))

    def finish_all(self) -> Pass:
        """Every stage succeeds, one after another; returns the last pass."""
        done = self.reconcile()
        while self.cluster.live_jobs():
            self.finish()
            done = self.reconcile()
        return done

    def advance_to(self, stage: Stage) -> None:
        """Every stage before `stage` succeeds; its Job is live afterwards."""
        self.reconcile()
        while self.request.stage is not stage:
            self.finish()
            self.reconcile()

    def fail(self, exit_code: int, message: str, reason: str = "BackoffLimitExceeded", attempts: int = 1) -> None:
        """The live Job's container fails, and the Job with it."""
        request = self.request
        self.end_pod(lambda pod: pod.failed(request.stage, request.digest, exit_code, message))
        self.end_job(lambda job: job.failed(reason, attempts=attempts, at=self.cluster.timestamp()))
        if attempts > 1:
            # The Pods of the other attempts are gone: their results are not awaited after a while.
            self.let_pass(timedelta(minutes=1))

    def end_pod(self, ending: Any) -> None:
        """Change the newest Pod of the live Job with a method of PodBuilder."""
        job = self.live_job
        name = self.cluster.pods_of(job)[-1]
        created = self.cluster.pods[name]["metadata"]["creationTimestamp"]
        self.cluster.pods[name] = ending(PodBuilder(job, name, created, now=self.cluster.timestamp())).build()

    def end_job(self, ending: Any, name: str = "") -> None:
        """Change the live Job, or the one with this name, with a method of JobBuilder."""
        job = self.cluster.jobs[name or self.live_job]
        request = request_of(job)
        builder = JobBuilder(request.stage, request.digest, created=job["metadata"]["creationTimestamp"])
        job["status"] = ending(builder).status

    def post_event(self, uid: str, event_type: str, reason: str, message: str) -> None:
        """Kubernetes posts an Event of the Job or Pod with this UID, a second after the last one."""
        events = self.cluster.events.setdefault(uid, [])
        time = (self.cluster.now + timedelta(seconds=len(events))).isoformat().replace("+00:00", "Z")
        events.append({"metadata": {}, "type": event_type, "reason": reason, "message": message, "lastTimestamp": time})

    def evict(self) -> None:
        """The live Job's Pod is evicted and gone; the Job controller starts another."""
        job = self.live_job
        del self.cluster.pods[self.cluster.pods_of(job)[-1]]
        self.cluster.start_pod(job)

    def simulated_result(self, request: Request) -> Result:
        """Result of a stage; from the store if its manifest is there."""
        if request.stage is Stage.PREPARE:
            return self._prepared(request)
        if request.digest in self.manifests:
            publication = self.manifests[request.digest].publication
            if publication is not None and publication.published:
                self.pointer = publication.version
            return self.manifests[request.digest].model_copy(update={"cached": True})
        result = self._new_result(request.stage, request.digest)
        if request.stage is Stage.PUBLISH:
            result = result.model_copy(update={"publication": self._publication(request)})
        self.manifests[request.digest] = result
        if result.publication is not None and result.publication.published:
            self.pointer = result.publication.version
        return result

    def is_done(self, digest: str) -> bool:
        """Whether the store has the manifest; publish is done only while the pointer names its version."""
        publication = self.manifests[digest].publication if digest in self.manifests else None
        return digest in self.manifests and (
            publication is None or not publication.published or self.pointer == publication.version
        )

    def _prepared(self, request: Request) -> Result:
        resolved = Resolved(base=sha256_of(request.parameters.base_model.uri), train=sha256_of(self.data))
        digests = stage_digests(request.parameters, resolved, request.name)
        done = tuple(self.manifests[digest] for digest in digests.values() if self.is_done(digest))
        result = self._new_result(Stage.PREPARE, prepared_digest(request.parameters, resolved))
        return result.model_copy(
            update={
                "resolved": resolved,
                "metrics": {"baseBytes": 1000.0, "rows": 600.0},
                "warnings": ("212 training examples: style adaptation usually needs 500 to 1,000",),
                "done": done if self.reports_later_stages else (),
            }
        )

    def _new_result(self, stage: Stage, digest: str) -> Result:
        result = Result(stage=stage, digest=digest, seconds=5.0)
        if stage in _ARTIFACTS:
            result = result.model_copy(update={"artifacts": (self.artifact(stage, digest),)})
        if stage in _QUANTIZED_SHARES:
            result = result.model_copy(update={"metrics": {"quantizedShare": _QUANTIZED_SHARES[stage]}})
        if stage is Stage.EVALUATE:
            scores = Scores(base=0.05, tuned=0.95, merged=0.95, edge=0.94, examples=64)
            result = result.model_copy(update={"scores": scores, "edge": self.measurement})
        return result

    def artifact(self, stage: Stage, digest: str) -> Artifact:
        """A stage's artifact in the current store."""
        uri = f"{self.store}/team-a/stages/{stage}/{digest}/{_ARTIFACTS[stage]}"
        return Artifact(name=_ARTIFACTS[stage], uri=uri, bytes=500, sha256=sha256_of(uri))

    def _publication(self, request: Request) -> Publication:
        digest = request.digest
        pointer = "s3://artifacts/edgetune/team-a/models/sensor-faults/latest.json"
        if pin := request.parameters.publish.pin:
            version = next(known for known in self.manifests if known.startswith(pin))
            return Publication(published=True, version=version, pointer=pointer, pinned=True)
        if self.gates_pass:
            return Publication(published=True, version=digest, pointer=pointer)
        refusal = "maxDrop: the edge model is 0.03 below the tuned model, at most 0.02 is allowed"
        return Publication(published=False, version=digest, refusals=(refusal,))


def request_of(job: Mapping[str, Any]) -> Request:
    """The request of a Job."""
    environment = {each["name"]: each["value"] for each in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    return Request.decode(environment["EDGETUNE_REQUEST"])


def created(done: Pass) -> list[Stage]:
    """Stages whose Jobs a pass created."""
    return [action.request.stage for action in done.plan.actions if isinstance(action, CreateJob)]


def deleted(done: Pass) -> list[tuple[str, str]]:
    """Names and reasons of the Jobs that a pass deleted."""
    return [(action.name, action.reason) for action in done.plan.actions if isinstance(action, DeleteJob)]


def run_again(scenario: Scenario) -> list[Stage]:
    """Stages whose Jobs are created until the end of the run."""
    ran = created(scenario.reconcile())
    while scenario.cluster.live_jobs():
        scenario.finish()
        ran += created(scenario.reconcile())
    return ran

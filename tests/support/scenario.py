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
from edgetune_contract.request import Artifact, LiveVersion, Publication, Request, Resolved, Result, Scores
from edgetune_contract.results.candidates import Candidate, PossibleFormat, formats_to_write
from edgetune_contract.results.measurement import EdgeMeasurement
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage
from edgetune_contract.values.quantities import parse_bytes
from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.api.profiles.profile import Profile, ProfileStore
from edgetune_operator.api.reasons import Reason
from edgetune_operator.api.status.object_status import LoraFineTuneStatus
from edgetune_operator.api.status.stage_status import ProgressStatus, StageStatus
from edgetune_operator.decisions.observe import nodes_of
from edgetune_operator.decisions.plans import CreateJob, DeleteJob
from edgetune_operator.reconcile import JobRefused, Pass, run_once
from support.builders import JobBuilder, ObjectBuilder, PodBuilder

PROFILE = Profile(store=ProfileStore(uri="s3://artifacts/edgetune"))
START = datetime(2026, 11, 24, 8, 0, tzinfo=UTC)
TICK = timedelta(seconds=10)
_ARTIFACTS = {Stage.PREPARE: "prepared", Stage.TRAIN: "adapter", Stage.MERGE: "merged", Stage.QUANTIZE: "edge-bnb-int8"}
POSSIBLE = (
    PossibleFormat(format=EdgeFormat.BITSANDBYTES_INT8, least_bytes=600),
    PossibleFormat(format=EdgeFormat.GGUF_Q8_0, least_bytes=500),
)
"""What prepare finds with formats Auto."""

_QUANTIZED_SHARES = {Stage.TRAIN: 0.75, Stage.QUANTIZE: 0.5}


class MemoryCluster:
    """Implements `reconcile.Cluster` with plain dicts."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self.workloads: dict[str, dict[str, Any]] = {}
        self.queue: dict[str, Any] | None = None
        self.services: dict[str, dict[str, Any]] = {}
        self.changed: list[str] = []
        self.refusal = ""
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
        self.namespace_labels: dict[str, str] = {}

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

    async def list_workloads(self, owner: Mapping[str, Any], jobs: Sequence[str]) -> list[dict[str, Any]]:  # noqa: ARG002
        """The test's Workloads of the Jobs."""
        return [self.workloads[uid] for uid in jobs if uid in self.workloads]

    async def read_queue(self, namespace: str, queue: str, priority: str) -> dict[str, Any] | None:  # noqa: ARG002
        """The queue that the test set."""
        return self.queue

    async def change_job(self, owner: Mapping[str, Any], name: str, patch: Sequence[Mapping[str, Any]]) -> None:  # noqa: ARG002
        """Apply a JSON patch to a Job, unless the test refuses it."""
        if self.refusal:
            raise JobRefused(Reason.JOB_REFUSED, self.refusal)
        self.changed.append(name)
        for change in patch:
            *parents, last = (part.replace("~1", "/").replace("~0", "~") for part in change["path"].split("/")[1:])
            node: Any = self.jobs[name]
            for part in parents:
                node = node[part]
            if change["op"] == "test":
                assert node[last] == change["value"]
            else:
                node[last] = change["value"]

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

    async def has_service(self, owner: Mapping[str, Any], name: str, job: str) -> bool:  # noqa: ARG002 - as above
        """Whether the Job has a Service of this name."""
        owners = self.services[name]["metadata"]["ownerReferences"] if name in self.services else []
        return job in [each["uid"] for each in owners]

    async def create_service(self, service: Mapping[str, Any]) -> None:
        """Create the Service, unless the test refuses it."""
        if self.refusal:
            raise JobRefused(Reason.SERVICE_REFUSED, self.refusal)
        self.services.setdefault(service["metadata"]["name"], copy.deepcopy(dict(service)))

    async def delete_job(self, owner: Mapping[str, Any], name: str) -> None:  # noqa: ARG002 - as above
        """Remove a Job and its Pods, or mark it as being deleted."""
        if name in self.jobs and self.deletes_slowly:
            self.jobs[name]["metadata"]["deletionTimestamp"] = self.timestamp()
        else:
            self.remove_job(name)

    async def read_labels(self, namespace: str) -> Mapping[str, str]:  # noqa: ARG002 - holds one namespace
        """The labels that the test set."""
        return self.namespace_labels

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
        """The Job controller starts an attempt: of an Indexed Job, the Pods of all nodes."""
        nodes = nodes_of(self.jobs[job])
        for node in range(nodes):
            self.start_node(job, None if nodes == 1 else node)
        self.jobs[job].setdefault("status", {"startTime": self.timestamp()})["active"] = nodes

    def start_node(self, job: str, node: int | None) -> str:
        """The Job controller starts the Pod of one node; returns its name."""
        self._pods_started += 1
        name = f"{job}-{self._pods_started}"
        self.pods[name] = PodBuilder(job, name, self.timestamp(), node=node).running().build()
        return name

    def change_pod(self, name: str, change: Any) -> None:
        """Change a Pod with a method of PodBuilder."""
        metadata = self.pods[name]["metadata"]
        job, index = metadata["ownerReferences"][0]["name"], metadata["labels"].get(names.INDEX_LABEL)
        node = None if index is None else int(index)
        builder = PodBuilder(job, name, metadata["creationTimestamp"], now=self.timestamp(), node=node)
        self.pods[name] = change(builder).build()

    def has_ended(self, pod: str) -> bool:
        """Whether a Pod has ended."""
        return self.pods[pod]["status"]["phase"] in ("Succeeded", "Failed")

    def newest_pods(self, job: str) -> list[str]:
        """Names of the Pods of a Job's newest attempt: one for each node."""
        return self.pods_of(job)[-nodes_of(self.jobs[job]) :]

    def pods_of(self, job: str) -> list[str]:
        """Names of a Job's Pods, oldest first."""
        return [name for name, pod in self.pods.items() if pod["metadata"]["ownerReferences"][0]["name"] == job]

    def remove_job(self, name: str) -> None:
        """The Job and its Pods are gone."""
        for pod in self.pods_of(name):
            del self.pods[pod]
        self.jobs.pop(name, None)
        self.services.pop(names.service_name(name), None)

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
        self.pointer_since = self.cluster.timestamp()
        self.data = "first version of the data"
        self.gates_pass = True
        self.measurement: EdgeMeasurement | None = None
        self.candidates: tuple[Candidate, ...] = ()
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

    def recreate(self) -> None:
        """The object is pruned and applied again: its Jobs and its status are gone, the store is kept."""
        self.cluster.jobs.clear()
        self.cluster.pods.clear()
        self.cluster.progress = None
        self.cluster.document.pop("status", None)
        self.cluster.document["metadata"]["generation"] = 1

    @property
    def builder(self) -> ObjectBuilder:
        """The current object, to be edited."""
        return ObjectBuilder(self.cluster.document)

    @property
    def live_job(self) -> str:
        """Name of the live Job; of several, the only one that no queue holds."""
        live = self.cluster.live_jobs()
        (name,) = [name for name in live if not self.cluster.jobs[name]["spec"].get("suspend")] or live
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

    @property
    def held_up(self) -> tuple[str, str, str] | None:
        """What holds the object up: Stalled or, before its patience is over, Reconciling; None if nothing does."""
        stalled = self.condition("Stalled")
        return self.condition("Reconciling") if stalled is None and self.status.waiting_since is not None else stalled

    def finish(self, result: Result | None = None, name: str = "") -> None:
        """The container of the live Job, or of the one with this name, succeeds."""
        result = result or self.simulated_result(request_of(self.cluster.jobs[name or self.live_job]))
        self.end_pod(lambda pod: pod.succeeded(result), name)
        self.end_job(lambda job: job.complete(self.cluster.timestamp()), name)

    def finish_all(self) -> Pass:
        """Every stage succeeds, one after another; returns the last pass."""
        done = self.reconcile()
        while done.plan.actions or self.cluster.live_jobs():
            if self.cluster.live_jobs():
                self.finish()
            done = self.reconcile()
        return done

    def advance_to(self, stage: Stage) -> None:
        """Every stage before `stage` succeeds; its Job is live afterwards."""
        done = self.reconcile()
        while not self.cluster.live_jobs() or self.request.stage is not stage:
            if not self.cluster.live_jobs() and not done.plan.actions:
                raise AssertionError(f"{stage} does not run: {done.plan.view.message}")
            if self.cluster.live_jobs():
                self.finish()
            done = self.reconcile()

    def fail(self, exit_code: int, message: str, reason: str = "BackoffLimitExceeded", attempts: int = 1) -> None:
        """The live Job's container fails, and the Job with it."""
        request = self.request
        self.end_pod(lambda pod: pod.failed(request.stage, request.digest, exit_code, message))
        self.end_job(lambda job: job.failed(reason, attempts=attempts, at=self.cluster.timestamp()))
        if attempts > 1:
            # The Pods of the other attempts are gone: their results are not awaited after a while.
            self.let_pass(timedelta(minutes=1))

    def end_pod(self, ending: Any, name: str = "") -> None:
        """Change the newest Pod of the live Job, or of the one with this name, with a method of PodBuilder; of a Job on
        several nodes, those Pods of the newest attempt that have not ended."""
        job = name or self.live_job
        newest = self.cluster.newest_pods(job)
        for pod in [each for each in newest if len(newest) == 1 or not self.cluster.has_ended(each)]:
            self.cluster.change_pod(pod, ending)

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
        for pod in self.cluster.newest_pods(job):
            del self.cluster.pods[pod]
        self.cluster.start_pod(job)

    def simulated_result(self, request: Request) -> Result:
        """Result of a stage; from the store if its manifest is there."""
        if request.stage is Stage.PREPARE:
            return self._prepared(request)
        is_cached = request.digest in self.manifests
        if not is_cached:
            result = self._new_result(request.stage, request.digest)
            if request.stage is Stage.PUBLISH:
                result = result.model_copy(update={"publication": self._publication(request)})
            self.manifests[request.digest] = result
        result = self.manifests[request.digest]
        if result.publication is not None and result.publication.published:
            self.move_pointer(result.publication.version)
        live = self.live if request.stage is Stage.PUBLISH else None
        return result.model_copy(update={"cached": is_cached, "live": live})

    def move_pointer(self, version: str) -> None:
        """The pointer names a version from now on; an empty one removes the pointer."""
        self.pointer_since = self.pointer_since if version == self.pointer else self.cluster.timestamp()
        self.pointer = version

    @property
    def live(self) -> LiveVersion | None:
        """What the pointer names, as stages read it."""
        scores = Scores(base=0.05, tuned=0.95, merged=0.95, edge=0.94, examples=64)
        return LiveVersion(version=self.pointer, since=self.pointer_since, scores=scores) if self.pointer else None

    def is_done(self, digest: str) -> bool:
        """Whether the store has the manifest; publish is done only while the pointer names its version."""
        publication = self.manifests[digest].publication if digest in self.manifests else None
        return digest in self.manifests and (
            publication is None or not publication.published or self.pointer == publication.version
        )

    def _prepared(self, request: Request) -> Result:
        resolved = self._with_formats(
            request, Resolved(base=sha256_of(request.parameters.base_model.uri), train=sha256_of(self.data))
        )
        digests = stage_digests(request.parameters, resolved, request.name)
        done = tuple(self.manifests[digest] for digest in digests.values() if self.is_done(digest))
        result = self._new_result(Stage.PREPARE, prepared_digest(request.parameters, resolved))
        return result.model_copy(
            update={
                "live": self.live,
                "resolved": resolved,
                "metrics": {"baseBytes": 1000.0, "rows": 600.0},
                "warnings": ("212 training examples: style adaptation usually needs 500 to 1,000",),
                "done": done if self.reports_later_stages else (),
            }
        )

    def _with_formats(self, request: Request, resolved: Resolved) -> Resolved:
        """With formats Auto, the formats that quantize writes."""
        if not request.parameters.quantization.is_auto:
            return resolved

        def found(formats: tuple[EdgeFormat, ...]) -> Resolved:
            return resolved.model_copy(update={"possible": POSSIBLE, "formats": formats})

        def is_written(formats: tuple[EdgeFormat, ...]) -> bool:
            return stage_digests(request.parameters, found(formats), request.name)[Stage.QUANTIZE] in self.manifests

        limit = request.parameters.evaluation.gates.max_edge_bytes
        return found(formats_to_write(POSSIBLE, None if limit is None else parse_bytes(limit), is_written))

    def _new_result(self, stage: Stage, digest: str) -> Result:
        result = Result(stage=stage, digest=digest, seconds=5.0)
        if stage in _ARTIFACTS:
            result = result.model_copy(update={"artifacts": (self.artifact(stage, digest),)})
        if stage in _QUANTIZED_SHARES:
            result = result.model_copy(update={"metrics": {"quantizedShare": _QUANTIZED_SHARES[stage]}})
        if stage is Stage.EVALUATE:
            scores = Scores(base=0.05, tuned=0.95, merged=0.95, edge=0.94, examples=64)
            found = {"scores": scores, "edge": self.measurement, "candidates": self.candidates}
            result = result.model_copy(update=found)
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
    ran: list[Stage] = []
    while (done := scenario.reconcile()).plan.actions or scenario.cluster.live_jobs():
        ran += created(done)
        if scenario.cluster.live_jobs():
            scenario.finish()
    return ran

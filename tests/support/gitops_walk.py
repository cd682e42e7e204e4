"""Random walks of an object through everything that happens to it, with what each state means to people.

The meaning comes from the simulated world: its Jobs and Pods, the pointer in the store, what users changed since the
last pass. It reads no status.
"""

import asyncio
import copy
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from edgetune_contract.digest import stage_digests
from edgetune_contract.request import Resolved
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.api.profiles.queue import Queue
from edgetune_operator.api.spec_check import parse_spec
from edgetune_operator.reconcile import JobRefused, report_failure, run_once
from support.builders import lora_fine_tune
from support.scenario import PROFILE, Scenario

Document = dict[str, Any]

EDITS: tuple[tuple[str, Any], ...] = (
    ("lora.rank", 8),
    ("lora.rank", 16),
    ("merge.keep", False),
    ("evaluation.gates.minScore", 0.5),
    ("evaluation.maxExamples", 10),
    ("retryLimit", 5),
)
FAILURES = tuple(code for code in ExitCode if code is not ExitCode.DONE)
MAY_PASS = ("ImagePullBackOff", "CreateContainerConfigError", "Unschedulable")
LASTING = ("InvalidImageName",)
PATIENCE = timedelta(minutes=5)
"""Time that what may pass by itself has before somebody must act."""
LONG_TOKEN = 300
_TIMES = ("lastTransitionTime", "startedAt", "finishedAt", "seconds", "since", "deletionTimestamp")


class Meaning(Enum):
    """What an object's state means: verdicts of kstatus, of Argo CD, and of Flux with `healthCheckExprs`."""

    GOING = ("InProgress", "Progressing", "InProgress")
    """Something runs, waits in a queue or for what may pass by itself, or is about to run."""

    PUBLISHED = ("Current", "Healthy", "Current")
    """The pointer names the version that the spec demands, and nothing is left to do."""

    NEEDS_SOMEBODY = ("Failed", "Degraded", "Failed")
    """It failed, was refused, or waits until somebody fixes something."""

    SUSPENDED = ("InProgress", "Suspended", "InProgress")
    """Work is left, which the spec holds back."""

    DELETED = ("Terminating", "Progressing", "InProgress")
    """Its deletion has not ended."""


@dataclass(frozen=True)
class Snapshot:
    """An object as the API server would return it, and what it means."""

    document: Document
    meaning: Meaning
    retry_waits: bool
    """Whether an annotation requests a retry of an ended run, and no pass has seen it. kstatus reads no annotations."""

    why: str
    """The events that led to it."""

    @property
    def identity(self) -> str:
        """The document without times, to count distinct ones."""
        return json.dumps(_without_times(self.document), sort_keys=True)


def _without_times(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in _TIMES}
    return value


class Walk:
    """One object and everybody who changes it, by a seeded random generator."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.scenario = Scenario(lora_fine_tune())
        self._events: list[str] = [f"seed {seed}"]
        self._resolved: Resolved | None = None
        self._fate = ""
        self._tokens = 0
        self._is_refused = False
        self._seen: Document = {}
        self._meaning = Meaning.GOING
        self._has_ended = False
        self._is_edited = False
        self._held_up_since: datetime | None = None

    def snapshots(self, steps: int) -> Iterator[Snapshot]:
        """The object after each event, and after each pass."""
        yield self._snapshot()
        for _ in range(steps):
            events = [*self._events_of_users(), *self._events_of_the_cluster()]
            weights = [weight for weight, _ in events]
            (_, event) = self._random.choices(events, weights)[0]
            event()
            self._events = [*self._events[-12:], event.__name__]
            yield self._snapshot()
            for _ in range(self._random.choice((0, 1, 1, 2))):
                self._a_pass()
                yield self._snapshot()
        yield from self._deletion()

    def _snapshot(self) -> Snapshot:
        document = copy.deepcopy(self.scenario.cluster.document)
        document.setdefault("status", {"observedGeneration": -1})
        metadata = document["metadata"]
        token = _token(document)
        is_new = token not in ("", _token(self._seen)) and len(token) < LONG_TOKEN
        if "deletionTimestamp" in metadata:
            meaning = Meaning.DELETED
        elif metadata["generation"] != _generation(self._seen):
            meaning = Meaning.GOING
        else:
            meaning = self._meaning
        retry_waits = is_new and self._has_ended and meaning is self._meaning
        return Snapshot(document, meaning, retry_waits, ", ".join(self._events))

    # What it means.

    def _judge(self) -> Meaning:
        """What the object's state means right after a pass."""
        self._has_ended = False
        held_up_since, self._held_up_since = self._held_up_since, None
        if not self._is_legal():
            return Meaning.NEEDS_SOMEBODY
        if not self.scenario.profiles or (self._runs() and self._waits_for(MAY_PASS)):
            now = self.scenario.cluster.now
            self._held_up_since = since = now if held_up_since is None or self._is_edited else held_up_since
            return Meaning.NEEDS_SOMEBODY if now - since >= PATIENCE else Meaning.GOING
        if self._is_refused:
            return Meaning.GOING  # by a quota, which is waited for like a turn in a queue
        if self._runs():
            is_stuck = self._waits_for(LASTING) and self._keeps_its_job()
            return Meaning.NEEDS_SOMEBODY if is_stuck else Meaning.GOING
        if self._would_act(self.scenario):
            return Meaning.GOING
        spec = self.scenario.cluster.document["spec"]
        # A suspended object that is pinned has nothing else to do.
        is_pinned = bool(spec.get("suspend") and spec.get("publish", {}).get("pin")) and self._is_live()
        if spec.get("suspend") and not is_pinned:
            resumed = copy.deepcopy(self.scenario)
            resumed.cluster.document["spec"]["suspend"] = False
            if self._would_act(resumed):
                return Meaning.SUSPENDED
        self._has_ended = True
        is_done = is_pinned or (self._fate == "done" and self._is_live())
        return Meaning.PUBLISHED if is_done else Meaning.NEEDS_SOMEBODY

    def _is_usable(self) -> bool:
        return bool(self.scenario.profiles) and self._is_legal()

    def _is_legal(self) -> bool:
        return bool(self.scenario.cluster.document["spec"].get("lora", {}).get("rank") != 0)

    def _runs(self) -> bool:
        """Whether a Job has an attempt that has not succeeded."""
        cluster = self.scenario.cluster
        newest = [cluster.pods_of(name)[-1:] for name in cluster.live_jobs()]
        return any(not pod or cluster.pods[pod[0]]["status"]["phase"] != "Succeeded" for pod in newest)

    def _waits_for(self, reasons: tuple[str, ...]) -> bool:
        """Whether the Pod of the newest live Job waits for one of these reasons."""
        cluster = self.scenario.cluster
        pods = [pod for job in cluster.live_jobs()[-1:] for pod in cluster.pods_of(job)]
        statuses = [cluster.pods[pod]["status"] for pod in pods]
        states = [each["state"].get("waiting", {}) for status in statuses for each in status["containerStatuses"]]
        conditions = [each for status in statuses for each in status["conditions"]]
        return any(each.get("reason") in reasons for each in (*states, *conditions))

    def _keeps_its_job(self) -> bool:
        """Whether the next pass leaves the live Job, and does not replace it."""
        future, was_refused = copy.deepcopy(self.scenario), self._is_refused
        future.reconcile()
        self._is_refused = was_refused
        return future.cluster.live_jobs() == self.scenario.cluster.live_jobs()

    def _would_act(self, scenario: Scenario) -> bool:
        """Whether further passes would run something."""
        future = copy.deepcopy(scenario)
        was_refused = self._is_refused
        has_acted = True
        while has_acted:
            _catch_up(future)
            has_acted = bool(future.reconcile().plan.actions)
        acts = bool(future.cluster.live_jobs()) or self._is_refused
        self._is_refused = was_refused
        return acts

    def _is_live(self) -> bool:
        """Whether the pointer names the version that the spec demands."""
        spec = parse_spec(self.scenario.cluster.document["spec"])
        if pin := spec.parameters.publish.pin:
            return self.scenario.pointer.startswith(pin)
        assert self._resolved is not None
        digest = stage_digests(spec.parameters, self._resolved, "sensor-faults")[Stage.PUBLISH]
        return self.scenario.pointer == digest

    # What happens.

    def _a_pass(self) -> None:
        self._is_refused = False
        before, self._seen = self._seen, copy.deepcopy(self.scenario.cluster.document)
        self._is_edited = _generation(before) != _generation(self._seen)
        self.scenario.reconcile()
        self._meaning = self._judge()

    def _events_of_users(self) -> Iterator[tuple[int, Callable[[], None]]]:
        yield 3, self._edit
        yield 2, self._request_a_retry
        yield 1, self._request_a_retry_in_the_spec
        yield 1, self._request_a_retry_with_a_long_token
        yield 1, self._remove_the_annotation
        yield 8 if self.scenario.cluster.document["spec"].get("suspend") else 1, self._suspend_or_resume
        yield 1 if self._is_legal() else 12, self._break_or_fix_the_spec
        yield 1 if self.scenario.profiles else 12, self._remove_or_restore_the_profile
        yield 1, self._queue_or_not
        yield 12 if "create_job" in vars(self.scenario.cluster) else 1, self._refuse_or_accept_jobs
        yield 1, self._change_the_data
        yield 1, self._change_what_the_gates_say
        yield 1, self._fail_a_pass
        if self.scenario.pointer:
            yield 1, self._pin_or_unpin

    def _events_of_the_cluster(self) -> Iterator[tuple[int, Callable[[], None]]]:
        cluster = self.scenario.cluster
        yield 1, cluster.remove_ended_jobs
        yield 1, self._minutes_pass
        yield 1, self._deletions_take_time_or_end
        live = cluster.live_jobs()
        if len(live) != 1:
            return
        phase = _phase(self.scenario, live[0])
        if phase == "Running":
            yield 40, self._finish
            yield 2, self._fail
            yield 1, self._lose_the_result
            yield 2, self.scenario.evict
            yield 1, self._succeed_before_the_job
            yield 1, self._delete_the_job
            yield 2, self._hold_up_the_pod
        elif phase == "Pending":
            yield 12, self._start_the_pod
        elif phase == "Succeeded":
            yield 12, self._end_the_job

    def _change(self, path: str, value: Any) -> None:
        self.scenario.change(self.scenario.builder.edited(path, value))

    def _edit(self) -> None:
        self._change(*self._random.choice(EDITS))

    def _request_a_retry(self) -> None:
        self._tokens += 1
        self.scenario.change(self.scenario.builder.with_retry_requested(f"token-{self._tokens}"))

    def _request_a_retry_in_the_spec(self) -> None:
        self._tokens += 1
        self._change("retry", f"token-{self._tokens}")

    def _request_a_retry_with_a_long_token(self) -> None:
        self._tokens += 1
        self.scenario.change(self.scenario.builder.with_retry_requested(f"{self._tokens}-".ljust(LONG_TOKEN, "x")))

    def _remove_the_annotation(self) -> None:
        self.scenario.change(self.scenario.builder.with_metadata(annotations={}))

    def _suspend_or_resume(self) -> None:
        self._change("suspend", not self.scenario.cluster.document["spec"].get("suspend", False))

    def _break_or_fix_the_spec(self) -> None:
        self._change("lora.rank", 0 if self._is_legal() else 16)

    def _remove_or_restore_the_profile(self) -> None:
        self.scenario.profiles = {} if self.scenario.profiles else {"default": PROFILE}

    def _queue_or_not(self) -> None:
        queue = self._random.choice((None, Queue(name="gpu")))
        self.scenario.profiles = {"default": PROFILE.model_copy(update={"queue": queue})}

    def _refuse_or_accept_jobs(self) -> None:
        cluster = self.scenario.cluster
        if "create_job" in vars(cluster):
            del cluster.create_job
            return

        # A closure, because copies of the scenario must set the same flag.
        async def refuse(job: Mapping[str, Any]) -> str:
            self._is_refused = True
            raise JobRefused("QuotaExceeded", f"exceeded quota: {job['metadata']['name']}")

        cluster.create_job = refuse  # type: ignore[method-assign] # a quota, until the same event lifts it

    def _change_the_data(self) -> None:
        self.scenario.data = f"version {self._random.randrange(3)} of the data"

    def _change_what_the_gates_say(self) -> None:
        self.scenario.gates_pass = not self.scenario.gates_pass

    def _fail_a_pass(self) -> None:
        """Passes fail, and the operator says so; the next one succeeds."""
        metadata = self.scenario.cluster.document["metadata"]
        self._seen = copy.deepcopy(self.scenario.cluster.document)
        self._meaning, self._has_ended, self._held_up_since = Meaning.NEEDS_SOMEBODY, False, None
        key = Key(metadata["namespace"], metadata["name"])
        asyncio.run(report_failure(self.scenario.cluster, key, "the API server refuses", self.scenario.cluster.now))

    def _pin_or_unpin(self) -> None:
        is_pinned = self.scenario.cluster.document["spec"].get("publish", {}).get("pin")
        self._change("publish.pin", "" if is_pinned else self.scenario.pointer[:12])

    def _minutes_pass(self) -> None:
        self.scenario.let_pass(timedelta(minutes=6))

    def _deletions_take_time_or_end(self) -> None:
        self.scenario.cluster.deletes_slowly = not self.scenario.cluster.deletes_slowly
        if not self.scenario.cluster.deletes_slowly:
            _finish_deletions(self.scenario)

    def _finish(self) -> None:
        result = self.scenario.simulated_result(self.scenario.request)
        self._resolved, self._fate = result.resolved or self._resolved, "done"
        self.scenario.finish(result)

    def _succeed_before_the_job(self) -> None:
        result = self.scenario.simulated_result(self.scenario.request)
        self._resolved, self._fate = result.resolved or self._resolved, "done"
        self.scenario.end_pod(lambda pod: pod.succeeded(result))

    def _end_the_job(self) -> None:
        self.scenario.end_job(lambda job: job.complete(self.scenario.cluster.timestamp()))

    def _fail(self) -> None:
        self._fate = "failed"
        self.scenario.fail(self._random.choice(FAILURES), "it did not work")

    def _lose_the_result(self) -> None:
        self._fate = "lost"
        self.scenario.simulated_result(self.scenario.request)
        self.scenario.end_pod(lambda pod: pod.ended(0))
        self._end_the_job()

    def _delete_the_job(self) -> None:
        self.scenario.cluster.remove_job(self.scenario.live_job)

    def _hold_up_the_pod(self) -> None:
        reason = self._random.choice((*MAY_PASS, *LASTING, "ContainerCreating"))
        if reason == "Unschedulable":
            self.scenario.end_pod(lambda pod: pod.unschedulable("no node fits"))
        else:
            self.scenario.end_pod(lambda pod: pod.waiting(reason, "it is not there"))

    def _start_the_pod(self) -> None:
        self.scenario.end_pod(lambda pod: pod.running())

    def _deletion(self) -> Iterator[Snapshot]:
        """Somebody deletes the object; a finalizer holds it for some passes."""
        finalizer = self._random.choice((names.FINALIZER, "foregroundDeletion"))
        metadata = self.scenario.cluster.document["metadata"]
        generation, now = metadata["generation"] + 1, self.scenario.cluster.timestamp()
        metadata |= {"finalizers": [finalizer], "deletionTimestamp": now, "generation": generation}
        self._events.append("delete")
        key = Key(metadata["namespace"], metadata["name"])
        yield self._snapshot()
        for _ in range(3):
            asyncio.run(run_once(self.scenario.cluster, key, self.scenario.profiles, self.scenario.cluster.now))
            if self.scenario.cluster.gone:
                return
            yield self._snapshot()


def _generation(document: Document) -> int | None:
    generation: int | None = document.get("metadata", {}).get("generation")
    return generation


def _token(document: Document) -> str:
    annotations = document.get("metadata", {}).get("annotations") or {}
    return str(annotations.get(names.RETRY_REQUESTED_ANNOTATION, ""))


def _phase(scenario: Scenario, job: str) -> str:
    """Phase of a Job's newest Pod; empty if it has none."""
    pods = scenario.cluster.pods_of(job)
    return str(scenario.cluster.pods[pods[-1]]["status"]["phase"]) if pods else ""


def _catch_up(scenario: Scenario) -> None:
    """Jobs end whose Pods have, and deletions end."""
    _finish_deletions(scenario)
    for name in scenario.cluster.live_jobs():
        if _phase(scenario, name) == "Succeeded":
            scenario.end_job(lambda job: job.complete(scenario.cluster.timestamp()), name)


def _finish_deletions(scenario: Scenario) -> None:
    jobs = scenario.cluster.jobs
    for name in [name for name, job in jobs.items() if job["metadata"].get("deletionTimestamp")]:
        scenario.cluster.remove_job(name)

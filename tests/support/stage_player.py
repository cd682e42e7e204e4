"""Plays kubelet and stages for an operator process on a control plane without nodes."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster.controlplane import ControlPlane
from cluster.processes import wait_for
from edgetune_contract.stages import ExitCode, Stage
from edgetune_operator.api import names
from support.builders import failed_result, lora_fine_tune
from support.kube import LIMIT_SECONDS, Kube, condition, pod_ended
from support.operator_process import free_ports, running_operator
from support.probes import ask
from support.scenario import Scenario, request_of

OBJECT = (names.API_VERSION, names.KIND)
STORE = {"uri": "s3://artifacts/edgetune"}
PROFILES = {"default": {"store": STORE}}


class StagePlayer:
    """Plays kubelet and stages for one object: ends the Pods of its Jobs with simulated results."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube = kube
        self.namespace = namespace
        self.stages = Scenario(lora_fine_tune())

    @property
    def object(self) -> dict[str, Any]:
        found = self.kube.get(*OBJECT, self.namespace, "sensor-faults")
        assert found is not None
        return found

    def apply(self, **spec: Any) -> None:
        document = lora_fine_tune().build()
        document["spec"] |= spec
        self.kube.apply(
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "metadata": {"name": "sensor-faults", "namespace": self.namespace},
                "spec": document["spec"],
            }
        )

    def wait(self, holds: Any, what: str) -> dict[str, Any]:
        return self.kube.wait(*OBJECT, self.namespace, "sensor-faults", holds, what)

    def wait_for_phase(self, phase: str) -> dict[str, Any]:
        return self.wait(lambda found: (found.get("status") or {}).get("phase") == phase, f"phase {phase}")

    def live_pod(self, stage: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The Job of a stage, or of the clean-up, and its pending Pod, once both exist."""
        deadline = time.monotonic() + LIMIT_SECONDS
        selector = f"{names.STAGE_LABEL}={stage}"
        while time.monotonic() < deadline:
            # A deleted Job exists until its Pods are gone, which are deleted a moment later.
            found = self.kube.list("batch/v1", "Job", self.namespace, selector)
            jobs = {job["metadata"]["uid"]: job for job in found if not _deleting(job)}
            for pod in reversed(self.kube.list("v1", "Pod", self.namespace, selector)):
                job = jobs.get(pod["metadata"]["labels"]["batch.kubernetes.io/controller-uid"])
                if job is not None and pod["status"].get("phase") == "Pending" and not _deleting(pod):
                    return job, pod
            time.sleep(0.1)
        raise TimeoutError(f"no Pod of stage {stage} within {LIMIT_SECONDS:.0f} s; status: {self.object.get('status')}")

    def end_pod(self, pod: dict[str, Any], status: dict[str, Any]) -> None:
        self.kube.set_status("v1", "Pod", self.namespace, pod["metadata"]["name"], status)

    def bind(self, pod: Mapping[str, Any]) -> None:
        """Put a Pod on a node: without one, it would be gone as soon as it is deleted."""
        name = pod["metadata"]["name"]
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": {"kind": "Node"}}
        binding["target"]["name"] = "gpu-1"  # type: ignore[index]
        path = f"{self.kube.path('v1', 'Pod', self.namespace, name)}/binding"
        reply = self.kube.request("POST", path, binding)
        assert reply.accepted, reply.message

    def remove_pod(self, pod: dict[str, Any]) -> None:
        """Remove a Pod that is being deleted: there is no kubelet to confirm that its container has ended."""
        path = f"{self.kube.path('v1', 'Pod', self.namespace, pod['metadata']['name'])}?gracePeriodSeconds=0"
        self.kube.request("DELETE", path)

    def wait_for_dry_run(self, code: int) -> None:
        """Wait until a dry run of a Job is answered with this code: quotas and webhooks take effect with a delay."""
        template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "trial", "image": "none"}]}}
        job = {"metadata": {"name": "trial"}, "spec": {"template": template}}
        path = f"{self.kube.path('batch/v1', 'Job', self.namespace)}?dryRun=All"
        if not wait_for(lambda: self.kube.request("POST", path, job).code == code, 30):
            raise TimeoutError(f"a dry run of a Job is not answered with {code} within 30 s")

    def wait_for_deletion(self, job: Mapping[str, Any]) -> None:
        """Wait until the garbage collector has deleted a Job whose owner is gone."""
        name = job["metadata"]["name"]
        self.kube.wait("batch/v1", "Job", self.namespace, name, _deleting, f"Job {name} is deleted")

    def finish(self, stage: Stage) -> None:
        self.finish_pod(*self.live_pod(stage))

    def finish_pod(self, job: Mapping[str, Any], pod: dict[str, Any]) -> None:
        """A stage succeeds in a Pod that is running."""
        result = self.stages.simulated_result(request_of(job))
        self.end_pod(pod, pod_ended(0, result.encode().decode()))

    def fail(self, stage: Stage, code: ExitCode, message: str) -> None:
        """The stage fails with this exit code and message."""
        _, pod = self.live_pod(stage)
        self.fail_pod(pod, stage, code, message)

    def fail_pod(self, pod: dict[str, Any], stage: Stage, code: ExitCode, message: str) -> None:
        """A Pod of a stage fails with this exit code and message."""
        job = next(job for job in self.jobs(stage) if not _deleting(job))
        result = failed_result(stage, request_of(job).digest, code, code.reason, message)
        self.end_pod(pod, pod_ended(code, result.encode().decode()))

    def shorten_lives(self) -> None:
        """Let all present Jobs be removed a second after their end."""
        for job in self.jobs():
            short = {"spec": {"ttlSecondsAfterFinished": 1}}
            self.kube.merge("batch/v1", "Job", self.namespace, job["metadata"]["name"], short)

    def request_retry(self, token: str) -> None:
        """Request a retry as `kubectl annotate` does."""
        annotations = {"annotations": {names.RETRY_REQUESTED_ANNOTATION: token}}
        self.kube.merge(*OBJECT, self.namespace, "sensor-faults", {"metadata": annotations})

    def jobs(self, stage: str = "") -> list[dict[str, Any]]:
        """Jobs of the namespace, or of one stage, oldest first."""
        jobs = self.kube.list("batch/v1", "Job", self.namespace, f"{names.STAGE_LABEL}={stage}" if stage else "")
        return sorted(jobs, key=lambda job: str(job["metadata"]["creationTimestamp"]))

    def wait_for_condition(
        self, condition_type: str, reason: str, limit_seconds: float = LIMIT_SECONDS
    ) -> dict[str, Any]:
        """The condition, once it has this reason."""

        def holds(document: dict[str, Any]) -> bool:
            return (condition(document, condition_type) or {}).get("reason") == reason

        what = f"{condition_type} with reason {reason}"
        document = self.kube.wait(*OBJECT, self.namespace, "sensor-faults", holds, what, limit_seconds)
        found = condition(document, condition_type)
        assert found is not None
        return found

    def finish_from(self, first: Stage) -> None:
        for stage in list(Stage)[list(Stage).index(first) :]:
            self.finish(stage)

    def row(self, stage: Stage) -> dict[str, Any]:
        rows: list[dict[str, Any]] = self.object["status"]["stages"]
        return next(row for row in rows if row["name"] == stage)


def _deleting(item: dict[str, Any]) -> bool:
    return item["metadata"].get("deletionTimestamp") is not None


class Operator:
    """The operator process, which tests stop and start."""

    def __init__(self, folder: Path, plane: ControlPlane) -> None:
        self._folder = folder
        self._plane = plane
        self._stack = ExitStack()
        self._profiles: Mapping[str, Any] | None = None
        self._metrics_port = 0

    def ensure(self, profiles: Mapping[str, Any] = PROFILES) -> None:
        """Let it run with these profiles, also after a test that failed."""
        if self._profiles != profiles:
            self.stop()
            self.start(profiles)

    def start(self, profiles: Mapping[str, Any] = PROFILES) -> None:
        self._profiles = profiles
        health, self._metrics_port = free_ports(2)
        ports = ("--health-port", str(health), "--metrics-port", str(self._metrics_port))
        self._running = self._stack.enter_context(
            running_operator(self._folder, self._plane.kubeconfig(), profiles, *ports)
        )

    def metrics(self) -> dict[str, float]:
        """The series that Prometheus would scrape now, with their values."""
        text = ask(self._metrics_port, "/metrics")[1]
        lines = (line for line in text.splitlines() if line.startswith("edgetune_"))
        return {series: float(value) for series, _, value in (line.rpartition(" ") for line in lines)}

    def stop(self) -> None:
        self._profiles = None
        self._stack.close()

    def kill(self) -> None:
        """Kill the process, as if its node failed."""
        self._running.process.kill()
        self._running.process.wait()
        self.stop()

"""A cluster on one machine: the Kubernetes client's protocol, with objects in a folder and Jobs as child processes."""

import asyncio
import fcntl
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgetune_cli.local.logs import log_path
from edgetune_cli.local.objects import ObjectFolder
from edgetune_cli.local.processes import ProcessJob, now
from edgetune_contract.stages import Stage
from edgetune_contract.training import MOST_GPUS
from edgetune_operator.api.names import Key
from edgetune_operator.api.profiles.profile import Profile, ProfileStore
from edgetune_operator.api.status.stage_status import ProgressStatus
from edgetune_operator.decisions.observe import nodes_of

_LOG_BYTES = 2**20
"""A run begins a new log where the last one is longer; of the older ones, the last is kept."""


class ObjectBusy(Exception):
    """Another run is working on the same object."""


class LocalCluster:
    """Implements `reconcile.Cluster` for one object, whose lock it holds while it is open."""

    def __init__(self, folder: Path, key: Key, signing_key: Path | None = None) -> None:
        self._folder = folder
        self._signing_key = signing_key
        self._key = key
        self._jobs: dict[str, ProcessJob] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._progress: ProgressStatus | None = None
        self._lock = -1
        self.objects = ObjectFolder(folder / "objects")
        self.changed = asyncio.Event()
        self.message = ""

    async def __aenter__(self) -> Self:
        path = self.objects.lock_path(self._key)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._lock, 32).decode(errors="replace").strip()
            os.close(self._lock)
            raise ObjectBusy(f"{self._key.namespace}/{self._key.name}: {_busy(holder, self._folder)}") from None
        os.truncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.stop()
        os.close(self._lock)

    def log_path(self, job: str) -> Path:
        """Log of a Job's attempts, also those of earlier runs."""
        return log_path(self._folder, self._key.namespace, job)

    async def read_object(self, key: Key) -> dict[str, Any] | None:
        return self.objects.read(key)

    async def list_jobs(self, owner: Mapping[str, Any]) -> list[dict[str, Any]]:  # noqa: ARG002 - one object only
        return [job.to_dict() for job in self._jobs.values()]

    async def list_pods(self, owner: Mapping[str, Any]) -> list[dict[str, Any]]:  # noqa: ARG002 - one object only
        return [pod for job in self._jobs.values() for pod in job.pods]

    async def list_workloads(self, owner: Mapping[str, Any], jobs: Sequence[str]) -> list[dict[str, Any]]:  # noqa: ARG002 - no queues
        return []

    async def read_queue(self, namespace: str, queue: str, priority: str) -> None:  # noqa: ARG002 - no queues
        return None

    async def change_job(self, owner: Mapping[str, Any], name: str, patch: Sequence[Mapping[str, Any]]) -> None:
        raise TypeError(f"{owner['name']}: Job {name} is not in a queue, and is not changed by {patch}")

    async def list_warnings(self, owner: Mapping[str, Any], uid: str) -> list[dict[str, Any]]:  # noqa: ARG002 - no Events
        return []

    async def read_progress(self, owner: Mapping[str, Any]) -> ProgressStatus | None:  # noqa: ARG002 - one object only
        return self._progress

    async def create_job(self, job: Mapping[str, Any]) -> str:
        name = job["metadata"]["name"]
        if name in self._jobs:
            return ""
        log = self.log_path(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        uid = str(uuid.uuid4())
        # This machine is the only node of a training.
        spec = {key: value for key, value in job["spec"].items() if key not in ("completionMode", "completions")}
        spec["backoffLimit"] //= nodes_of(job)
        manifest = {**job, "spec": spec, "metadata": {**job["metadata"], "uid": uid, "creationTimestamp": now()}}
        self._progress, self.message = None, ""
        process_job = ProcessJob(
            manifest=manifest,
            folder=self._folder / "work" / self._key.namespace / name,
            log=log,
            on_line=self._take_line,
            on_change=self.changed.set,
            inherited=(self._lock,),
            signing_key=self._signing_key,
        )
        self._jobs[name] = process_job
        self._tasks[name] = asyncio.create_task(process_job.run())
        return uid

    async def has_service(self, owner: Mapping[str, Any], name: str, job: str) -> bool:
        raise TypeError(f"{owner['name']}: Job {job} runs on one machine, without Service {name}")

    async def create_service(self, service: Mapping[str, Any]) -> None:
        raise TypeError(f"a Job runs on one machine, without Service {service['metadata']['name']}")

    async def delete_job(self, owner: Mapping[str, Any], name: str) -> None:  # noqa: ARG002 - one object only
        job, task = self._jobs.get(name), self._tasks.get(name)
        if job is None or task is None:
            return
        await job.stop()
        await task
        del self._jobs[name], self._tasks[name]
        shutil.rmtree(job.folder, ignore_errors=True)
        self.changed.set()

    async def read_labels(self, namespace: str) -> Mapping[str, str]:  # noqa: ARG002 - a folder has no labels
        return {}

    async def is_namespace_terminating(self, namespace: str) -> bool:  # noqa: ARG002 - a folder is never terminating
        return False

    async def have_stages_stopped(self, owner: Mapping[str, Any]) -> bool:  # noqa: ARG002 - one object only
        return not self._jobs

    async def write_finalizers(self, owner: Mapping[str, Any], finalizers: Sequence[str]) -> Mapping[str, Any]:
        metadata: Mapping[str, Any] = self.objects.write_finalizers(Key(owner["namespace"], owner["name"]), finalizers)[
            "metadata"
        ]
        return metadata

    async def write_status(self, owner: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        key = Key(owner["namespace"], owner["name"])
        document = self.objects.read(key)
        if document is not None:
            self.objects.write(key, {**document, "status": dict(status)})

    async def stop(self) -> None:
        """Stop running Jobs and wait until they end: within the grace period, training writes its checkpoint."""
        await asyncio.gather(*(job.stop() for job in self._jobs.values()))
        for task in self._tasks.values():
            await task

    def _newest_pod(self) -> str:
        pods = [pod["metadata"] for job in self._jobs.values() for pod in job.pods]
        return str(pods[-1]["name"]) if pods else ""

    def _take_line(self, line: dict[str, Any]) -> None:
        if isinstance(line.get("say"), str):
            self.message = line["say"]
        if isinstance(line.get("progress"), dict):
            self._progress = _progress(line["progress"], self._newest_pod())
        self.changed.set()


def _busy(holder: str, folder: Path) -> str:
    """Who holds an object's lock: another run, or a stage that outlived a killed run."""
    if holder.isdigit() and not Path(f"/proc/{holder}").exists() and Path("/proc/self").exists():
        return f"a stage of a killed run (process {holder}) is still stopping; try again in a moment"
    return (
        f"another run (process {holder or 'unknown'}) is working on this object in {folder}; "
        "wait for it, stop it, or use another --workdir"
    )


def _progress(line: Mapping[str, Any], pod: str) -> ProgressStatus:
    done, total = int(line["done"]), int(line["total"])
    figures = line.get("figures") or {}
    return ProgressStatus(
        stage=Stage(line["stage"]),
        step=done,
        total_steps=total,
        unit=line["unit"],
        loss=figures.get("loss"),
        tokens_per_second=figures.get("tokensPerSecond"),
        eta_seconds=figures.get("etaSeconds"),
        pod=pod,
        resumed_from=int(figures.get("resumedFromStep", 0)),
    )


def local_profile(folder: Path) -> Profile:
    """Profile of a run without a cluster: the store is a folder, and the machine gives what GPUs it has."""
    return Profile(store=ProfileStore(uri=(folder / "store").as_uri()), allow_file_uris=True, max_gpus=MOST_GPUS)

"""A cluster of one machine: the same protocol as Kubernetes, objects in a folder, Jobs as child processes."""

import asyncio
import fcntl
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from edgetune_cli.processes import ProcessJob, now
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.api.objects import ProgressStatus
from edgetune_operator.api.profiles import Profile, ProfileStore

_LONGEST_FILE_NAME = 200


class ObjectBusy(Exception):
    """Another run works on the same object."""


class ObjectFolder:
    """LoraFineTunes of local runs: one YAML file each, with the status that a cluster would show."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: Key) -> Path:
        """File of one object."""
        # A name may be as long as a file's name, which has an ending besides.
        name = key.name if len(key.name) <= _LONGEST_FILE_NAME else names.label_value(key.name)
        return self._root / key.namespace / f"{name}.yaml"

    def read(self, key: Key) -> dict[str, Any] | None:
        """The object, or None if there was no run of it yet."""
        try:
            document = yaml.safe_load(self.path(key).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (yaml.YAMLError, UnicodeDecodeError):
            # A view of the store's facts: without it, every stage finds its manifest.
            return None
        return document if isinstance(document, dict) and "metadata" in document else None

    def write(self, key: Key, document: Mapping[str, Any]) -> None:
        """Replace the object in one step."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")  # one writer only: whoever holds the object's lock
        draft.write_text(yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True), encoding="utf-8")
        draft.replace(path)

    def apply(self, key: Key, spec: Mapping[str, Any], retry: str) -> dict[str, Any]:
        """What the API server does when somebody applies the object: a changed spec is a new generation.

        Args:
            key: namespace and name.
            spec: the whole spec, defaults filled in.
            retry: retry token; applying by hand asks for a look at the inputs and another try.
        """
        document = self.applied(key, spec, retry)
        self.write(key, document)
        return document

    def applied(self, key: Key, spec: Mapping[str, Any], retry: str) -> dict[str, Any]:
        """The object as `apply` would leave it; nothing is written."""
        document = self.read(key)
        # Here a deletion that was interrupted can be taken back.
        if document is None or document["metadata"].get("deletionTimestamp"):
            document = _new_object(key)
        if document.get("spec") != spec:
            document["metadata"]["generation"] += 1
            document["spec"] = dict(spec)
        document["metadata"]["annotations"] = {names.RETRY_REQUESTED_ANNOTATION: retry}
        return document

    def delete(self, key: Key, finalizers: Sequence[str]) -> None:
        """What the API server does when somebody deletes the object: it is gone, or waits for its finalizers."""
        document = self.read(key)
        if document is not None:
            document["metadata"].setdefault("deletionTimestamp", now())
            self.write(key, document)
            self.write_finalizers(key, finalizers)

    def write_finalizers(self, key: Key, finalizers: Sequence[str]) -> dict[str, Any]:
        """Replace the finalizers; the object after that. A deleted one without any is gone."""
        document = self.read(key)
        if document is None:
            raise FileNotFoundError(f"{self.path(key)} was removed meanwhile")
        document["metadata"]["finalizers"] = list(finalizers)
        if document["metadata"].get("deletionTimestamp") and not finalizers:
            self.path(key).unlink()
        else:
            self.write(key, document)
        return document


class LocalCluster:
    """Satisfies `reconcile.Cluster`. One object at a time; holds the object's lock while it is open."""

    def __init__(self, folder: Path, key: Key) -> None:
        self._folder = folder
        self._key = key
        self._jobs: dict[str, ProcessJob] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._progress: ProgressStatus | None = None
        self._lock = -1
        self.objects = ObjectFolder(folder / "objects")
        self.changed = asyncio.Event()
        self.said = ""

    async def __aenter__(self) -> Self:
        path = self.objects.path(self._key).with_suffix(".lock")
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
        """Log of a Job's attempts."""
        return self._folder / "logs" / self._key.namespace / f"{job}.log"

    async def read_object(self, key: Key) -> dict[str, Any] | None:
        return self.objects.read(key)

    async def list_jobs(self, owner: Mapping[str, Any]) -> list[dict[str, Any]]:  # noqa: ARG002 - one object only
        return [job.to_dict() for job in self._jobs.values()]

    async def list_pods(self, owner: Mapping[str, Any]) -> list[dict[str, Any]]:  # noqa: ARG002 - one object only
        return [pod for job in self._jobs.values() for pod in job.pods]

    async def list_events(self, owner: Mapping[str, Any], uid: str) -> list[dict[str, Any]]:  # noqa: ARG002 - no Events
        return []

    async def read_progress(self, owner: Mapping[str, Any]) -> ProgressStatus | None:  # noqa: ARG002 - one object only
        return self._progress

    async def create_job(self, job: Mapping[str, Any]) -> None:
        name = job["metadata"]["name"]
        if name in self._jobs:
            return
        log = self.log_path(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        manifest = {**job, "metadata": {**job["metadata"], "uid": str(uuid.uuid4()), "creationTimestamp": now()}}
        self._progress, self.said = None, ""
        process_job = ProcessJob(
            manifest=manifest,
            folder=self._folder / "work" / self._key.namespace / name,
            log=log,
            on_line=self._take_line,
            on_change=self.changed.set,
            inherited=(self._lock,),
        )
        self._jobs[name] = process_job
        self._tasks[name] = asyncio.create_task(process_job.run())

    async def delete_job(self, owner: Mapping[str, Any], name: str) -> None:  # noqa: ARG002 - one object only
        job, task = self._jobs.get(name), self._tasks.get(name)
        if job is None or task is None:
            return
        await job.stop()
        await task
        del self._jobs[name], self._tasks[name]
        shutil.rmtree(job.folder, ignore_errors=True)
        self.changed.set()

    async def namespace_is_going(self, namespace: str) -> bool:  # noqa: ARG002 - a folder, which nobody deletes so
        return False

    async def is_quiet(self, owner: Mapping[str, Any]) -> bool:  # noqa: ARG002 - one object only
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
        """Stop what runs, with its grace period: a training writes its checkpoint first."""
        await asyncio.gather(*(job.stop() for job in self._jobs.values()))
        for task in self._tasks.values():
            await task

    def _newest_pod(self) -> str:
        pods = [pod["metadata"] for job in self._jobs.values() for pod in job.pods]
        return str(pods[-1]["name"]) if pods else ""

    def _take_line(self, line: dict[str, Any]) -> None:
        if isinstance(line.get("say"), str):
            self.said = line["say"]
        if isinstance(line.get("progress"), dict):
            self._progress = _progress(line["progress"], self._newest_pod())
        self.changed.set()


def _new_object(key: Key) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {
            "name": key.name,
            "namespace": key.namespace,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": now(),
            "generation": 0,
        },
    }


def _busy(holder: str, folder: Path) -> str:
    """What holds an object's lock: a run, or a stage that outlives a run that was killed."""
    if holder.isdigit() and not Path(f"/proc/{holder}").exists() and Path("/proc/self").exists():
        return f"a stage of a run that was killed (process {holder}) is still ending; try again in a moment"
    return (
        f"another run (process {holder or 'unknown'}) works on this object in {folder}; "
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
        percent=min(100 * done // total, 100) if total else 0,
        loss=figures.get("loss"),
        tokens_per_second=figures.get("tokensPerSecond"),
        eta_seconds=figures.get("etaSeconds"),
        pod=pod,
        resumed_from=int(figures.get("resumedFromStep", 0)),
    )


def local_profile(folder: Path) -> Profile:
    """Profile of a run without a cluster: the store is a folder."""
    return Profile(store=ProfileStore(uri=(folder / "store").as_uri()), allow_file_uris=True)

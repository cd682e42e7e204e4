"""Jobs as child processes: the part of the Job controller and the kubelet, for processes on this machine."""

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgetune_contract.request import MAX_RESULT_BYTES
from edgetune_contract.values.text import escaped_line
from edgetune_contract.values.times import timestamp
from edgetune_operator.decisions.manifests.job_manifests import SIGNING_KEY_VARIABLE

_FALLBACK_LOG_BYTES = 2048
_LOG_LINE_LIMIT = 2**20
_PR_SET_PDEATHSIG = 1
_BACKOFF_LIMIT_SECONDS = 60.0
_PROGRESS_LINE_SECONDS = 10.0
_OF_A_CLUSTER = ("HOME", "EDGETUNE_IMAGE", "EDGETUNE_GPUS", "EDGETUNE_NODES", "EDGETUNE_RENDEZVOUS")
"""Variables of the container that say nothing about this machine."""


def now() -> str:
    """The current time (RFC 3339) with milliseconds: stages of a small model take less than a second."""
    return timestamp(datetime.now(UTC), "milliseconds")


@dataclass
class ProcessJob:
    """One Job and its attempts.

    Attributes:
        manifest: the rendered Job.
        folder: parent of the work folders of its attempts.
        log: file to which all attempts append: standard error, messages, and the progress every few seconds.
        on_line: called with each JSON object that a stage prints to standard output.
        on_change: called after each change of the Job's or a Pod's status.
        inherited: file descriptors that the attempts keep open (the object's lock).
        signing_key: file that takes the place of the private key that the container mounts; None if it mounts none.
        backoff_seconds: pause after the first failed attempt; it doubles after each further one, up to a minute.
    """

    manifest: Mapping[str, Any]
    folder: Path
    log: Path
    on_line: Callable[[dict[str, Any]], None]
    on_change: Callable[[], None]
    inherited: tuple[int, ...] = ()
    signing_key: Path | None = None
    backoff_seconds: float = 1.0
    status: dict[str, Any] = field(default_factory=dict)
    pods: list[dict[str, Any]] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _process: asyncio.subprocess.Process | None = None
    _attempt_begins_at: int = 0
    """Offset of the newest attempt's first line in the log."""

    @property
    def name(self) -> str:
        """Name of the Job."""
        return str(self.manifest["metadata"]["name"])

    def to_dict(self) -> dict[str, Any]:
        """The Job as the API server would return it."""
        return {**self.manifest, "status": dict(self.status)}

    async def run(self) -> None:
        """Run attempts until the Job is complete, has failed, or is stopped."""
        spec = self.manifest["spec"]
        self.status = {"startTime": now(), "active": 1}
        try:
            await asyncio.wait_for(self._run_attempts(spec), timeout=spec.get("activeDeadlineSeconds"))
        except TimeoutError:
            await self.stop()
            self._end("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            self._end("Failed", "ProcessNotStarted", f"{place}{error.strerror}; fix this, then run the command again")

    async def _run_attempts(self, spec: Mapping[str, Any]) -> None:
        attempt = 0
        while not self._stop.is_set():
            attempt += 1
            exit_code = await self._run_attempt(attempt)
            if exit_code == 0:
                self._end("Complete", "CompletionsReached", "")
                return
            action = _matching_action(spec, exit_code)
            if action == "FailJob":
                self._count_failure()
                self._end("Failed", "PodFailurePolicy", f"exit code {exit_code}")
                return
            if action != "Ignore":
                self._count_failure()
            if self.status.get("failed", 0) > spec["backoffLimit"]:
                self._end("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
                return
            self.on_change()
            backoff = min(self.backoff_seconds * 2 ** (attempt - 1), _BACKOFF_LIMIT_SECONDS)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), timeout=backoff)

    def _count_failure(self) -> None:
        self.status["failed"] = self.status.get("failed", 0) + 1

    def _end(self, kind: str, reason: str, message: str) -> None:
        time = now()
        self.status.pop("active", None)
        condition = {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": time}
        self.status["conditions"] = [condition]
        if kind == "Complete":
            self.status |= {"succeeded": 1, "completionTime": time}
        self.on_change()

    async def _run_attempt(self, attempt: int) -> int:
        folder = self.folder / str(attempt)
        shutil.rmtree(folder, ignore_errors=True)
        work = folder / "work"
        work.mkdir(parents=True)
        termination_log = folder / "termination-log"
        environment = self._environment(work, termination_log)
        self._write_log(f"attempt {attempt} of {self.name} begins")
        with self.log.open("ab") as log:
            self._attempt_begins_at = log.tell()
            self._process = await asyncio.create_subprocess_exec(
                *self._command(),
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_LOG_LINE_LIMIT,
                start_new_session=True,  # Ctrl-C in the terminal reaches only the command line, which stops the stage
                preexec_fn=_stop_with_parent,
                pass_fds=self.inherited,
            )
        pod = self._new_pod(attempt)
        self.on_change()
        if self._stop.is_set():  # stop() was called while the process was starting
            self._terminate()
        await self._read_lines(self._process)
        returned = await self._process.wait()
        exit_code = returned if returned >= 0 else 128 - returned
        self._end_pod(pod, exit_code, termination_log)
        self._write_log(f"attempt {attempt} ended with exit code {exit_code}")
        shutil.rmtree(folder, ignore_errors=True)
        return exit_code

    def _command(self) -> list[str]:
        command = list(self._container()["command"])
        # -P: a stage imports nothing from the folder in which the command is run.
        return [sys.executable, "-P", *command[1:]] if command[0] == "python" else command

    def _container(self) -> Mapping[str, Any]:
        container: Mapping[str, Any] = self.manifest["spec"]["template"]["spec"]["containers"][0]
        return container

    def _environment(self, work: Path, termination_log: Path) -> dict[str, str]:
        """The container's environment variables, with its mount paths replaced by folders of this machine."""
        container = self._container()
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        secrets = {path for volume, path in mounts.items() if volume != "work"}
        environment = dict(os.environ)
        for variable in container["env"]:
            name, value = variable["name"], variable["value"]
            # HOME stays the user's own, which has the credentials that a Secret has in a cluster.
            # No image runs here, so none may be recorded in the manifest; and this machine gives what GPUs it has, as
            # the only node.
            if name in _OF_A_CLUSTER or value in secrets:
                continue
            environment[name] = str(work) if value == mounts["work"] else value
        if SIGNING_KEY_VARIABLE in environment and self.signing_key is not None:
            environment[SIGNING_KEY_VARIABLE] = str(self.signing_key.absolute())
        return environment | {
            "EDGETUNE_TERMINATION_LOG": str(termination_log),
            "EDGETUNE_METRICS_PORT": "0",
            "PYTHONUNBUFFERED": "1",
        }

    async def _read_lines(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 - a pipe was asked for
        next_progress, unwritten = 0.0, ""
        async for line in process.stdout:
            value = _json_object(line)
            if value is None:
                self._write_log(line.decode(errors="replace").rstrip())
                continue
            self.on_line(value)
            if "progress" not in value:
                self._write_log(unwritten, str(value.get("say", value)))
                unwritten = ""
            elif (time := asyncio.get_running_loop().time()) >= next_progress:
                self._write_log(_described(value["progress"]))
                next_progress, unwritten = time + _PROGRESS_LINE_SECONDS, ""
            else:
                unwritten = _described(value["progress"])
        self._write_log(unwritten)

    def _write_log(self, *messages: str) -> None:
        """Append messages to the log, each as one line with the time; empty ones are left out.

        A log is read on terminals, so that what they would obey is escaped, as in what a stage logs itself.
        """
        with self.log.open("a", encoding="utf-8") as log:
            log.writelines(f"{now()} {escaped_line(message)}\n" for message in messages if message)

    def _new_pod(self, attempt: int) -> dict[str, Any]:
        owner = {"kind": "Job", "name": self.name, "uid": self.manifest["metadata"]["uid"], "controller": True}
        pod = {
            "metadata": {
                "name": f"{self.name}-{attempt}",
                "ownerReferences": [owner],
                "creationTimestamp": now(),
            },
            "status": {
                "phase": "Running",
                "containerStatuses": [{"name": self._container()["name"], "state": {"running": {}}}],
            },
        }
        self.pods.append(pod)
        return pod

    def _end_pod(self, pod: dict[str, Any], exit_code: int, termination_log: Path) -> None:
        ended = {
            "exitCode": exit_code,
            "reason": "Completed" if exit_code == 0 else "Error",
            "message": self._termination_message(exit_code, termination_log),
            "finishedAt": now(),
        }
        pod["status"]["phase"] = "Succeeded" if exit_code == 0 else "Failed"
        pod["status"]["containerStatuses"][0]["state"] = {"terminated": ended}
        self.on_change()

    def _termination_message(self, exit_code: int, termination_log: Path) -> str:
        message = termination_log.read_bytes()[-MAX_RESULT_BYTES:] if termination_log.exists() else b""
        if not message and exit_code != 0 and self.log.exists():
            message = self.log.read_bytes()[self._attempt_begins_at :][-_FALLBACK_LOG_BYTES:]
        return message.decode(errors="replace")

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after the Job's grace period; return when the process has ended."""
        self._stop.set()
        process = self._process
        if process is None or process.returncode is not None:
            return
        grace = self.manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        self._terminate()
        try:
            await asyncio.wait_for(process.wait(), timeout=grace)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _terminate(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()


def _json_object(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(json.JSONDecodeError):
        value = json.loads(line)
        return value if isinstance(value, dict) else None
    return None


def _described(progress: Any) -> str:
    """A progress report in words."""
    if not isinstance(progress, Mapping):
        return str(progress)
    figures = "".join(f", {name} {value:.4g}" for name, value in (progress.get("figures") or {}).items())
    return f"{progress.get('done')} of {progress.get('total')} {progress.get('unit')}{figures}"


def _stop_with_parent() -> None:
    """In the child: if the command line is killed, the stage gets SIGTERM, so that it writes its checkpoint."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _matching_action(spec: Mapping[str, Any], exit_code: int) -> str:
    """Action of the first matching rule of the Job's podFailurePolicy; Count if no rule matches."""
    for rule in spec["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes is not None and exit_code in codes["values"]:
            return str(rule["action"])
    return "Count"

"""Runs stages as processes, one after the other, with the requests that the operator would send."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetune_contract.digest import prepare_digest, stage_digests
from edgetune_contract.request import Request, Resolved, Result, StoreLocation
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage

STAGE_PROCESS = Path(__file__).with_name("stage_process.py")
_LIMIT_SECONDS = 60


@dataclass(frozen=True)
class Ended:
    """The result of a stage's process."""

    exit_code: int
    message: bytes
    """The termination message."""

    stdout: str
    stderr: str

    @property
    def result(self) -> Result:
        return Result.decode(self.message.decode())

    @property
    def failure(self) -> str:
        """The failure's message; raises if the stage did not fail."""
        if self.result.failure is None:
            raise AssertionError(f"the stage did not fail: {self.message!r}")
        return self.result.failure.message

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The JSON lines of stdout."""
        return [json.loads(line) for line in self.stdout.splitlines()]


@dataclass
class RunningStage:
    """A running stage's process."""

    process: "subprocess.Popen[str]"
    termination_log: Path
    said: list[str] = field(default_factory=list)

    def wait_for(self, text: str) -> None:
        """Read stdout up to a line that contains a text."""
        stdout = self.process.stdout
        if stdout is None:
            raise AssertionError("the process has no stdout")
        for line in stdout:
            self.said.append(line)
            if text in line:
                return
        raise AssertionError(f"the process ended without the line {text!r}: {self.wait()}")

    def thaw(self) -> None:
        """Let the process and its children run again that were stopped by SIGSTOP."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        for each in (pid, *map(int, children.split())):
            os.kill(each, signal.SIGCONT)

    def wait(self, limit_seconds: float = _LIMIT_SECONDS) -> Ended:
        """Wait for the end of the process; kill it after a time limit."""
        # `communicate` would not see lines in the buffer that `wait_for` reads.
        stdout, stderr = self.process.stdout, self.process.stderr
        if stdout is None or stderr is None:
            raise AssertionError("the process has no stdout or no stderr")
        killer = threading.Timer(limit_seconds, self.process.kill)
        killer.start()
        with ThreadPoolExecutor(1) as thread:
            errors = thread.submit(stderr.read)
            rest = stdout.read()
        code = self.process.wait()
        killer.cancel()
        stdout.close()
        stderr.close()
        message = self.termination_log.read_bytes() if self.termination_log.exists() else b""
        return Ended(code, message, "".join([*self.said, rest]), errors.result())


@dataclass
class StageRuns:
    """One run: a spec, a store, and a folder for the files of its processes."""

    folder: Path
    store: StoreLocation
    parameters: Parameters
    credentials_folder: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    resolved: Resolved | None = None
    name: str = "sensor-faults"
    command: tuple[str, ...] = (sys.executable, str(STAGE_PROCESS))
    """Command of a stage's process: by default stage_process.py of the tests."""

    _started: int = 0

    def request(self, stage: Stage, **changes: Any) -> Request:
        """The request for a stage; prepare must have run before the others."""
        if stage is Stage.PREPARE:
            digest, resolved = prepare_digest(self.parameters), None
        else:
            if self.resolved is None:
                raise AssertionError("prepare has not run")
            digest, resolved = stage_digests(self.parameters, self.resolved, self.name)[stage], self.resolved
        request = Request(
            namespace="team-a",
            name=self.name,
            stage=stage,
            digest=digest,
            store=self.store,
            parameters=self.parameters,
            resolved=resolved,
        )
        return request.model_copy(update=changes)

    def start(self, stage: Stage, request: str | None = None, **environment: str) -> RunningStage:
        """Start a stage's process."""
        self._started += 1
        log = self.folder / f"termination-{self._started}.json"
        variables = {
            **os.environ,
            "EDGETUNE_REQUEST": self.request(stage).encode() if request is None else request,
            "EDGETUNE_WORK_DIR": str(self.folder / "work"),
            "EDGETUNE_TERMINATION_LOG": str(log),
            "EDGETUNE_METRICS_PORT": "0",
            "PYTHONWARNINGS": "error",
            **self.environment,
            **environment,
        }
        if self.credentials_folder is not None:
            variables["EDGETUNE_CREDENTIALS_DIR"] = str(self.credentials_folder)
        process = subprocess.Popen(
            self.command,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return RunningStage(process, log)

    def run(self, stage: Stage, **environment: str) -> Ended:
        """Run a stage to its end; the digests that prepare resolves are kept for later stages."""
        ended = self.start(stage, **environment).wait()
        if stage is Stage.PREPARE and ended.message and ended.exit_code == 0:
            self.resolved = ended.result.resolved
        return ended

    def run_up_to(self, last: Stage) -> None:
        """Run all stages up to and including `last`; all must succeed."""
        for stage in list(Stage)[: list(Stage).index(last) + 1]:
            ended = self.run(stage)
            if ended.exit_code != 0:
                raise AssertionError(f"{stage} exited with {ended.exit_code}: {ended.message!r}\n{ended.stderr}")

    def leftovers(self) -> list[Path]:
        """Files and folders left in the work folder after all processes have ended."""
        work = self.folder / "work"
        return sorted(work.iterdir()) if work.exists() else []


def wait_until(condition: Any, what: str, limit_seconds: float = 30) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + limit_seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {limit_seconds} s: {what}")
        time.sleep(0.02)

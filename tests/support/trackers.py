"""MLflow and TensorBoard for tests: installed once in an environment of their own in the cache, and run as processes.

PYTHONPATH=tests python -m support.trackers      installs them if needed; `make test` runs this first
"""

import json
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.cached_environment import CachedEnvironment
from support.server_process import free_port, running

_REQUIREMENTS = ("mlflow==3.17.2", "tensorboard==2.20.0")
_ENVIRONMENT = CachedEnvironment(
    f"trackers-{'-'.join(_REQUIREMENTS).replace('==', '-')}", _REQUIREMENTS, limit_seconds=300
)
# Nothing of this process's libraries, and no telemetry.
_CLEAN = ("env", "-u", "PYTHONPATH", "-u", "PYTHONWARNINGS", "MLFLOW_DISABLE_TELEMETRY=true", "DO_NOT_TRACK=true")
_DATABASE = "empty.db"
_START_LIMIT_SECONDS = 300
# Reads a folder; writes {tag: [[step, wall time, value], …]} of its event files.
_READ_EVENTS = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1]).Reload()
tags = events.Tags()["scalars"]
json.dump({tag: [[e.step, e.wall_time, e.value] for e in events.Scalars(tag)] for tag in tags}, sys.stdout)
"""
# The application and the database of `mlflow server` in one process: that command starts three, each of which imports
# for many seconds.
_SERVE = """
import sys
from mlflow.server.handlers import initialize_backend_stores
from mlflow.server import app
_, port, database, files = sys.argv
initialize_backend_stores(database, default_artifact_root=files)
app.run(host="127.0.0.1", port=int(port), threaded=True)
"""


def install() -> None:
    """Install both if needed, with an empty database, which each server begins with: to create it takes longer than to
    start."""
    python, database = _ENVIRONMENT.folder / "bin" / "python", _ENVIRONMENT.folder / _DATABASE
    _ENVIRONMENT.install([*_CLEAN, str(python), "-m", "mlflow", "db", "upgrade", f"sqlite:///{database}"])


def read_event_files(folder: Path) -> dict[str, list[tuple[int, float, float]]]:
    """Step, wall time and value of each scalar of the event files in a folder, as TensorBoard reads them."""
    done = subprocess.run(
        [str(_ENVIRONMENT.python()), "-c", _READ_EVENTS, str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return {tag: [(step, at, value) for step, at, value in events] for tag, events in json.loads(done.stdout).items()}


@dataclass(frozen=True)
class RunOnServer:
    """A run as the server has it."""

    id: str
    name: str
    status: str
    parameters: Mapping[str, str]
    metrics: Mapping[str, float]
    """Latest values."""

    tags: Mapping[str, str]


@dataclass(frozen=True)
class MlflowServerProcess:
    """A running MLflow server."""

    uri: str

    def runs(self, experiment: str) -> list[RunOnServer]:
        """All runs of an experiment; none before it exists."""
        try:
            found = self._get(f"experiments/get-by-name?experiment_name={experiment}")["experiment"]["experiment_id"]
        except urllib.error.HTTPError:
            return []
        answer = self._post("runs/search", {"experiment_ids": [found]})
        return [_run(each) for each in answer.get("runs", [])]

    def run(self, experiment: str) -> RunOnServer:
        """The only run of an experiment."""
        (run,) = self.runs(experiment)
        return run

    def history(self, run: RunOnServer, metric: str) -> list[tuple[int, float]]:
        """Step and value of every entry, in the order of the steps."""
        answer = self._get(f"metrics/get-history?run_id={run.id}&metric_key={metric}")
        return sorted((each.get("step", 0), each["value"]) for each in answer.get("metrics", []))

    def everything(self) -> str:
        """All runs of all experiments, as text."""
        experiments = self._post("experiments/search", {"max_results": 1000})["experiments"]
        ids = [each["experiment_id"] for each in experiments]
        return json.dumps([experiments, self._post("runs/search", {"experiment_ids": ids})])

    def _get(self, path: str) -> dict[str, Any]:
        return self._answer(urllib.request.Request(f"{self.uri}/api/2.0/mlflow/{path}"))  # noqa: S310 - own URL

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        url = f"{self.uri}/api/2.0/mlflow/{path}"
        return self._answer(urllib.request.Request(url, json.dumps(body).encode(), headers))  # noqa: S310 - own URL

    def _answer(self, request: urllib.request.Request) -> dict[str, Any]:
        answer: dict[str, Any] = json.load(urllib.request.urlopen(request, timeout=30))  # noqa: S310 - own URL
        return answer


def _run(found: Mapping[str, Any]) -> RunOnServer:
    data = found["data"]
    return RunOnServer(
        id=found["info"]["run_id"],
        name=found["info"]["run_name"],
        status=found["info"]["status"],
        parameters={each["key"]: each["value"] for each in data.get("params", [])},
        metrics={each["key"]: each["value"] for each in data.get("metrics", [])},
        tags={each["key"]: each["value"] for each in data.get("tags", [])},
    )


@contextmanager
def running_mlflow(folder: Path) -> Iterator[MlflowServerProcess]:
    """An MLflow server with its database below `folder`, until the block ends. If it is not installed, the test is
    skipped."""
    python, port = _ENVIRONMENT.python(), free_port()
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(_ENVIRONMENT.folder / _DATABASE, folder / "mlflow.db")
    serve = [str(python), "-c", _SERVE, str(port), f"sqlite:///{folder / 'mlflow.db'}", str(folder / "files")]
    uri = f"http://127.0.0.1:{port}"
    with running([*_CLEAN, *serve], f"{uri}/health", folder / "mlflow.log", _START_LIMIT_SECONDS):
        yield MlflowServerProcess(uri)


if __name__ == "__main__":
    install()

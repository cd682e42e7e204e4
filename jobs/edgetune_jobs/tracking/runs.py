"""One run of MLflow: found by the version of an object or created, and what it has already."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from edgetune_jobs.tracking.server import EXISTS, NOT_FOUND, MlflowServer, TrackerFailed

_RUN, _ATTEMPTS = "edgetune.run", "edgetune.attempts"
RUNNING, FINISHED, FAILED, KILLED = "RUNNING", "FINISHED", "FAILED", "KILLED"
# Limits of a log-batch call, and of the oldest servers for the length of a value.
_MOST_METRICS, _MOST_PARAMETERS, _MOST_TAGS = 1000, 100, 100
_LONGEST_PARAMETER, _LONGEST_TAG = 500, 5000
_PAGE = 25_000

Item = TypeVar("Item")


@dataclass(frozen=True)
class RunKey:
    """What an MLflow run is about."""

    namespace: str
    name: str
    version: str
    """Digest of the version that publish will write."""

    source_revision: str = ""
    """The Git commit that the object comes from; empty if it names none."""

    @property
    def tag(self) -> str:
        """By which a later attempt finds the run."""
        return f"{self.namespace}/{self.name}/{self.version}"

    @property
    def tags(self) -> dict[str, str]:
        """The run's tags."""
        commit = {"mlflow.source.git.commit": self.source_revision} if self.source_revision else {}
        return {
            _RUN: self.tag,
            "edgetune.namespace": self.namespace,
            "edgetune.object": self.name,
            "edgetune.version": self.version,
            "mlflow.source.name": "edgetune",
            **commit,
        }


@dataclass(frozen=True)
class Metric:
    """A figure of one step."""

    name: str
    value: float
    step: int
    time: float
    """Seconds since 1970."""

    def to_dict(self) -> dict[str, Any]:
        """As the REST API takes it."""
        return {"key": self.name, "value": self.value, "step": self.step, "timestamp": round(self.time * 1000)}


class MlflowRun:
    """A run of a server."""

    def __init__(self, server: MlflowServer, found: Mapping[str, Any]) -> None:
        """
        Args:
            server: that has the run.
            found: the run in an answer of the server.
        """
        data = found.get("data", {})
        self._server = server
        self._id = str(found["info"]["run_id"])
        self.status = str(found["info"]["status"])
        """As it was when the run was found."""

        self._parameters = {each["key"] for each in data.get("params", ())}
        self._latest = {each["key"]: each.get("value") for each in data.get("metrics", ())}
        self._tags = {each["key"]: each["value"] for each in data.get("tags", ())}

    @classmethod
    def open(cls, server: MlflowServer, experiment: str, key: RunKey, started: float) -> "MlflowRun":
        """The run of a version, in which a further attempt continues; a new one if there is none.

        Args:
            server: that has it.
            experiment: name of the experiment, which is created if it is missing.
            key: says what the run is about.
            started: when it begins if it is new, in seconds since 1970.

        Raises:
            TrackerFailed: the server refused a call or did not answer.
        """
        experiment_id = _experiment(server, experiment)
        found = cls._find_in(server, experiment_id, key)
        if found is not None:
            return found
        created = {
            "experiment_id": experiment_id,
            "start_time": round(started * 1000),
            "run_name": f"{key.name}/{key.version[:12]}",
            "tags": _pairs(key.tags),
        }
        return _of_answer(server, _field(server.post("runs/create", created), "run", dict))

    @classmethod
    def find(cls, server: MlflowServer, experiment: str, key: RunKey) -> "MlflowRun | None":
        """The run of a version; None if there is none. Nothing is created.

        Raises:
            TrackerFailed: the server refused a call or did not answer.
        """
        try:
            experiment_id = _id_of(server.get("experiments/get-by-name", experiment_name=experiment))
        except TrackerFailed as error:
            if error.code == NOT_FOUND:
                return None
            raise
        return cls._find_in(server, experiment_id, key)

    @classmethod
    def _find_in(cls, server: MlflowServer, experiment_id: str, key: RunKey) -> "MlflowRun | None":
        search = {
            "experiment_ids": [experiment_id],
            "filter": f"tags.`{_RUN}` = '{key.tag}'",
            "order_by": ["attributes.start_time ASC"],
            "max_results": 1,
        }
        runs = _field(server.post("runs/search", search), "runs", list, [])
        return _of_answer(server, runs[0]) if runs else None

    def has(self, metric: str) -> bool:
        """Whether there is a value of a metric."""
        return metric in self._latest

    def steps_of(self, metric: str) -> set[int]:
        """The steps of which there is a value.

        Raises:
            TrackerFailed: the server refused a call or did not answer.
        """
        if not self.has(metric):
            return set()
        steps: set[int] = set()
        query = {"run_id": self._id, "metric_key": metric, "max_results": str(_PAGE)}
        while True:
            answer = self._server.get("metrics/get-history", **query)
            # Zero is the default of a step, which is left out.
            steps |= {int(each.get("step", 0)) for each in _field(answer, "metrics", list, [])}
            token = answer.get("next_page_token")
            if not token:
                return steps
            query["page_token"] = str(token)

    def begin_attempt(self, parameters: Mapping[str, str]) -> None:
        """Count a further attempt, and send the parameters that the run lacks.

        Raises:
            TrackerFailed: the server refused a call or did not answer.
        """
        known = self._tags.get(_ATTEMPTS, "0")
        count = int(known) + 1 if known.isdecimal() else 1
        self.log(parameters=parameters, tags={_ATTEMPTS: str(count)})
        self.set_status(RUNNING)

    def log(
        self,
        metrics: Sequence[Metric] = (),
        parameters: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Send figures, tags, and the parameters that the run lacks: a parameter cannot be changed.

        Raises:
            TrackerFailed: the server refused a call or did not answer.
        """
        missing = [
            {"key": name, "value": _cut(value, _LONGEST_PARAMETER)}
            for name, value in (parameters or {}).items()
            if name not in self._parameters
        ]
        pairs = _pairs(tags or {})
        for part in _parts([each.to_dict() for each in metrics], _MOST_METRICS):
            self._server.post("runs/log-batch", {"run_id": self._id, "metrics": part})
        for part in _parts(missing, _MOST_PARAMETERS):
            self._server.post("runs/log-batch", {"run_id": self._id, "params": part})
        for part in _parts(pairs, _MOST_TAGS):
            self._server.post("runs/log-batch", {"run_id": self._id, "tags": part})

    def log_latest(self, figures: Mapping[str, float], time: float) -> None:
        """Send figures that belong to no step, of which the run has not the same value already.

        Raises:
            TrackerFailed: the server refused a call or did not answer.
        """
        new = {name: value for name, value in figures.items() if self._latest.get(name) != value}
        self.log([Metric(name, value, 0, time) for name, value in new.items()])

    def set_status(self, status: str, ended: float | None = None) -> None:
        """Set the run's status.

        Args:
            status: RUNNING, FINISHED, FAILED or KILLED.
            ended: when it ended, in seconds since 1970; None if it has not.

        Raises:
            TrackerFailed: the server refused a call or did not answer.
        """
        end = {} if ended is None else {"end_time": round(ended * 1000)}
        self._server.post("runs/update", {"run_id": self._id, "status": status, **end})


def _experiment(server: MlflowServer, name: str) -> str:
    """Id of the experiment of this name, which is created if it is missing."""
    try:
        return _id_of(server.get("experiments/get-by-name", experiment_name=name))
    except TrackerFailed as error:
        if error.code != NOT_FOUND:
            raise
    try:
        return str(_field(server.post("experiments/create", {"name": name}), "experiment_id", str))
    except TrackerFailed as error:
        if error.code != EXISTS:
            raise
    return _id_of(server.get("experiments/get-by-name", experiment_name=name))


def _id_of(answer: Mapping[str, Any]) -> str:
    found = _field(answer, "experiment", dict)
    if found.get("lifecycle_stage") == "deleted":
        raise TrackerFailed(
            f"the experiment {found.get('name')} is deleted: restore it or name another one", is_final=True
        )
    return str(_field(found, "experiment_id", str))


def _of_answer(server: MlflowServer, found: Any) -> MlflowRun:
    try:
        return MlflowRun(server, found)
    except (AttributeError, KeyError, TypeError):
        raise _no_mlflow() from None


def _field(answer: Mapping[str, Any], name: str, kind: type[Item], default: Item | None = None) -> Item:
    value = answer.get(name, default)
    if not isinstance(value, kind):
        raise _no_mlflow()
    return value


def _no_mlflow() -> TrackerFailed:
    return TrackerFailed("its answer is not that of an MLflow server: check its address", is_final=True)


def _pairs(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": name, "value": _cut(value, _LONGEST_TAG)} for name, value in tags.items() if value]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _parts(items: Sequence[Item], most: int) -> Iterator[Sequence[Item]]:
    return (items[start : start + most] for start in range(0, len(items), most))

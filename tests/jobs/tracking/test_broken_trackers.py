"""A tracker that is down, hangs, refuses, redirects or is none stops no training: one warning, and a few seconds."""

import threading
import time
from collections.abc import Callable

import pytest

from edgetune_jobs.runtime.progress import ProgressUpdate
from edgetune_jobs.tracking.live import Destination, LiveTracker
from edgetune_jobs.tracking.runs import RunKey
from edgetune_jobs.tracking.settings import TrackingSettings
from support.broken_trackers import answering, closed_port, hanging

SECRET = "a-token-that-nobody-may-see"
KEY = RunKey("team-a", "sensor-faults", "c" * 64)


def tracker_of(uri: str) -> LiveTracker:
    settings = TrackingSettings(uri=uri, token=SECRET)
    return LiveTracker(Destination(settings, KEY, {"lora.rank": "16"}), interval=0.01)


def observe(tracker: LiveTracker, steps: int = 5) -> float:
    """Let a tracker see steps; how long that took, in seconds."""
    started = time.monotonic()
    for step in range(1, steps + 1):
        tracker.observe(ProgressUpdate(step, steps, "steps", {"loss": 1 / step, "learningRate": 0.1}))
    return time.monotonic() - started


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def warning_of(tracker: LiveTracker, seconds: float = 5.0) -> str:
    (warning,) = tracker.close(seconds=seconds)
    assert SECRET not in warning
    return warning


REPEATED_SECRET = b'{"error_code": "INTERNAL_ERROR", "message": "no such\\ntoken: a-token-that-nobody-may-see"}'


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (401, b"go away", "it refuses the credentials (HTTP 401)"),
        (403, b"", "it refuses the credentials (HTTP 403)"),
        (500, REPEATED_SECRET, "it answers HTTP 500: no such token: …"),
        (503, b"<html>", "it answers HTTP 503"),
        (404, b"<html>no such page</html>", "it answers HTTP 404"),
        (200, b"<html>a login page</html>", "its answer is not that of an MLflow server: check its address"),
        (200, b"[1, 2]", "its answer is not that of an MLflow server: check its address"),
        (200, b'{"experiment": 7}', "its answer is not that of an MLflow server: check its address"),
        (200, b'{"experiment": {"experiment_id": "1"}, "runs": [7]}', "its answer is not that of an MLflow server"),
        (200, b"\xff\xfe", "its answer is not that of an MLflow server: check its address"),
        (
            200,
            b'{"experiment": {"experiment_id": "1", "name": "x", "lifecycle_stage": "deleted"}}',
            "the experiment x is deleted: restore it or name another one",
        ),
    ],
)
def test_what_a_server_answers_is_one_warning(status: int, body: bytes, reason: str) -> None:
    with answering(status, body) as server:
        tracker = tracker_of(server.uri)
        assert observe(tracker) < 1

        warning = warning_of(tracker)

        assert warning.startswith(f"MLflow at {server.uri}: {reason}")
        assert warning.endswith("; publish sends the 5 steps that it lacks, if it can")


def test_a_redirect_is_not_followed_and_no_other_server_sees_the_token() -> None:
    with answering(200) as other, answering(302, Location=f"{other.uri}/elsewhere") as server:
        tracker = tracker_of(server.uri)
        observe(tracker)

        assert "it redirects (HTTP 302), which is not followed: set its address" in warning_of(tracker)
        assert [authorization for _, authorization in server.requests] == [f"Bearer {SECRET}"]
        assert other.requests == []


def test_nothing_is_asked_again_after_a_refusal() -> None:
    with answering(401) as server:
        tracker = tracker_of(server.uri)
        observe(tracker)
        wait_for(lambda: not any(thread.name == "mlflow" for thread in threading.enumerate()))
        observe(tracker, steps=20)

        assert warning_of(tracker).endswith("publish sends the 25 steps that it lacks, if it can")
        assert len(server.requests) == 1


def test_a_server_that_is_away_costs_nothing_at_the_end() -> None:
    tracker = tracker_of(closed_port())
    assert observe(tracker, steps=12_000) < 5
    started = time.monotonic()

    warning = warning_of(tracker)

    assert time.monotonic() - started < 2
    assert "it refuses connections; publish sends the 12,000 steps" in warning


def test_a_server_that_never_answers_delays_only_the_end_by_the_limit() -> None:
    with hanging() as uri:
        tracker = tracker_of(uri)
        assert observe(tracker) < 1
        started = time.monotonic()

        warning = warning_of(tracker, seconds=1)

        assert 0.5 < time.monotonic() - started < 3
        assert "it did not take everything within 1 s of the end; publish sends the 5 steps that it lacks" in warning


def test_a_call_that_never_ends_is_given_up_by_itself() -> None:
    with hanging() as uri:
        tracker = tracker_of(uri)
        observe(tracker)

        assert "it did not answer within 5 s" in warning_of(tracker, seconds=20)


@pytest.mark.parametrize(
    "uri", ["sqlite:///mlflow.db", "databricks", "http://user:password@127.0.0.1:1", "http://127.0.0.1:1/?token=x"]
)
def test_an_address_that_is_none_of_a_server_is_one_warning_without_its_password(uri: str) -> None:
    tracker = tracker_of(uri)
    observe(tracker)

    warning = warning_of(tracker)

    assert "its address is not that of a server: use http:// or https://" in warning
    assert "password" not in warning
    assert "token=x" not in warning


@pytest.mark.parametrize("token", ["a\nsecret", "a sécret"])
def test_a_token_that_is_none_is_one_warning_without_it(token: str) -> None:
    with answering(200) as server:
        tracker = LiveTracker(Destination(TrackingSettings(uri=server.uri, token=token), KEY, {}), interval=0.01)
        observe(tracker)

        warning = warning_of(tracker)

        assert "MLFLOW_TRACKING_TOKEN has characters that no token has: copy it again" in warning
        assert "cret" not in warning
        assert server.requests == []


def test_a_training_without_a_step_asks_no_server() -> None:
    with answering(200) as server:
        tracker = tracker_of(server.uri)
        tracker.observe(ProgressUpdate(1, 2, "bytes", {}))

        assert tracker.close() == ()
        assert server.requests == []

"""Progress: a few JSON lines a second, always the last snapshot, and metrics for Prometheus."""

import io
import json
import math
import socket
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_contract.stages import Stage
from edgetune_jobs.runtime.progress import LineProgress, ProgressUpdate, TrainingMetrics
from support.probes import has_ipv6
from support.server_process import free_port

WITH_IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_snapshot_is_one_json_line_with_camel_case_figures() -> None:
    stream = io.StringIO()

    LineProgress(Stage.TRAIN, stream).update(1, 10, "steps", loss=0.5, tokens_per_second=100, learningRate=2e-4)

    figures = {"loss": 0.5, "tokensPerSecond": 100.0, "learningRate": 2e-4}
    assert lines(stream) == [
        {"progress": {"stage": "train", "done": 1, "total": 10, "unit": "steps", "figures": figures}}
    ]


def test_many_updates_make_four_lines_a_second_and_the_last_one_is_always_written() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(Stage.TRAIN, stream, clock=clock)

    for step in range(1, 1001):
        clock.now = step * 0.01
        progress.update(step, 1000, "steps")

    done = [line["progress"]["done"] for line in lines(stream)]
    assert done[-1] == 1000
    assert 39 <= len(done) <= 42, "ten seconds"


def test_a_pending_snapshot_is_written_before_a_message_and_on_close() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(Stage.MERGE, stream, clock=clock)
    progress.update(1, 10, "tensors")
    progress.update(2, 10, "tensors")
    progress.say("storing the result")
    progress.update(3, 10, "tensors")
    progress.close()
    progress.close()

    found = [line.get("say") or line["progress"]["done"] for line in lines(stream)]
    assert found == [1, 2, "storing the result", 3]


def test_figures_that_are_not_finite_are_omitted_so_that_the_line_is_valid_json() -> None:
    stream = io.StringIO()

    LineProgress(Stage.TRAIN, stream).update(1, 2, "steps", loss=math.nan, tokensPerSecond=math.inf, learningRate=0.1)

    assert lines(stream)[0]["progress"]["figures"] == {"learningRate": 0.1}


def test_the_remaining_time_follows_the_rate_of_this_attempt() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(Stage.TRAIN, stream, clock=clock)
    progress.update(500, 1000, "steps")
    clock.now = 10.0

    progress.update(600, 1000, "steps")

    assert lines(stream)[-1]["progress"]["figures"] == {"etaSeconds": 40.0}


def test_a_new_unit_has_a_rate_of_its_own() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(Stage.PREPARE, stream, clock=clock)
    progress.update(10, 10, "files")
    clock.now = 10.0

    progress.update(11, 1000, "rows")

    assert lines(stream)[-1]["progress"]["figures"] == {}


def test_a_closed_pipe_does_not_stop_the_work() -> None:
    class Closed(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    LineProgress(Stage.TRAIN, Closed()).update(1, 2, "steps")


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(0, 1)), min_size=1, max_size=50))
def test_whatever_is_reported_the_last_snapshot_is_the_last_line(reports: list[tuple[int, float]]) -> None:
    stream, clock = io.StringIO(), Clock()
    progress = LineProgress(Stage.EVALUATE, stream, clock=clock)
    for done, seconds in reports:
        clock.now += seconds
        progress.update(done, 50, "rows")
    progress.close()

    assert lines(stream)[-1]["progress"]["done"] == reports[-1][0]


@pytest.fixture(name="free_port")
def free_port_fixture() -> int:
    return free_port()


@pytest.fixture
def scrape(free_port: int) -> Callable[[], str]:
    """Reads the metrics as Prometheus does."""

    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
        return text

    return read


def test_a_training_serves_its_figures_to_prometheus(free_port: int, scrape: Callable[[], str]) -> None:
    metrics = TrainingMetrics("team-a", "sensor-faults")
    with metrics.serving(free_port):
        metrics.observe(ProgressUpdate(120, 200, "steps", {"loss": 0.41, "tokensPerSecond": 1850.0}))
        text = scrape()

    labels = '{name="sensor-faults",namespace="team-a"}'
    for line in (
        f"edgetune_train_step{labels} 120.0",
        f"edgetune_train_total_steps{labels} 200.0",
        f"edgetune_train_loss{labels} 0.41",
        f"edgetune_train_tokens_per_second{labels} 1850.0",
    ):
        assert line in text
    assert "edgetune_train_learning_rate{" not in text, "it was never reported"


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("[::1]", marks=WITH_IPV6)])
def test_prometheus_can_connect_over_ipv4_and_ipv6(free_port: int, host: str) -> None:
    with (
        TrainingMetrics("team-a", "sensor-faults").serving(free_port),
        urllib.request.urlopen(f"http://{host}:{free_port}/metrics", timeout=5) as answer,
    ):
        assert answer.status == 200


def test_updates_without_a_line_reach_the_metrics(free_port: int, scrape: Callable[[], str]) -> None:
    metrics = TrainingMetrics("team-a", "sensor-faults")
    progress = LineProgress(Stage.TRAIN, io.StringIO(), [metrics], Clock())
    with metrics.serving(free_port):
        for step in range(1, 8):
            progress.update(step, 10, "steps", loss=math.nan)
        text = scrape()

    assert 'edgetune_train_step{name="sensor-faults",namespace="team-a"} 7.0' in text
    assert 'edgetune_train_loss{name="sensor-faults",namespace="team-a"} NaN' in text


def test_a_port_in_use_is_logged_and_does_not_stop_the_training(
    free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as other:
        other.bind(("0.0.0.0", free_port))
        other.listen()
        with TrainingMetrics("team-a", "sensor-faults").serving(free_port):
            pass

    assert f"training metrics are not served: cannot listen on port {free_port}: " in caplog.text

"""evaluate measures base and edge models on this CPU, in processes of their own. No test depends on a speed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.evaluation import EvaluationSpec
from edgetune_contract.request import MAX_RESULT_BYTES, Result
from edgetune_contract.results.measurement import EdgeMeasurement
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import Interrupted
from edgetune_jobs.evaluation.edge import measuring
from edgetune_jobs.evaluation.edge.process import MeasurementRequest
from edgetune_jobs.evaluation.edge.runtimes import AS_STORED, Runtime
from edgetune_jobs.evaluation.gates import Figures, judge
from edgetune_jobs.stage import StageOutput
from edgetune_jobs.stages import evaluate
from support.edge_models import make_model, write_gguf
from support.llama_cpp import packages_of_llama_cpp
from support.stage_context import RecordedProgress, stage_context
from support.tiny_runs import tiny_parameters, train

pytestmark = pytest.mark.slow

_LIMIT_SECONDS = 60
# Measures a model for hours, in a process that handles signals as a stage does.
_STAGE = """
import os, sys, threading
from pathlib import Path
from edgetune_jobs.evaluation.edge.measuring import measure
from edgetune_jobs.evaluation.edge.process import MeasurementRequest
from edgetune_jobs.runtime.signals import Stopped, StopSignals
signals = StopSignals()
signals.install()
folder = Path(sys.argv[1])
request = MeasurementRequest("transformers", folder, "auto", (1, 2), 10**6, 1, os.getpid())
try:
    with signals.immediate():
        measure(request, folder.parent, threading.Event(), None)
except Stopped:
    sys.exit(75)
"""

LIMITS = {"cpu": "500m", "memory": "4Gi"}


@pytest.fixture(scope="module")
def progress() -> RecordedProgress:
    return RecordedProgress()


@pytest.fixture(scope="module")
def evaluated(
    random_base: Path, few_rows: Path, progress: RecordedProgress, tmp_path_factory: pytest.TempPathFactory
) -> StageOutput:
    """Output of evaluate for a tiny model with an edge budget."""
    folder = tmp_path_factory.mktemp("budget")
    parameters = tiny_parameters(
        training={"maxSteps": 1, "warmupRatio": 0}, evaluation={"maxNewTokens": 1, "edge": LIMITS}
    )
    adapter = train(folder / "train", parameters, random_base, few_rows).adapter
    inputs = {"base": random_base, "prepared": few_rows, "adapter": adapter, "edge-bnb-int8": random_base}
    return evaluate.run(stage_context(Stage.EVALUATE, parameters, folder / "evaluate", inputs, progress=progress))


def judged(output: StageOutput, **budget: Any) -> tuple[str, ...]:
    """Refusals of an edge budget."""
    assert output.scores is not None
    evaluation = EvaluationSpec.model_validate({"edge": LIMITS | budget})
    return judge(evaluation, Figures(output.scores, 1000, output.edge))


def measurement(output: StageOutput) -> EdgeMeasurement:
    assert output.edge is not None
    return output.edge


def test_base_and_edge_model_have_speeds_and_memory(evaluated: StageOutput, progress: RecordedProgress) -> None:
    edge = measurement(evaluated)

    assert edge.threads == 1
    assert edge.cpu
    assert (edge.new_tokens, edge.over_memory, edge.further) == (32, False, {})
    for model in (edge, edge.base):
        assert model is not None
        assert model.runtime.startswith("transformers ")
        assert (
            min(
                model.prompt_tokens_per_second or 0,
                model.generation_tokens_per_second or 0,
                model.time_to_first_token_seconds or 0,
            )
            > 0
        )
        assert 0 < (model.baseline_memory_bytes or 0) < model.peak_memory_bytes
    assert progress.said[-2:] == ["measuring the edge model on 1 thread", "measuring the base model on 1 thread"]


def test_a_model_within_its_budget_is_not_refused(evaluated: StageOutput) -> None:
    assert judged(evaluated, minTokensPerSecond=0, maxPeakMemory="4Gi") == ()


def test_a_model_that_is_too_slow_or_too_large_is_refused_with_figure_and_limit(evaluated: StageOutput) -> None:
    slow, large = judged(evaluated, minTokensPerSecond=1_000_000, maxPeakMemory="1Mi")

    assert slow.startswith("edge.minTokensPerSecond: the edge model generates ")
    assert slow.endswith("; the limit is 1000000.0 tokens/s")
    assert f"used {measurement(evaluated).peak_memory_bytes:,} bytes of memory in transformers" in large
    assert large.endswith("of them before the model was loaded; the limit is 1Mi (1,048,576 bytes)")


def test_a_result_with_all_formats_fits_into_a_termination_message(evaluated: StageOutput) -> None:
    edge, scores = measurement(evaluated), evaluated.scores
    assert scores is not None
    _, *further = (each.artifact for each in EdgeFormat)
    result = Result(
        stage=Stage.EVALUATE,
        digest="0" * 64,
        scores=scores.model_copy(update={"details": scores.details | dict.fromkeys(further, scores.details["edge"])}),
        metrics=dict(evaluated.metrics) | {f"{each}Seconds": evaluated.metrics["edgeSeconds"] for each in further},
        facts=dict(evaluated.facts),
        edge=edge.model_copy(update={"further": dict.fromkeys(further, edge.base)}),
    )

    encoded = result.encode()

    assert len(encoded) <= MAX_RESULT_BYTES
    sent = Result.decode(encoded.decode())
    assert sent.edge == result.edge
    assert sent.scores is not None
    assert set(sent.scores.details) == {*scores.details, *further}


def test_gguf_is_measured_with_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(packages_of_llama_cpp()))
    file = write_gguf(make_model(tmp_path / "model", "llama"), tmp_path / "edge")
    request = MeasurementRequest(Runtime.LLAMA_CPP, file.parent, AS_STORED, (3, 4, 5, 6), 8, 1, os.getpid())

    speed = measuring.measure(request, tmp_path, threading.Event(), None)

    assert speed.runtime.startswith("llama.cpp (llama-cpp-python ")
    assert (speed.generation_tokens_per_second or 0) > 0
    assert 0 < (speed.baseline_memory_bytes or 0) < speed.peak_memory_bytes


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "llama", "llama")


def test_a_stop_ends_a_measurement(model: Path, tmp_path: Path) -> None:
    stop = threading.Event()

    def stop_when_measuring() -> None:
        try:
            wait_until(lambda: measuring_children(os.getpid()) != [])
        finally:
            stop.set()

    threading.Thread(target=stop_when_measuring).start()
    request = MeasurementRequest(Runtime.TRANSFORMERS, model, AS_STORED, (1, 2), 10**6, 1, os.getpid())

    with pytest.raises(Interrupted, match="stopped by SIGTERM in the evaluation"):
        measuring.measure(request, tmp_path, stop, None)

    assert measuring_children(os.getpid()) == []


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGKILL, -9)])
def test_a_stage_that_is_stopped_or_killed_while_measuring_leaves_no_process(
    number: signal.Signals, exit_code: int, model: Path
) -> None:
    stage = subprocess.Popen([sys.executable, "-c", _STAGE, str(model)])
    try:
        wait_until(lambda: measuring_children(stage.pid) != [])
        (child,) = measuring_children(stage.pid)

        stage.send_signal(number)

        assert stage.wait(_LIMIT_SECONDS) == exit_code
        wait_until(lambda: not is_measuring(child))
    finally:
        stage.kill()
        stage.wait()


def measuring_children(process: int) -> list[int]:
    """Process IDs of a process's children that are measuring."""
    found: list[int] = []
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # that thread has ended
            found += map(int, file.read_text().split())
    return [child for child in found if is_measuring(child)]


def is_measuring(process: int) -> bool:
    """Whether a process is measuring and has loaded torch: from then on, it ends with its parent."""
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes()
        mapped = Path(f"/proc/{process}/maps").read_text()
    except OSError:  # it has ended
        return False
    return b"edgetune_jobs.evaluation.edge.process" in command and "libtorch" in mapped


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)

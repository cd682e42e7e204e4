"""Measurements for an edge budget: cores, memory limits, timing, failures. No model is loaded here."""

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgetune_contract.spec import EdgeFormat
from edgetune_contract.values.quantities import parse_cpu
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.evaluation.edge import machine, measuring
from edgetune_jobs.evaluation.edge.budget import check_measurable, median_prompt
from edgetune_jobs.evaluation.edge.child_process import OutOfMemory
from edgetune_jobs.evaluation.edge.machine import Cores
from edgetune_jobs.evaluation.edge.process import MeasurementRequest, Timing, time_tokens
from edgetune_jobs.evaluation.edge.runtimes import AS_STORED, Runtime, why_not_runnable
from support.tiny_runs import tiny_parameters


def request_for(folder: Path, runtime: Runtime = Runtime.TRANSFORMERS) -> MeasurementRequest:
    return MeasurementRequest(runtime, folder, AS_STORED, (1, 2), 2, 1, os.getpid())


@pytest.mark.parametrize(("quantity", "cores"), [("2", 2.0), ("1.5", 1.5), ("500m", 0.5)])
def test_cores_are_parsed_as_kubernetes_quantities(quantity: str, cores: float) -> None:
    assert parse_cpu(quantity) == cores


@pytest.mark.parametrize("quantity", ["", "0", "-1", "2 cores", "1.2345", "1e3"])
def test_an_invalid_number_of_cores_is_refused(quantity: str) -> None:
    with pytest.raises(ValueError, match="is not a valid number of cores: use a number such as 2 or"):
        parse_cpu(quantity)


@pytest.mark.parametrize(("requested", "count"), [(None, 4), ("1", 1), ("500m", 1), ("1.2", 2), ("4", 4)])
def test_requested_cores_are_rounded_up_and_default_to_all(requested: str | None, count: int) -> None:
    assert Cores.choose(requested, usable=4) == Cores(count)


def test_a_request_for_more_cores_than_the_stage_has_uses_all_and_warns() -> None:
    assert Cores.choose("8", usable=2) == Cores(
        2,
        (
            "spec.evaluation.edge.cpu requests 8 cores, but the stage has 2: measured on 2; "
            "give the stage evaluate more cores in the profile",
        ),
    )


def test_free_memory_is_bounded_by_the_containers_limit_and_includes_the_page_cache(
    tmp_path: Path,
) -> None:
    limit, usage = tmp_path / "memory.max", tmp_path / "memory.current"
    limit.write_text("1000000\n")
    usage.write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 200000\n")

    assert machine.free_bytes(cgroup_files=((tmp_path / "none", tmp_path / "none"), (limit, usage))) == 500_000


def test_a_container_without_a_limit_has_the_free_memory_of_the_machine(tmp_path: Path) -> None:
    limit, usage, machine_wide = tmp_path / "memory.max", tmp_path / "memory.current", tmp_path / "meminfo"
    limit.write_text("max\n")
    usage.write_text("700000\n")
    (tmp_path / "memory.stat").write_text("inactive_file 1\n")
    machine_wide.write_text("MemTotal: 9 kB\nMemAvailable:  2048 kB\n")

    assert machine.free_bytes(machine_wide, ((limit, usage),)) == 2048 * 1024


def test_the_prompt_has_median_length_and_a_text_is_its_own_prompt() -> None:
    assert median_prompt([[1] * 5, [2], [3] * 3], [[0], [0], [0]]) == (3, 3, 3)
    assert median_prompt([[], []], [[1, 2], [1, 2, 3]]) == (1, 2, 3)


class SlowModel:
    """Takes 2 seconds for a first token, 0.5 for each further one, and 3 times as long in its third run."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs: list[int] = []

    def tokens(self) -> Iterator[int]:
        self.runs.append(0)
        factor = 3.0 if len(self.runs) == 3 else 1.0
        for token, seconds in enumerate([2.0] + [0.5] * 100):
            self.now += factor * seconds
            self.runs[-1] += 1
            yield token


def test_times_are_medians_of_three_runs_of_equal_length_after_a_warm_up() -> None:
    model = SlowModel()

    timing = time_tokens(model.tokens, new_tokens=5, clock=lambda: model.now)

    assert timing == Timing(first_token=2.0, further_token=0.5)
    assert model.runs == [2, 5, 5, 5]


def test_a_slow_model_is_run_once() -> None:
    model = SlowModel()

    time_tokens(model.tokens, new_tokens=60, clock=lambda: model.now)

    assert model.runs == [2, 60]


def test_a_process_beyond_its_memory_limit_is_stopped_and_its_memory_reported(tmp_path: Path) -> None:
    limit = 30 * 2**20

    speed = measuring.measure(request_for(tmp_path), tmp_path, threading.Event(), limit)

    assert speed.over_memory
    assert speed.peak_memory_bytes > limit
    assert (speed.runtime, speed.generation_tokens_per_second) == ("transformers", None)


def test_a_machine_with_too_little_memory_is_distinguished_from_a_model_beyond_its_limit(
    tmp_path: Path,
) -> None:
    message = r"^its process was stopped at [\d,]+ bytes of memory: only 31,457,280 bytes were free$"
    with pytest.raises(OutOfMemory, match=message):
        measuring.measure(request_for(tmp_path), tmp_path, threading.Event(), 2**40, free_bytes=lambda: 30 * 2**20)


def test_a_process_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")

    with pytest.raises(RuntimeError, match="ended with exit code 1; the log has"):
        measuring.measure(request_for(tmp_path), tmp_path, threading.Event(), None)


def test_a_format_that_this_image_cannot_run_is_refused_before_any_model_is_scored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    parameters = tiny_parameters(quantization={"formats": ["GGUF-Q8_0"]}, evaluation={"edge": {}})

    with pytest.raises(
        InvalidInput,
        match=r"^spec\.evaluation\.edge: GGUF-Q8_0 needs llama\.cpp, which is not installed: `make llama-cpp` in a "
        r"checkout of Edgetune, or .*; or remove spec\.evaluation\.edge$",
    ):
        check_measurable(parameters)


def test_without_a_budget_every_format_is_accepted() -> None:
    check_measurable(tiny_parameters(quantization={"formats": ["CompressedTensorsW8A8"]}))


def test_a_format_for_gpu_servers_is_not_measured_on_a_cpu() -> None:
    assert why_not_runnable(EdgeFormat.COMPRESSED_TENSORS_W8A8) == (
        "CompressedTensorsW8A8 needs vLLM, which is not in this image; measure BitsAndBytesInt8 or GGUF-Q8_0 instead"
    )

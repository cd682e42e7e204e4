"""The environment of a stage's process: what is refused, and in which words."""

from pathlib import Path

import pytest

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.runtime.settings import Settings

CACHE = {"EDGETUNE_MODEL_CACHE_DIR": "/cache"}


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"EDGETUNE_METRICS_PORT": "65536"}, "EDGETUNE_METRICS_PORT: '65536' is not a port"),
        ({"EDGETUNE_GPUS": "one"}, "EDGETUNE_GPUS: 'one' is not a number of GPUs"),
        ({"EDGETUNE_RANKS": "-1"}, "EDGETUNE_RANKS: '-1' is not a number of processes"),
        ({"EDGETUNE_NODES": "two"}, "EDGETUNE_NODES: 'two' is not a number of nodes"),
        ({"EDGETUNE_DEADLINE_SECONDS": "1h"}, "EDGETUNE_DEADLINE_SECONDS: '1h' is not a number of seconds"),
        ({"EDGETUNE_GPU_BYTES": "80Gi"}, "EDGETUNE_GPU_BYTES: '80Gi' is not a number of bytes"),
        (CACHE, "EDGETUNE_MODEL_CACHE_BYTES: '' is not a number of bytes"),
        ({**CACHE, "EDGETUNE_MODEL_CACHE_BYTES": "5Gi"}, "EDGETUNE_MODEL_CACHE_BYTES: '5Gi' is not a number of bytes"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(environment: dict[str, str], problem: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        Settings.from_environment(environment)

    assert str(raised.value).startswith(problem)


def test_a_cache_has_the_folder_and_the_size_of_the_environment() -> None:
    assert Settings.from_environment({}).cache is None
    cache = Settings.from_environment({**CACHE, "EDGETUNE_MODEL_CACHE_BYTES": "5"}).cache
    assert cache is not None
    assert (cache.folder, cache.size) == (Path("/cache"), 5)


def test_the_memory_of_the_gpu_is_known_only_if_it_is_set() -> None:
    assert Settings.from_environment({}).gpu_bytes is None
    assert Settings.from_environment({"EDGETUNE_GPU_BYTES": "85899345920"}).gpu_bytes == 80 * 2**30

"""Objects of local runs, and the tables that users see."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgetune_cli.local.cluster import LocalCluster, ObjectBusy
from edgetune_cli.local.objects import ObjectFolder
from edgetune_cli.status_tables import show_outcome
from edgetune_contract.request import ModelScores, Scores
from edgetune_contract.results.measurement import EdgeMeasurement, ModelSpeed
from edgetune_contract.stages import Stage
from edgetune_operator.api.names import Key
from edgetune_operator.api.status.object_status import ArtifactStatus, LoraFineTuneStatus, Sizes
from edgetune_operator.api.status.stage_status import Parallelism, ProgressStatus, StageState, StageStatus
from edgetune_operator.decisions.observe import nodes_of
from support.golden import NODES, job_of

KEY = Key("team-a", "sensor-faults")


def test_a_changed_spec_is_a_new_generation_and_an_equal_one_is_not(tmp_path: Path) -> None:
    objects = ObjectFolder(tmp_path)
    generations = [
        objects.apply(KEY, spec, retry="token")["metadata"]["generation"] for spec in ({"a": 1}, {"a": 1}, {"a": 2})
    ]
    assert generations == [1, 1, 2]


def test_the_longest_name_that_a_cluster_allows_has_a_file(tmp_path: Path) -> None:
    objects = ObjectFolder(tmp_path)
    longest = Key("default", ".".join(["a" * 63] * 3 + ["b" * 61]))
    objects.apply(longest, {}, retry="")
    stored = objects.read(longest)
    assert stored is not None
    assert stored["metadata"]["name"] == longest.name


@pytest.mark.parametrize("content", [b"a: [b", b"\xff\xfe", b"just text", b"a: 1"])
def test_a_damaged_object_file_is_replaced(tmp_path: Path, content: bytes) -> None:
    objects = ObjectFolder(tmp_path)
    objects.apply(KEY, {}, retry="")
    objects.path(KEY).write_bytes(content)
    assert objects.read(KEY) is None
    assert objects.apply(KEY, {}, retry="")["metadata"]["generation"] == 1


def test_a_concurrent_run_of_an_object_is_refused_with_the_lock_holders_process(tmp_path: Path) -> None:
    async def twice() -> None:
        async with LocalCluster(tmp_path, KEY), LocalCluster(tmp_path, KEY):
            pass

    with pytest.raises(
        ObjectBusy, match=r"team-a/sensor-faults: another run \(process \d+\) is working on this object"
    ):
        asyncio.run(twice())


def test_this_machine_is_the_only_node_of_a_training(tmp_path: Path) -> None:
    async def created() -> list[dict[str, Any]]:
        job = job_of(Stage.TRAIN, NODES)
        job["spec"]["template"]["spec"]["containers"][0]["command"] = ["true"]
        async with LocalCluster(tmp_path, KEY) as cluster:
            await cluster.create_job(job)
            return await cluster.list_jobs({})

    (found,) = asyncio.run(created())

    assert nodes_of(found) == 1
    assert found["spec"]["backoffLimit"] == job_of(Stage.TRAIN)["spec"]["backoffLimit"]


def test_a_lock_that_outlives_its_run_is_distinguished_from_a_concurrent_run(tmp_path: Path) -> None:
    async def twice() -> None:
        async with LocalCluster(tmp_path, KEY) as first:
            first.objects.path(KEY).with_suffix(".lock").write_text("999999999")
            async with LocalCluster(tmp_path, KEY):
                pass

    with pytest.raises(ObjectBusy, match=r"a stage of a killed run .* is still stopping"):
        asyncio.run(twice())


def test_brackets_in_warnings_are_not_markup() -> None:
    console = Console(markup=False, record=True, width=120)
    show_outcome(console, LoraFineTuneStatus(warnings=("see [/v2]/x and [red]y",)), frozenset())
    assert "Warning: see [/v2]/x and [red]y" in console.export_text()


def test_the_speed_of_each_model_is_shown_with_the_machine_that_measured_it() -> None:
    base = ModelSpeed(
        runtime="transformers 5.23.0",
        prompt_tokens_per_second=1234.56,
        generation_tokens_per_second=9.87,
        time_to_first_token_seconds=0.25,
        peak_memory_bytes=1_200_000_000,
        baseline_memory_bytes=700_000_000,
    )
    stopped = ModelSpeed(runtime="transformers", peak_memory_bytes=2_000_000_000, over_memory=True)
    edge = EdgeMeasurement(
        **stopped.model_dump(by_alias=False), cpu="AMD EPYC", threads=2, prompt_tokens=60, new_tokens=32, base=base
    )
    console = Console(markup=False, record=True, width=80)

    show_outcome(console, LoraFineTuneStatus(edge=edge), frozenset())

    text = console.export_text()
    assert "Tokens per second on 2 threads of AMD EPYC, 60-token prompt" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["base", "1,234.6", "9.9", "250", "ms", "1.2", "GB", "700", "MB"] in lines
    assert ["edge", "-", "-", "-", "2.0", "GB", "-"] in lines


def test_the_processes_of_a_training_are_shown_with_their_speed_and_efficiency() -> None:
    together = Parallelism(processes=16, nodes=2, efficiency=0.914)
    metrics = {"steps": 10.0, "loss": 0.5, "tokensPerSecond": 14000.0, "worldSize": 16.0}
    row = StageStatus(name=Stage.TRAIN, state=StageState.SUCCEEDED, metrics=metrics, parallelism=together)
    progress = ProgressStatus(stage=Stage.TRAIN, step=1, total_steps=10, tokens_per_second=13000)
    running = StageStatus(name=Stage.TRAIN, state=StageState.RUNNING, parallelism=together)
    console = Console(markup=False, record=True, width=160)

    show_outcome(console, LoraFineTuneStatus(stages=(row,)), frozenset({Stage.TRAIN}))
    show_outcome(console, LoraFineTuneStatus(stages=(running,), progress=progress), frozenset({Stage.TRAIN}))

    text = console.export_text()
    assert (
        "10 steps, loss 0.500, 16 processes on 2 nodes, 14,000 tokens/s (each process at 91% of one that trains alone)"
        in text
    )
    assert "running, 16 processes on 2 nodes, 13,000 tokens/s" in text


def test_every_edge_format_is_shown_with_its_size_and_scores() -> None:
    sizes = {"edge-bnb-int8": 2_000_000, "edge-gguf-q8_0": 1_000_000}
    artifacts = tuple(
        ArtifactStatus(stage=Stage.QUANTIZE, name=name, uri=f"s3://b/{name}", bytes=size, sha256="0" * 64)
        for name, size in sizes.items()
    )
    details = {"edge": ModelScores(keyword_recall=0.9), "edge-gguf-q8_0": ModelScores(keyword_recall=0.8)}
    status = LoraFineTuneStatus(
        stages=(StageStatus(name=Stage.QUANTIZE, state=StageState.SUCCEEDED),),
        sizes=Sizes(edge_bytes=2_000_000),
        artifacts=artifacts,
        scores=Scores(details=details),
    )
    console = Console(markup=False, record=True, width=120)

    show_outcome(console, status, frozenset())

    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["quantize", "edge-bnb-int8", "2.0", "MB", "already", "done"] in lines
    assert ["edge-gguf-q8_0", "1.0", "MB"] in lines
    assert ["edge", "2.0", "MB", "90.0%", "-", "-"] in lines
    assert ["edge-gguf-q8_0", "1.0", "MB", "80.0%", "-", "-"] in lines

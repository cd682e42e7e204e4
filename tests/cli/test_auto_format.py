"""`quantization: {formats: Auto}` through the command line, with real processes and llama.cpp."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import tiny_data
from support.llama_cpp import packages_of_llama_cpp

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

_LIMIT_SECONDS = 900
_NAME = "tiny-faults"


@dataclass(frozen=True)
class Run:
    """A folder with an object, its data and its base."""

    folder: Path

    def __call__(self, *arguments: str) -> tuple[int, str]:
        """Run the command line with llama.cpp installed; exit code and output."""
        variables = {
            **os.environ,
            "EDGETUNE_HOME": str(self.folder / "home"),
            "PYTHONPATH": str(packages_of_llama_cpp()),
            "COLUMNS": "200",
        }
        done = subprocess.run(
            [sys.executable, "-m", "edgetune_cli", *arguments],
            cwd=self.folder,
            env=variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_LIMIT_SECONDS,
            check=False,
        )
        return done.returncode, done.stdout

    def write_object(self, **evaluation: Any) -> None:
        """An object with formats Auto."""
        document = {
            "apiVersion": "edgetune.dev/v1alpha1",
            "kind": "LoraFineTune",
            "metadata": {"name": _NAME},
            "spec": {
                "baseModel": {"uri": "./base"},
                "dataset": {"train": {"uri": "./train.jsonl"}, "eval": {"uri": "./eval.jsonl"}},
                "training": {"maxSteps": 1, "batchSize": 4, "maxLength": 256, "precision": "FP32", "warmupRatio": 0},
                "quantization": {"formats": "Auto"},
                "evaluation": {"maxNewTokens": 4, **evaluation},
            },
        }
        (self.folder / "object.yaml").write_text(yaml.safe_dump(document))

    def status(self) -> dict[str, Any]:
        document = yaml.safe_load((self.folder / "home" / "objects" / "default" / f"{_NAME}.yaml").read_text())
        found: dict[str, Any] = document["status"]
        return found

    @property
    def model(self) -> Path:
        """The model in the store."""
        return self.folder / "home" / "store" / "default" / "models" / _NAME


@pytest.fixture(scope="module")
def run(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("auto")
    (folder / "base").symlink_to(random_base)
    for name, examples in (
        ("train.jsonl", tiny_data.training_examples(24)),
        ("eval.jsonl", tiny_data.held_out_examples(8)),
    ):
        rows = [
            {"instruction": each.instruction, "response": each.response, "expected_keyword": list(each.keywords)}
            for each in examples
        ]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Run(folder)


def test_the_best_format_that_fits_is_chosen_published_and_pulled(run: Run, tmp_path: Path) -> None:
    run.write_object(edge={"cpu": 1, "memory": "500Mi"}, gates={"maxEdgeBytes": "900000"})

    code, output = run("run", "-f", "object.yaml")

    status = run.status()
    assert code == 0, output
    large = next(each for each in status["candidates"] if each["format"] == "BitsAndBytesInt8")
    assert (large["limits"], large.get("peakMemoryBytes")) == (["maxEdgeBytes"], None)
    (chosen,) = [each for each in status["candidates"] if each.get("chosen")]
    assert chosen["format"].startswith("GGUF-")
    assert status["sizes"]["edgeBytes"] == chosen["bytes"]
    assert status["edge"]["generationTokensPerSecond"] == chosen["tokensPerSecond"]
    table = output[output.index("Candidates") :]
    rows = {line.split()[0]: line.rstrip() for line in table.splitlines() if line.split()}
    assert rows["BitsAndBytesInt8"].endswith("beyond maxEdgeBytes")
    assert rows[chosen["format"]].endswith("chosen")
    document = json.loads((run.model / "latest.json").read_text())
    assert document["furtherEdges"] == []
    assert [each["format"] for each in document["candidates"]] == [each["format"] for each in status["candidates"]]

    code, output = run("pull", (run.model / "latest.json").as_uri(), str(tmp_path / "device"))

    assert code == 0, output
    assert len(list((tmp_path / "device" / "current").rglob("*.gguf"))) == 1


def test_a_tighter_budget_that_none_holds_is_refused_with_what_each_lacks_and_quantizes_nothing_again(run: Run) -> None:
    run.write_object(edge={"cpu": 1, "memory": "20Mi"}, gates={"maxEdgeBytes": "900000"})

    _, planned = run("plan", "-f", "object.yaml")
    code, output = run("run", "-f", "object.yaml")

    status = run.status()
    actions = {line.split()[0]: line.split()[1] for line in planned.splitlines() if len(line.split()) > 1}
    assert (actions["quantize"], actions["evaluate"]) == ("keep", "run"), planned
    assert code == 1, output
    ready = next(each for each in status["conditions"] if each["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "GatesRefused")
    assert any(each["type"] == "Stalled" for each in status["conditions"])
    large = [each for each in status["candidates"] if each["bytes"] > 900_000]
    small = [each for each in status["candidates"] if each["bytes"] <= 900_000]
    assert [each["format"] for each in large] == ["BitsAndBytesInt8", "GGUF-BF16"]
    assert "GGUF-Q8_0" in [each["format"] for each in small]
    for each in large:
        assert each["limits"] == ["maxEdgeBytes"]
        assert f"maxEdgeBytes: {each['format']} has {each['bytes']:,} bytes" in ready["message"]
    for each in small:
        assert each["limits"] == ["edge.memory"]
        assert (
            f"edge.memory: {each['format']} was stopped at {each['peakMemoryBytes']:,} bytes of memory"
            in ready["message"]
        )
    assert "the limit is 20Mi (20,971,520 bytes)" in ready["message"]
    assert "edgeBytes" not in status["sizes"]

"""A finished local run of the demo, whose models benchmarks measure."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from edgetune_contract.pipeline import BASE, EDGE
from edgetune_contract.request import Manifest
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from support.apiserver import REPOSITORY

_EXAMPLE = REPOSITORY / "examples/sensor-faults"


def run_demo(folder: Path) -> Path:
    """Run the demo in a new folder; its work folder."""
    shutil.copytree(_EXAMPLE, folder, ignore=shutil.ignore_patterns(".edgetune"))
    command = [str(Path(sys.executable).with_name("edgetune")), "run", "-f", "lora-fine-tune.yaml"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / ".edgetune"


def demo_parameters() -> Parameters:
    """The demo's, without measurements of edge models."""
    spec: dict[str, Any] = yaml.safe_load((_EXAMPLE / "lora-fine-tune.yaml").read_text(encoding="utf-8"))["spec"]
    places = {name: {"uri": f"s3://demo/{name}.jsonl"} for name in ("train", "eval")}
    evaluation = {name: value for name, value in spec["evaluation"].items() if name != EDGE}
    changes = {"baseModel": {"uri": "s3://demo/base"}, "dataset": {**spec["dataset"], **places}}
    return Parameters.model_validate({**spec, **changes, "evaluation": evaluation})


def demo_inputs(run: Path) -> dict[str, Path]:
    """Inputs of evaluate: the base beside the run, and the artifacts of the newest manifest of each stage."""
    inputs = {BASE: run.parent / "base"}
    for stage in (Stage.PREPARE, Stage.TRAIN, Stage.MERGE, Stage.QUANTIZE):
        found = sorted((run / "store").glob(f"*/stages/{stage}/*/manifest.json"), key=lambda each: each.stat().st_mtime)
        if not found:
            sys.exit(f"{run}: no finished {stage}; name the .edgetune folder of a finished run of the demo")
        result = Manifest.model_validate(json.loads(found[-1].read_text(encoding="utf-8"))).result
        inputs |= {each.name: next(found[-1].parent.glob(f"*/{each.name}")) for each in result.artifacts}
    return inputs

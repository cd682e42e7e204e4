"""The main job through the command line, with real processes: from one YAML to a scored, published INT8 edge model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import tiny_data
from support.signing import make_key, verified_by_model_signing
from support.versitygw import S3Server

pytestmark = pytest.mark.slow

_LIMIT_SECONDS = 300
_NAME = "tiny-faults"


@dataclass(frozen=True)
class Workplace:
    """A folder with an object, its data and its base, and the command line that runs it."""

    folder: Path

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def write_rows(self, name: str, examples: list[tiny_data.Example]) -> None:
        rows = [
            {"instruction": e.instruction, "response": e.response, "expected_keyword": list(e.keywords)}
            for e in examples
        ]
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write_object(self, **spec: Any) -> None:
        document = {
            "apiVersion": "edgetune.dev/v1alpha1",
            "kind": "LoraFineTune",
            "metadata": {"name": _NAME},
            "spec": {
                "baseModel": {"uri": "./base"},
                "dataset": {"train": {"uri": "./train.jsonl"}, "eval": {"uri": "./eval.jsonl"}},
                "lora": {"targetModules": "AllLinear", "dropout": 0},
                "training": {
                    "maxSteps": 200,
                    "batchSize": 16,
                    "microBatchSize": 16,
                    "learningRate": 0.005,
                    "warmupRatio": 0.05,
                    "maxLength": 256,
                    "optimizer": "adamw_torch",
                    "gradientCheckpointing": "Never",
                    "checkpoint": {"everySteps": 50},
                },
                "evaluation": {"maxNewTokens": 24, "gates": {"minScore": 0.85, "maxDrop": 0.05}},
                **spec,
            },
        }
        (self.folder / "object.yaml").write_text(yaml.safe_dump(document))

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "edgetune_cli", *arguments]
        variables = {**os.environ, "EDGETUNE_HOME": str(self.home), "OMP_WAIT_POLICY": "PASSIVE", **(environment or {})}
        return subprocess.Popen(
            command, cwd=self.folder, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
        process = self.start(*arguments, environment=environment)
        output, _ = process.communicate(timeout=_LIMIT_SECONDS)
        return process.returncode, output

    def status(self) -> dict[str, Any]:
        document = yaml.safe_load((self.home / "objects" / "default" / f"{_NAME}.yaml").read_text())
        status: dict[str, Any] = document.get("status", {})
        return status

    def pointer(self) -> bytes:
        return (self.home / "store" / "default" / "models" / _NAME / "latest.json").read_bytes()


def happened(output: str) -> dict[str, str]:
    """The row of each stage in the final table."""
    lines = output[output.index("Stages") :].splitlines()
    words = ("prepare", "train", "merge", "quantize", "evaluate", "publish")
    return {line.split()[0]: line for line in lines if line.split() and line.split()[0] in words}


@pytest.fixture(scope="module")
def workplace(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("workplace"))
    (place.folder / "base").symlink_to(tiny_base)
    place.write_rows("train.jsonl", tiny_data.training_examples(600))
    place.write_rows("eval.jsonl", tiny_data.held_out_examples(64))
    place.write_object()
    return place


def wait_for_step(place: Workplace, step: int) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while time.monotonic() < deadline:
        try:
            progress = place.status().get("progress") or {}
        except (OSError, yaml.YAMLError):
            progress = {}
        if progress.get("stage") == "train" and progress["step"] >= step:
            return
        time.sleep(0.2)
    raise AssertionError(f"training did not reach step {step} in {_LIMIT_SECONDS} s")


def test_ctrl_c_in_training_writes_a_checkpoint_and_a_concurrent_run_of_the_same_object_is_refused(
    workplace: Workplace,
) -> None:
    first = workplace.start("run", "-f", "object.yaml")
    wait_for_step(workplace, 60)

    second_code, second_output = workplace.run("run", "-f", "object.yaml")
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=_LIMIT_SECONDS)

    assert second_code == 3
    assert f"default/{_NAME}: another run (process {first.pid}) is working on this object" in second_output
    assert first.returncode == 130, output
    assert "run the same command again to resume" in output
    assert next(row for row in workplace.status()["stages"] if row["name"] == "train")["preemptions"] == 1
    checkpoints = list((workplace.home / "store" / "default" / "checkpoints").glob("*/step-*/manifest.json"))
    assert max(int(path.parent.name.removeprefix("step-")) for path in checkpoints) >= 60


def test_the_same_command_resumes_from_the_checkpoint_and_publishes_an_edge_model(workplace: Workplace) -> None:
    code, output = workplace.run("run", "-f", "object.yaml")

    status = workplace.status()
    assert code == 0, output
    assert "% of the weights quantized" in happened(output)["quantize"], output
    assert status["phase"] == "Succeeded"
    assert status["scores"]["base"] < 0.2
    assert status["scores"]["tuned"] > 0.85
    assert status["scores"]["edge"] >= status["scores"]["tuned"] - 0.02
    assert status["sizes"]["edgeBytes"] < status["sizes"]["baseBytes"]
    train = next(row for row in status["stages"] if row["name"] == "train")
    assert train["metrics"]["steps"] == 200
    assert json.loads(workplace.pointer())
    assert "Published." in output
    assert "A held-out question" in output


def test_a_second_run_finds_all_stages_done_and_ends_in_seconds(workplace: Workplace) -> None:
    code, output = workplace.run("run", "-f", "object.yaml")

    assert code == 0, output
    assert "All stages were already done" in output
    assert "checked, nothing changed" in happened(output)["prepare"]
    assert all("already done" in happened(output)[stage] for stage in ("train", "merge", "quantize", "evaluate"))


def test_a_key_signs_what_was_published_and_a_device_then_takes_it(workplace: Workplace) -> None:
    key = make_key(workplace.folder / "key")
    document = yaml.safe_load((workplace.folder / "object.yaml").read_text())
    document["metadata"]["annotations"] = {"edgetune.dev/source-revision": "main@sha1:" + "7" * 40}
    (workplace.folder / "object.yaml").write_text(yaml.safe_dump(document))
    before, model = workplace.pointer(), f"home/store/default/models/{_NAME}/latest.json"

    code, output = workplace.run("run", "-f", "object.yaml", "--signing-key", "key/signing.pem")

    assert code == 0, output
    assert workplace.pointer() == before
    code, output = workplace.run("verify", model, "--verify-key", "key/signing.pub")
    assert code == 0, output
    assert f"Signature  valid, by the key {key.keys[0]}\nSource     main@sha1:777" in output
    code, output = workplace.run("pull", model, "device", "--verify-key", "key/signing.pub")
    assert code == 0, output
    folder = (workplace.folder / "device" / "current").resolve()
    signature = folder.with_name(f"{folder.name}.sig")
    assert verified_by_model_signing(folder, signature, key) == (0, "Verification succeeded\n")


def test_a_pin_restores_an_older_version_and_versions_and_verify_report_it(workplace: Workplace) -> None:
    evaluation = {"maxNewTokens": 24, "gates": {"minScore": 0.5}}
    first = json.loads(workplace.pointer())["version"]
    workplace.write_object(evaluation=evaluation)
    assert workplace.run("run", "-f", "object.yaml")[0] == 0
    second = json.loads(workplace.pointer())["version"]
    workplace.write_object(evaluation=evaluation, publish={"pin": first[:12]})

    _, planned = workplace.run("plan", "-f", "object.yaml")
    code, output = workplace.run("run", "-f", "object.yaml")
    _, listed = workplace.run("versions", "-f", "object.yaml")
    verified, report = workplace.run("verify", str(workplace.home / "store" / "default" / "models" / _NAME))
    pinned_at = json.loads(workplace.pointer())["version"]
    workplace.write_object()
    workplace.run("run", "-f", "object.yaml")

    assert planned.startswith(
        f"publish   run    points latest.json at version {first[:12]}, as set by spec.publish.pin"
    )
    assert code == 0, output
    assert f"latest.json names version {first[:12]}, as set by spec.publish.pin" in output
    assert "Edge model:" not in output, "the spec's own edge model is not the pinned one"
    assert pinned_at == first != second
    rows = {line.split()[0]: line for line in listed.splitlines()}
    assert rows[first[:12]].endswith("current, pinned")
    assert not rows[second[:12]].endswith(("current", "pinned"))
    assert verified == 0, report
    assert first in report
    assert "seed             42" in report


def test_an_edit_of_the_evaluation_runs_evaluate_and_publish_only_and_a_refusal_leaves_the_pointer(
    workplace: Workplace,
) -> None:
    before = workplace.pointer()
    workplace.write_object(evaluation={"maxNewTokens": 24, "maxExamples": 16, "gates": {"maxEdgeBytes": "1k"}})
    plan_code, plan_output = workplace.run("plan", "-f", "object.yaml")
    code, output = workplace.run("run", "-f", "object.yaml")

    assert plan_code == 0
    assert "evaluate  run    changed: spec.evaluation" in plan_output
    assert code == 1
    assert all("already done" in happened(output)[stage] for stage in ("train", "merge", "quantize"))
    assert "16 rows per model" in happened(output)["evaluate"]
    assert "refused by the gates" in happened(output)["publish"]
    assert workplace.status()["phase"] == "Refused"
    assert "maxEdgeBytes" in output
    assert workplace.pointer() == before


def test_changed_data_behind_the_same_path_is_noticed_by_the_next_run(workplace: Workplace) -> None:
    workplace.write_rows("train.jsonl", tiny_data.training_examples(600, seed=1))
    with (workplace.folder / "train.jsonl").open("a") as rows:
        rows.write('{"instruction": "broken"\n')
    code, output = workplace.run("run", "-f", "object.yaml")

    assert code == 1
    assert "InvalidInput" in happened(output)["prepare"]
    assert "train.jsonl:601" in output or "line 601" in output, output
    assert "Traceback" not in output


def test_generate_answers_a_held_out_question_with_the_edge_model(workplace: Workplace) -> None:
    edge = next(a for a in workplace.status()["artifacts"] if a["name"] == "edge-bnb-int8")
    question = tiny_data.held_out_examples(1)[0]
    code, output = workplace.run("generate", "--model", edge["uri"], "--prompt", question.instruction)

    assert code == 0, output
    assert all(keyword in output.lower() for keyword in question.keywords)


def test_the_same_object_runs_against_a_bucket(
    workplace: Workplace, s3_server: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    store = {"uri": f"s3://{s3_server.bucket}/{s3_prefix}", "endpoint": s3_server.endpoint, "pathStyle": True}
    profiles = tmp_path / "profiles.yaml"
    profiles.write_text(yaml.safe_dump({"profiles": {"default": {"store": {**store, "region": "us-east-1"}}}}))
    place = Workplace(tmp_path)
    (tmp_path / "base").symlink_to((workplace.folder / "base").resolve())
    place.write_rows("train.jsonl", tiny_data.training_examples(48))
    place.write_rows("eval.jsonl", tiny_data.held_out_examples(4))
    place.write_object(
        training={"maxSteps": 2, "maxLength": 256, "optimizer": "adamw_torch"}, evaluation={"maxNewTokens": 2}
    )
    credentials = {
        "AWS_ACCESS_KEY_ID": s3_server.admin.access_key_id,
        "AWS_SECRET_ACCESS_KEY": s3_server.admin.secret_access_key,
    }
    code, output = place.run("run", "-f", "object.yaml", "--profiles", str(profiles), environment=credentials)

    assert code == 0, output
    pointer = s3_server.object_path(f"{s3_prefix}/default/models/{_NAME}/latest.json")
    edge = json.loads(pointer.read_bytes())["edge"]["artifact"]
    latest = f"{store['uri']}/default/models/{_NAME}/latest.json"
    options = ("--profiles", str(profiles))
    verified, report = place.run("verify", latest, *options, environment=credentials)
    question = ("--prompt", "Sensor log: pump 7.", "--max-new-tokens", "2")
    answered, answer = place.run("generate", "--model", latest, *question, *options, environment=credentials)

    assert verified == 0, report
    found = re.search(r"Verified: \d+ files of ([\d,]+) bytes match their manifest", report)
    assert found is not None, report
    assert int(found[1].replace(",", "")) > edge["bytes"]  # its card and the report of the version too
    assert answered == 0, answer
    assert [path.name for path in (place.home / "models").iterdir()] == [edge["sha256"]]

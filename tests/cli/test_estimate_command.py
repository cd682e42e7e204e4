"""`edgetune estimate`, on a base of zeros and on the manifests of earlier runs."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from edgetune_cli.__main__ import app
from edgetune_contract.digest import manifest_key
from edgetune_contract.request import Manifest
from edgetune_contract.request import Result as StageResult
from edgetune_contract.stages import Stage
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_operator.api.spec_check import parse_spec
from support.base_folder import make_base
from support.builders import lora_fine_tune


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "model")


def document(base: Path, **training: Any) -> dict[str, Any]:
    found = lora_fine_tune().with_spec("training", {"maxLength": 256, "batchSize": 4, **training}).build()
    found["metadata"] = {"name": "sensor-faults", "namespace": "team-a"}
    found["spec"]["baseModel"] = {"uri": base.as_uri()}
    return dict(found)


def estimate(folder: Path, written: dict[str, Any], *options: str) -> Result:
    (folder / "object.yaml").write_text(yaml.safe_dump(written))
    arguments = ["estimate", "-f", str(folder / "object.yaml"), "--workdir", str(folder / "home"), *options]
    return CliRunner().invoke(app, arguments, catch_exceptions=False)


def store_run(folder: Path, written: dict[str, Any], stage: Stage, device: str = "", **metrics: float) -> None:
    store = LocalFolderStore((folder / "home" / "store" / "team-a").as_uri())
    digest = f"{len(list(folder.rglob('manifest.json'))):064x}"
    manifest = Manifest(
        result=StageResult(stage=stage, digest=digest, metrics=metrics, facts={"device": device} if device else {}),
        created_at="2026-11-27T12:00:00Z",
        parameters=parse_spec(written["spec"]).parameters.model_dump(mode="json", exclude_none=True),
    )
    store.put(manifest_key(stage, digest), manifest.model_dump_json(exclude_none=True).encode())


def test_without_an_earlier_run_examples_are_as_long_as_allowed_and_no_time_is_known(
    tmp_path: Path, base: Path
) -> None:
    done = estimate(tmp_path, document(base))

    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("LlamaForCausalLM with 4,")
    assert lines[2] == "every example counts as 256 tokens (spec.training.maxLength)"
    assert [line.split()[0] for line in lines[4:13]] == [
        "GPU", "base", "dequantized", "adapter", "optimizer", "activations", "logits", "libraries", "total",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines if line.endswith("no layer is recomputed")] == [
        f"{size}.0" for size in (16, 24, 40, 48, 80, 141)
    ]
    assert lines[-1].startswith("Time: not known, because no run has prepared this data in file://")
    assert not (tmp_path / "home" / "objects").exists()


def test_torch_is_imported_in_the_child_process_only(tmp_path: Path, base: Path) -> None:
    """The import takes most of the command's time."""
    (tmp_path / "object.yaml").write_text(yaml.safe_dump(document(base)))
    arguments = ["estimate", "-f", str(tmp_path / "object.yaml"), "--workdir", str(tmp_path / "home"), "-o", "json"]
    code = (
        "import sys; from edgetune_cli.__main__ import app\n"
        f"app({arguments}, standalone_mode=False)\n"
        "sys.exit('torch' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["activations"] == "measured"


def test_earlier_runs_give_the_tokens_and_the_time_on_each_device(tmp_path: Path, base: Path) -> None:
    written = document(base, epochs=2)
    store_run(tmp_path, written, Stage.PREPARE, trainExamples=100, trainTokens=9000, tokensMax=300)
    store_run(tmp_path, written, Stage.TRAIN, "NVIDIA H100 80GB HBM3", tokensPerSecond=10.0)
    store_run(tmp_path, written, Stage.TRAIN, "cpu", tokensPerSecond=1.0)
    store_run(tmp_path, document(base.parent), Stage.TRAIN, "NVIDIA L4", tokensPerSecond=1.0)

    done = estimate(tmp_path, written, "-o", "json")

    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["rows"] == {"examples": 100, "tokens": 9000, "longest": 256}
    assert found["time"] == [
        {
            "device": "NVIDIA H100 80GB HBM3",
            "tokensPerSecond": 10.0,
            "tokens": 18000,
            "seconds": 1800,
            "gpus": 1,
            "gpuHours": 0.5,
        },
        {"device": "cpu", "tokensPerSecond": 1.0, "tokens": 18000, "seconds": 18000},
    ]
    assert [row["microBatchSize"] for row in found["microBatches"]] == [1, 2, 4]
    assert all(row["bytesAllLayersRecomputed"] < row["bytes"] for row in found["microBatches"])
    assert found["leastBytes"]["total"] == found["microBatches"][0]["bytesAllLayersRecomputed"]
    assert found["refusedBelowBytes"] == found["leastBytes"]["total"] - 2**29


def test_the_prices_of_the_profile_give_the_cost(tmp_path: Path, base: Path) -> None:
    written = document(base, epochs=2)
    store_run(tmp_path, written, Stage.PREPARE, trainExamples=100, trainTokens=9000, tokensMax=300)
    store_run(tmp_path, written, Stage.TRAIN, "NVIDIA H100 80GB HBM3", tokensPerSecond=10.0)
    store = {"uri": (tmp_path / "home" / "store").as_uri()}
    profiles = tmp_path / "profiles.yaml"
    prices = {"currency": "EUR", "gpuHour": 3}
    profiles.write_text(yaml.safe_dump({"profiles": {"default": {"store": store, "prices": prices}}}))

    done = estimate(tmp_path, written, "--profiles", str(profiles))

    assert "Time: about 1,800 s, 0.50 GPU-hours, 1.50 EUR for 18,000 tokens at 10 tokens/s" in done.stdout


@pytest.mark.parametrize(
    ("ranks", "training", "time"),
    [
        ({}, {"gpus": 4}, "450 s on 4 GPUs, 0.50 GPU-hours, 1.50 EUR for 18,000 tokens at 10 tokens/s on each"),
        ({"worldSize": 2}, {"gpus": 1}, "3,600 s, 1.00 GPU-hours, 3.00 EUR for 18,000 tokens at 5 tokens/s"),
        ({"worldSize": 2}, {}, "1,800 s on 2 GPUs, 1.00 GPU-hours, 3.00 EUR for 18,000 tokens at 5 tokens/s on each"),
    ],
    ids=["on one before", "on two before", "as many as the profile gives"],
)
def test_the_gpu_hours_count_every_gpu_of_the_earlier_run(
    tmp_path: Path, base: Path, ranks: dict[str, float], training: dict[str, int], time: str
) -> None:
    written = document(base, epochs=2, **training)
    store_run(tmp_path, written, Stage.PREPARE, trainExamples=100, trainTokens=9000, tokensMax=300)
    store_run(tmp_path, written, Stage.TRAIN, "NVIDIA L4", tokensPerSecond=10.0, **ranks)
    profile = {
        "store": {"uri": (tmp_path / "home" / "store").as_uri()},
        "resources": {"train": {"limits": {"nvidia.com/gpu": 2}}},
        "maxGpus": 4,
        "prices": {"currency": "EUR", "gpuHour": 3},
    }
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"profiles": {"default": profile}}))

    done = estimate(tmp_path, written, "--profiles", str(tmp_path / "profiles.yaml"))

    assert f"Time: about {time}, as last measured on NVIDIA L4" in done.stdout.splitlines()


def test_steps_count_instead_of_epochs_if_they_are_set(tmp_path: Path, base: Path) -> None:
    written = document(base, maxSteps=5)
    store_run(tmp_path, written, Stage.PREPARE, trainExamples=100, trainTokens=9000, tokensMax=200)
    store_run(tmp_path, written, Stage.TRAIN, "cpu", tokensPerSecond=1.0)

    assert "Time: about 1,800 s for 1,800 tokens at 1 tokens/s, as last measured on cpu" in (
        estimate(tmp_path, written).stdout
    )


def test_what_cannot_fit_into_the_gpu_is_said_with_exit_code_1(tmp_path: Path, base: Path) -> None:
    done = estimate(tmp_path, document(base), "--gpu-memory", "500Mi")

    assert done.exit_code == 1
    assert "spec.training needs at least 0.5 GiB of GPU memory for examples of 256 tokens" in done.stderr
    assert "the GPU has 0.5 GiB (--gpu-memory): use a profile whose GPU has 16 GiB or more" in done.stderr
    assert "CUDA's libraries 0.5 GiB), and the GPU has" in done.stderr
    least = re.search(r"^CUDA's libraries take less on some GPUs: .* is refused below (\S+) GiB$", done.stdout, re.M)
    assert least is not None
    assert float(least[1]) == pytest.approx(0.5, abs=0.05), "as the message says"


@pytest.mark.parametrize(
    ("uri", "options", "reason"),
    [
        ("model", ("--gpu-memory", "24 GB"), "--gpu-memory: '24 GB' is not a valid size"),
        ("gone", (), "spec.baseModel.uri: file://"),
    ],
)
def test_unusable_input_is_refused_without_a_traceback(
    tmp_path: Path, base: Path, uri: str, options: tuple[str, ...], reason: str
) -> None:
    done = estimate(tmp_path, document(base.parent / uri), *options)

    assert (done.exit_code, "Traceback" in done.stderr) == (2, False)
    assert done.stderr.startswith(reason)


def test_no_file_of_the_base_is_hashed(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing would read every weight."""

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr("edgetune_jobs.store.sources.source.fingerprint", refuse)

    assert estimate(tmp_path, document(base)).exit_code == 0

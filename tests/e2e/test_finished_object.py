"""The README's promise: an applied object becomes a scored edge model in S3."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import playground
from cluster.node import ACCELERATOR
from edgetune_contract import digest
from edgetune_contract.request import FileEntry, Manifest
from edgetune_contract.stages import Stage
from edgetune_jobs.store.files import file_list_digest, fingerprint, list_files
from edgetune_jobs.store.s3.client import split_uri
from support.kube import Document, Kube, condition
from support.live_object import LiveObject
from support.tiny_inputs import BASE_KEY, tiny_fine_tune
from support.versitygw import S3Server

from .conftest import Durations, InstalledOperator

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("unsteady_run")]


@pytest.fixture(scope="module")
def finished(
    kube: Kube, s3: S3Server, namespace: str, operator: InstalledOperator, durations: Durations
) -> Iterator[LiveObject]:
    """An applied object, after its run has ended."""
    del operator  # only required to be installed
    applied = LiveObject.apply(kube, tiny_fine_tune(s3, namespace))
    with durations.timed("from apply to the end"):
        status = applied.wait_for_end()
    for row in status["stages"]:
        durations.add(f"stage {row['name']}", row.get("seconds", 0))
    yield applied
    applied.delete()


def test_an_applied_object_ends_as_a_scored_edge_model(finished: LiveObject) -> None:
    status = finished.status()
    assert status["phase"] == "Succeeded", status["conditions"]
    assert (condition({"status": status}, "Ready") or {}).get("status") == "True", status["conditions"]
    assert [row["state"] for row in status["stages"]] == ["Succeeded"] * len(Stage)

    scores = status["scores"]
    assert set(scores) >= {"base", "tuned", "merged", "edge"}
    assert scores["tuned"] > scores["base"] + 0.3, "the tiny model learns its task"
    assert scores["edge"] > scores["tuned"] - 0.2, "INT8 costs little"
    sizes = status["sizes"]
    assert 0 < sizes["adapterBytes"] < sizes["edgeBytes"] < sizes["baseBytes"]


def test_every_pod_runs_under_pod_security_restricted(kube: Kube, finished: LiveObject) -> None:
    pods = [*finished.kube.list("v1", "Pod", finished.namespace), *kube.list("v1", "Pod", playground.RELEASE_NAMESPACE)]

    assert {pod["metadata"]["labels"].get("edgetune.dev/stage") for pod in pods} == {None, *map(str, Stage)}
    for name in {pod["metadata"]["namespace"] for pod in pods}:
        found = kube.get("v1", "Namespace", None, name)
        assert found is not None
        assert found["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
        assert "violates PodSecurity" in _root_pod_refused(kube, name), "the API server enforces the label"


def test_only_training_requests_the_accelerators_of_the_node(kube: Kube, finished: LiveObject) -> None:
    assert [node["status"]["allocatable"].get(ACCELERATOR) for node in kube.list("v1", "Node")] == ["2"]

    requested = {
        stage: finished.pods(stage)[0]["spec"]["containers"][0]["resources"]["limits"].get(ACCELERATOR)
        for stage in Stage
    }
    assert requested == {**dict.fromkeys(Stage), Stage.TRAIN: "1"}


def test_the_store_has_the_files_in_each_manifest(s3: S3Server, finished: LiveObject) -> None:
    status = finished.status()
    store = f"artifacts/{finished.namespace}"
    for row in status["stages"]:
        stage = Stage(row["name"])
        manifest = _manifest(s3, f"{store}/{digest.manifest_key(stage, _digest_of(status, stage))}")
        for entry in manifest.files:
            path = s3.object_path(f"{store}/{digest.stage_key(stage, manifest.result.digest)}/{entry.path}")
            found = fingerprint(path)
            assert (found.bytes, found.sha256) == (entry.bytes, entry.sha256), entry.path
        digests = {each["name"]: each["sha256"] for each in status["artifacts"] if each["stage"] == stage}
        assert digests == {artifact.name: artifact.sha256 for artifact in manifest.result.artifacts}


@pytest.fixture(scope="module")
def downloaded(s3: S3Server, finished: LiveObject, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the base and of all artifacts by name, downloaded by an S3 client."""
    root = tmp_path_factory.mktemp("downloaded")
    uris = {artifact["name"]: artifact["uri"] for artifact in finished.status()["artifacts"]}
    uris["base"] = f"s3://{s3.bucket}/{BASE_KEY}"
    return {name: _download(s3, uri, root / name) for name, uri in uris.items()}


def test_every_artifact_has_the_digest_in_the_status(finished: LiveObject, downloaded: dict[str, Path]) -> None:
    artifacts = {artifact["name"]: artifact for artifact in finished.status()["artifacts"]}
    assert set(artifacts) >= {"adapter", "merged", "edge-bnb-int8"}
    for name, artifact in artifacts.items():
        entries = _entries(downloaded[name])
        assert file_list_digest(entries) == artifact["sha256"], name
        assert sum(entry.bytes for entry in entries) == artifact["bytes"], name


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks transformers for it
def test_adapter_merged_and_edge_model_load_with_from_pretrained_and_answer(downloaded: dict[str, Path]) -> None:
    from peft import PeftModel
    from safetensors import safe_open
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = {name: AutoModelForCausalLM.from_pretrained(downloaded[name]) for name in ("merged", "edge-bnb-int8")}
    base = AutoModelForCausalLM.from_pretrained(downloaded["base"])
    loaded["adapter"] = PeftModel.from_pretrained(base, downloaded["adapter"])
    assert loaded["edge-bnb-int8"].is_loaded_in_8bit
    with safe_open(downloaded["edge-bnb-int8"] / "model.safetensors", framework="pt") as stored:
        assert "I8" in {stored.get_slice(name).get_dtype() for name in stored.keys()}  # noqa: SIM118 - it is no mapping

    for name, model in loaded.items():
        tokenizer = AutoTokenizer.from_pretrained(downloaded["base" if name == "adapter" else name])
        question = tokenizer("### Instruction:\n", return_tensors="pt")
        answer = model.generate(**question, max_new_tokens=8, do_sample=False)
        assert answer.shape[-1] > question["input_ids"].shape[-1], name


def _root_pod_refused(kube: Kube, namespace: str) -> str:
    """The API server's refusal of a Pod that runs as root."""
    container = {"name": "root", "image": "root", "securityContext": {"runAsUser": 0}}
    pod: Document = {"metadata": {"name": "root", "namespace": namespace}, "spec": {"containers": [container]}}
    reply = kube.request("POST", f"{kube.path('v1', 'Pod', namespace)}?dryRun=All", pod)
    assert reply.code == 403
    return reply.message


def _digest_of(status: Document, stage: Stage) -> str:
    """Digest in the key of a stage's manifest: prepare's is a digest of the content, not of the URIs in the spec."""
    row: dict[str, Any] = next(row for row in status["stages"] if row["name"] == stage)
    if stage is not Stage.PREPARE:
        return str(row["digest"])
    prepared = next(artifact["uri"] for artifact in status["artifacts"] if artifact["stage"] == stage)
    return str(prepared.split(f"stages/{stage}/")[1].partition("/")[0])


def _manifest(server: S3Server, key: str) -> Manifest:
    answer = server.client().get_object(Bucket=server.bucket, Key=key)
    return Manifest.model_validate_json(answer["Body"].read())


def _download(server: S3Server, uri: str, folder: Path) -> Path:
    bucket, prefix = split_uri(uri)
    client = server.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
        for entry in page["Contents"]:
            target = folder / entry["Key"].removeprefix(f"{prefix}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, entry["Key"], str(target))
    return folder


def _entries(folder: Path) -> list[FileEntry]:
    contents = {path: fingerprint(folder / path) for path in list_files(folder)}
    return [FileEntry(path=path, bytes=found.bytes, sha256=found.sha256) for path, found in contents.items()]

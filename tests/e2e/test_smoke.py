"""The way that the README promises: an object is applied, and ends as a scored edge model in S3."""

import time
from pathlib import Path

import pytest

from edgetune_contract.request import FileEntry
from edgetune_contract.stages import Stage
from edgetune_jobs.files import file_list_digest, fingerprint, list_files
from edgetune_jobs.s3_client import split_uri
from edgetune_operator import names
from support.kube import Document, Kube, condition
from support.tiny_inputs import tiny_fine_tune, upload_tiny_inputs
from support.versitygw import S3Server

from .conftest import Durations, InstalledOperator

_END_LIMIT_SECONDS = 480
pytestmark = pytest.mark.e2e


@pytest.fixture
def finished(
    kube: Kube, s3: S3Server, namespace: str, operator: InstalledOperator, tmp_path: Path, durations: Durations
) -> Document:
    """An object that was applied, after its run has ended."""
    upload_tiny_inputs(s3, tmp_path)
    begun = time.monotonic()
    applied = kube.apply(tiny_fine_tune(s3, namespace))
    name = applied["metadata"]["name"]
    try:
        found = kube.wait(
            names.API_VERSION, names.KIND, namespace, name, _has_ended, "the run has ended", _END_LIMIT_SECONDS
        )
    except TimeoutError:
        print(operator.log())
        raise
    durations.add("from apply to the end", time.monotonic() - begun)
    for row in found["status"]["stages"]:
        durations.add(f"stage {row['name']}", row.get("seconds", 0))
    return found


def test_an_applied_object_ends_as_a_scored_edge_model_in_s3(s3: S3Server, finished: Document, tmp_path: Path) -> None:
    status = finished["status"]
    assert status["phase"] == "Succeeded", status["conditions"]
    assert (condition(finished, "Ready") or {}).get("status") == "True", status["conditions"]
    assert [row["state"] for row in status["stages"]] == ["Succeeded"] * len(Stage)

    scores = status["scores"]
    assert set(scores) >= {"base", "tuned", "merged", "edge"}
    assert scores["tuned"] > scores["base"] + 0.3, "the tiny model learns its task"
    assert scores["edge"] > scores["tuned"] - 0.2, "INT8 costs little"
    sizes = status["sizes"]
    assert 0 < sizes["adapterBytes"] < sizes["edgeBytes"] < sizes["baseBytes"]

    for artifact in status["artifacts"]:
        folder = _download(s3, artifact["uri"], tmp_path / artifact["name"])
        assert _digest(folder) == artifact["sha256"], artifact["name"]


def _has_ended(found: Document) -> bool:
    return (found.get("status") or {}).get("phase") in ("Succeeded", "Failed", "Refused")


def _download(server: S3Server, uri: str, folder: Path) -> Path:
    bucket, prefix = split_uri(uri)
    client = server.client()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
        for entry in page["Contents"]:
            target = folder / entry["Key"].removeprefix(f"{prefix}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(bucket, entry["Key"], str(target))
    return folder


def _digest(folder: Path) -> str:
    entries = []
    for path in list_files(folder):
        content = fingerprint(folder / path)
        entries.append(FileEntry(path=path, bytes=content.bytes, sha256=content.sha256))
    return file_list_digest(entries)

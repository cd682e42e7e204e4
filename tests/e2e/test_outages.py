"""An S3 server that is down for half a minute in each stage."""

import pytest

from edgetune_contract import digest
from edgetune_contract.request import Manifest
from edgetune_contract.stages import Stage
from support.kube import Document
from support.outages import OutageInEachStage
from support.versitygw import S3Server

from .conftest import Durations

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def status(unsteady_run: OutageInEachStage, durations: Durations) -> Document:
    """Status of the object after its run has ended."""
    with durations.timed("waiting for the run with an outage in each stage"):
        return unsteady_run.wait_for_end()


def test_a_run_survives_an_outage_in_each_stage(unsteady_run: OutageInEachStage, status: Document) -> None:
    assert status["phase"] == "Succeeded", status
    assert unsteady_run.cut == list(Stage)
    assert status["scores"]["edge"] > status["scores"]["base"]


def test_an_outage_costs_few_attempts(status: Document) -> None:
    attempts = {row["name"]: row["attempts"] for row in status["stages"]}
    assert all(count <= 3 for count in attempts.values()), attempts  # retryLimit is 3: four attempts


def test_an_outage_leaves_no_stray_files(s3: S3Server, unsteady_run: OutageInEachStage, status: Document) -> None:
    del status  # the run has ended
    root = f"artifacts/{unsteady_run.object.namespace}"
    client = s3.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=s3.bucket, Prefix=f"{root}/")
    keys = {entry["Key"].removeprefix(f"{root}/") for page in pages for entry in page.get("Contents", ())}
    manifests = {key for key in keys if key.startswith("stages/") and key.endswith(f"/{digest.MANIFEST}")}
    assert {key.split("/")[1] for key in manifests} == set(Stage)

    kept = set(manifests)
    for key in manifests:
        answer = client.get_object(Bucket=s3.bucket, Key=f"{root}/{key}")
        manifest = Manifest.model_validate_json(answer["Body"].read())
        kept |= {f"{key.removesuffix(digest.MANIFEST)}{entry.path}" for entry in manifest.files}
    stray = {key for key in keys - kept if not key.startswith(("models/", "scores/", "uses/"))}
    assert stray == set()
    assert not client.list_multipart_uploads(Bucket=s3.bucket, Prefix=f"{root}/").get("Uploads")

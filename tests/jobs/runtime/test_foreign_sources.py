"""Stages of two namespaces over a real S3 server, with one key that can read the whole bucket."""

import json
from pathlib import Path

import pytest

from edgetune_contract.digest import prepare_digest
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import ExitCode, Stage
from support.fault_proxy import FaultProxy
from support.stage_runs import Ended, StageRuns
from support.versitygw import S3Server, credentials_folder

ROWS = b'{"instruction": "a", "response": "b"}\n'


@pytest.fixture
def runs(s3_server: S3Server, s3_proxy: FaultProxy, s3_prefix: str, tmp_path: Path) -> StageRuns:
    """Runs of team-a; team-a, team-b and a folder outside of the store have the same base and rows."""
    for folder in (f"{s3_prefix}/team-a/inputs", f"{s3_prefix}/team-b/inputs", f"{s3_prefix}-inputs"):
        for path, content in {"base/config.json": b"{}", "base/model.safetensors": b"w", "rows.jsonl": ROWS}.items():
            s3_server.client().put_object(Bucket=s3_server.bucket, Key=f"{folder}/{path}", Body=content)
    return StageRuns(
        folder=tmp_path,
        store=s3_server.location(f"{s3_prefix}/team-a", s3_proxy.endpoint),
        parameters=parameters(f"s3://{s3_server.bucket}/{s3_prefix}-inputs"),
        credentials_folder=credentials_folder(tmp_path, s3_server.admin),
    )


def parameters(base: str, data: str = "") -> Parameters:
    return Parameters.model_validate(
        {"baseModel": {"uri": f"{base}/base"}, "dataset": {"train": {"uri": f"{data or base}/rows.jsonl"}}}
    )


def in_store(runs: StageRuns, folder: str) -> str:
    return f"{runs.store.uri.removesuffix('/team-a')}/{folder}/inputs"


def refusal(ended: Ended) -> str:
    assert (ended.exit_code, ended.result.failure is None) == (ExitCode.INVALID, False)
    return ended.failure


def test_stages_read_outside_of_the_store_and_in_their_own_folder(runs: StageRuns) -> None:
    runs.run_up_to(Stage.PREPARE)

    runs.parameters = parameters(in_store(runs, "team-a"))
    runs.run_up_to(Stage.PREPARE)


@pytest.mark.parametrize("field", ["spec.baseModel.uri", "spec.dataset.train.uri"])
def test_prepare_reads_nothing_of_another_namespace_although_its_key_could(
    runs: StageRuns, s3_proxy: FaultProxy, field: str
) -> None:
    own, foreign = in_store(runs, "team-a"), in_store(runs, "team-b")
    runs.parameters = parameters(foreign, own) if field == "spec.baseModel.uri" else parameters(own, foreign)

    ended = runs.run(Stage.PREPARE)

    assert refusal(ended).startswith(f"{field}: {foreign}/")
    assert "may only read" in refusal(ended)
    assert s3_proxy.requests == []


def test_later_stages_check_again(runs: StageRuns, s3_proxy: FaultProxy) -> None:
    runs.run_up_to(Stage.PREPARE)
    runs.parameters = parameters(in_store(runs, "team-b"))
    s3_proxy.requests.clear()

    assert "is in the store" in refusal(runs.run(Stage.TRAIN))
    assert s3_proxy.requests == []


def test_stages_check_the_list_of_the_profile(runs: StageRuns) -> None:
    request = runs.request(Stage.PREPARE, allowed_sources=("s3://models/*",)).encode()

    ended = runs.start(Stage.PREPARE, request).wait()

    assert "is not a source that the profile allows (s3://models/*)" in refusal(ended)


@pytest.mark.parametrize("detour", ["x/../../team-b/inputs", ".//../team-b/inputs", "%2e%2e/team-b/inputs"])
def test_a_request_with_a_detour_is_invalid(runs: StageRuns, s3_proxy: FaultProxy, detour: str) -> None:
    request = json.loads(runs.request(Stage.PREPARE).encode())
    request["parameters"]["baseModel"]["uri"] = f"{runs.store.uri}/{detour}/base"
    request["digest"] = prepare_digest(runs.parameters)

    ended = runs.start(Stage.PREPARE, json.dumps(request)).wait()

    assert "uri must not have empty segments, the segments . and .., or encoded characters" in refusal(ended)
    assert s3_proxy.requests == []

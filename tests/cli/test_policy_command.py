"""`edgetune policy`: the printed rights on a real S3 server, where they are enough for stages and for nothing else."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.binaries import binary
from edgetune_cli.__main__ import app
from edgetune_cli.store.drafting.policy import LIST_ACTION, OBJECT_ACTIONS, UPLOADS_ACTION
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import AccessDenied
from edgetune_jobs.store.s3 import client as s3_client
from edgetune_jobs.store.s3.client import Credentials
from edgetune_jobs.store.s3.store import S3Store
from support.stage_runs import StageRuns
from support.versitygw import S3Server, credentials_folder, running_server

ARN = "arn:aws:s3:::"


def print_policy(folder: Path, values: dict[str, Any], *options: str) -> dict[str, Any]:
    path = folder / "values.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    done = CliRunner().invoke(app, ["policy", "--namespace", "team-a", "--profiles", str(path), *options])
    assert done.exit_code == 0, done.output
    policy: dict[str, Any] = json.loads(done.stdout)
    return policy


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server of its own: bucket policies are not shared with other tests."""
    with running_server(tmp_path_factory.mktemp("policies") / "server") as server:
        for key in ("models/base/config.json", "models/base/model.safetensors", "private/x", "edgetune/team-b/x"):
            server.client().put_object(Bucket=server.bucket, Key=key, Body=b"{}")
        row = b'{"instruction": "a", "response": "b"}\n'
        server.client().put_object(Bucket=server.bucket, Key="data/rows.jsonl", Body=row)
        yield server


@pytest.fixture(scope="module")
def key(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Credentials:
    """The key of a user who has the rights of the policy, and no others."""
    user = Credentials("team-a", "team-a-secret")
    command = [str(binary("versitygw")), "admin", "--access", server.admin.access_key_id]
    command += ["--secret", server.admin.secret_access_key, "--endpoint-url", server.endpoint, "create-user"]
    command += ["--access", user.access_key_id, "--secret", user.secret_access_key, "--role", "user"]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    store = {"uri": f"s3://{server.bucket}/edgetune", "endpoint": server.endpoint, "pathStyle": True}
    sources = [f"s3://{server.bucket}/models/*", f"s3://{server.bucket}/data/rows.jsonl", "hf://*"]
    values = {"profiles": {"default": {"store": store, "sources": sources}}, "replicas": 2}
    policy = print_policy(tmp_path_factory.mktemp("values"), values)
    # This server has no policies of users: a policy of the bucket has the same statements, for one user.
    statements = [{**each, "Principal": {"AWS": [user.access_key_id]}} for each in policy["Statement"]]
    policy = {**policy, "Statement": statements}
    server.client().put_bucket_policy(Bucket=server.bucket, Policy=json.dumps(policy))
    return user


def test_every_stage_runs_with_these_rights(server: S3Server, key: Credentials, tmp_path: Path) -> None:
    data = {"train": {"uri": f"s3://{server.bucket}/data/rows.jsonl"}}
    base = {"uri": f"s3://{server.bucket}/models/base"}
    runs = StageRuns(
        folder=tmp_path,
        store=server.location("edgetune/team-a"),
        parameters=Parameters.model_validate({"baseModel": base, "dataset": data}),
        credentials_folder=credentials_folder(tmp_path, key),
        environment={"EDGETUNE_TEST_ARTIFACT_BYTES": str(66 * 2**20)},  # more than one part of an upload
    )

    runs.run_up_to(Stage.PUBLISH)

    store = S3Store(runs.store.uri, server.client(credentials=key))
    assert [found.key for found in store.list("models")] != []
    store.delete_tree("stages")
    assert list(store.list("stages")) == []
    assert store.read("models/none.json") is None


@pytest.mark.parametrize("prefix", ["", "edgetune/", "edgetune/team-b/", "edgetune/team", "private/", "data/"])
def test_nothing_else_is_listed(server: S3Server, key: Credentials, prefix: str) -> None:
    with pytest.raises(Exception, match="AccessDenied"):
        server.client(credentials=key).list_objects_v2(Bucket=server.bucket, Prefix=prefix)


@pytest.mark.parametrize("name", ["edgetune/team-b/x", "edgetune/team-b/none", "private/x", "data/other.jsonl"])
def test_nothing_else_is_read_or_written(server: S3Server, key: Credentials, name: str) -> None:
    folder, _, file = name.rpartition("/")
    store = S3Store(f"s3://{server.bucket}/{folder}", server.client(credentials=key))

    for refused in (store.read, store.delete, lambda file: store.put(file, b"")):
        with pytest.raises(AccessDenied):
            refused(file)


@pytest.mark.parametrize("name", ["models/base/config.json", "data/rows.jsonl"])
def test_sources_are_not_written(server: S3Server, key: Credentials, name: str) -> None:
    with pytest.raises(AccessDenied):
        S3Store(f"s3://{server.bucket}", server.client(credentials=key)).put(name, b"")


def test_the_rights_are_those_that_errors_about_missing_ones_name() -> None:
    assert {*OBJECT_ACTIONS, LIST_ACTION, UPLOADS_ACTION} == set(s3_client._PERMISSIONS.values())


def test_the_policy_of_a_store_with_its_own_bucket_and_of_all_sources(tmp_path: Path) -> None:
    values = {"profiles": {"big": {"store": {"uri": "s3://artifacts"}, "sources": ["s3://*", "s3://models/llama/"]}}}

    policy = print_policy(tmp_path, values, "--profile", "big")

    assert policy["Statement"] == [
        {"Effect": "Allow", "Action": list(OBJECT_ACTIONS), "Resource": f"{ARN}artifacts/team-a/*"},
        {
            "Effect": "Allow",
            "Action": LIST_ACTION,
            "Resource": f"{ARN}artifacts",
            "Condition": {"StringLike": {"s3:prefix": ["team-a/*"]}},
        },
        {"Effect": "Allow", "Action": UPLOADS_ACTION, "Resource": f"{ARN}artifacts"},
        {
            "Effect": "Allow",
            "Action": "s3:GetObject",
            "Resource": [f"{ARN}*/*", f"{ARN}models/llama", f"{ARN}models/llama/*"],
        },
        {"Effect": "Allow", "Action": LIST_ACTION, "Resource": f"{ARN}*"},
        {
            "Effect": "Allow",
            "Action": LIST_ACTION,
            "Resource": f"{ARN}models",
            "Condition": {"StringLike": {"s3:prefix": ["llama", "llama/*"]}},
        },
    ]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "there is no profiles.default; name another one with --profile"),
        (
            {"profiles": {"default": {"store": {"uri": "file:///x"}}}},
            "profiles.default.store.uri: file:///x is no bucket",
        ),
        ({"profiles": {"default": {}}}, "profiles.default.store: Field required"),
    ],
)
def test_a_file_without_a_usable_profile_is_refused(tmp_path: Path, values: dict[str, Any], problem: str) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")

    done = CliRunner().invoke(app, ["policy", "-n", "team-a", "--profiles", str(path)])

    assert (done.exit_code, problem in done.output) == (2, True), done.output

"""`edgetune promote` from the bucket of one user to that of another, and `edgetune verify` of what it made."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from edgetune_cli.__main__ import app
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.s3.client import Credentials
from edgetune_jobs.store.s3.store import S3Store
from support.published import MODEL, PublishedModel
from support.versitygw import S3Server, allow, create_user, credentials_folder

OWNER = Credentials("owner-of-prod", "owner-secret")
BUCKET = "promoted-models"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_a_version_goes_from_one_bucket_to_another_with_a_key_for_each(
    s3_server: S3Server, s3_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_user(s3_server, OWNER)
    s3_server.client().create_bucket(Bucket=BUCKET)
    objects = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"]
    allow(s3_server, BUCKET, OWNER, objects=objects, bucket_actions=["s3:ListBucket"])
    source, target = f"s3://{s3_server.bucket}/{s3_prefix}", f"s3://{BUCKET}/{s3_prefix}"
    document = PublishedModel(S3Store(f"{source}/team-a", s3_server.client()), tmp_path / "local").publish_run()
    service = {"endpoint": s3_server.endpoint, "pathStyle": True, "region": "us-east-1"}
    profiles = {name: {"store": {"uri": uri, **service}} for name, uri in (("dev", source), ("prod", target))}
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"profiles": profiles}))
    known = ("--profiles", str(tmp_path / "profiles.yaml"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.reader.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader.secret_access_key)
    promote = ("promote", f"{source}/team-a/models/{MODEL}", f"{target}/team-b", *known)

    denied = run(*promote)
    done = run(*promote, "--to-credentials", str(credentials_folder(tmp_path, OWNER)))

    assert (denied.exit_code, "denied" in denied.stderr.lower()) == (2, True)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(
        f"{target}/team-b/models/{MODEL}/latest.json names version {document.version[:12]}: 7 files, "
    )
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", OWNER.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", OWNER.secret_access_key)
    verified = run("verify", f"{target}/team-b/models/{MODEL}", *known)
    assert verified.exit_code == 0, verified.stdout
    rows = [line.split() for line in verified.stdout.splitlines() if line.endswith((" whole", " missing"))]
    assert [(row[0], row[-1]) for row in rows] == [
        (stage, "whole") for stage in ("prepare", "train", "merge", "quantize", "evaluate", "publish")
    ]


def test_verify_says_what_a_copy_by_hand_lacks(tmp_path: Path) -> None:
    store = LocalFolderStore((tmp_path / "dev").as_uri())
    PublishedModel(store, tmp_path / "local").publish_run()
    store.delete_tree("stages/publish")
    (tmp_path / "dev").rename(tmp_path / "copy")

    done = run("verify", str(tmp_path / "copy" / "models" / MODEL))

    assert done.exit_code == 0
    assert "\nNot in this store: publish. A run of the same recipe here runs them again.\n" in done.stdout
    assert str(tmp_path / "dev") not in done.stdout


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("dev/stages", "prod", "is not an address in a store"),
        (f"dev/stages/train/{'0' * 64}", "prod", "is not a model: give …/models/NAME or one of its versions"),
        (f"dev/models/{MODEL}", f"prod/models/{MODEL}", "is not a store: use s3://bucket/prefix/namespace"),
        (f"dev/models/{MODEL}", "prod/models/other/latest.json", "is not a store: use s3://bucket/prefix/namespace"),
        (f"dev/models/{MODEL}", "", "is not a store: use s3://bucket/prefix/namespace"),
        (f"dev/models/{MODEL}", "https://prod", "is not a store: use s3://bucket/prefix/namespace"),
        (f"dev/models/{MODEL}", "prod", "there is nothing at file://"),
        (f"dev/models/{MODEL}/versions/{'0' * 64}.json", "prod", "sensor-faults has no version 0000"),
    ],
)
def test_addresses_that_mean_nothing_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, target: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)

    done = run("promote", source, target)

    assert (done.exit_code, message in done.stderr) == (2, True), done.stderr


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PublishedModel:
    """A model in the folder dev, which is below the current one."""
    monkeypatch.chdir(tmp_path)
    return PublishedModel(LocalFolderStore((tmp_path / "dev").as_uri()), tmp_path / "local")


def test_a_store_may_be_below_a_folder_that_is_named_models(published: PublishedModel) -> None:
    published.publish_run()

    done = run("promote", f"dev/models/{MODEL}", "prod/models/team-b")

    assert done.exit_code == 0, done.stderr
    assert "train: 1 file, " in done.stdout
    assert run("verify", f"prod/models/team-b/models/{MODEL}").exit_code == 0


def test_a_target_that_cannot_be_a_folder_is_named(published: PublishedModel) -> None:
    published.publish_run()
    Path("prod").write_text("a file")

    done = run("promote", f"dev/models/{MODEL}", "prod")

    assert (done.exit_code, "prod/uses/" in done.stderr, "Not a directory" in done.stderr) == (2, True, True)


@pytest.mark.parametrize("option", ["--from-credentials", "--to-credentials"])
def test_a_folder_without_credentials_is_not_replaced_by_the_key_of_the_environment(
    published: PublishedModel, option: str
) -> None:
    published.publish_run()
    Path("empty").mkdir()

    for folder in ("empty", "missing"):
        done = run("promote", f"dev/models/{MODEL}", "prod", option, folder)
        assert done.exit_code == 2
        assert f"{folder} does not have the files AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in done.stderr
    assert not Path("prod").exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_does_not_wait_for_the_file_that_is_copied_and_leaves_no_temporary_files(
    published: PublishedModel, tmp_path: Path, stop: signal.Signals
) -> None:
    document = published.publish_run()
    file, scratch = tmp_path / "dev" / document.edge.key / "model.safetensors", tmp_path / "scratch"
    file.unlink()
    os.mkfifo(file)  # without an end
    scratch.mkdir()
    command = [sys.executable, "-m", "edgetune_cli", "promote", f"dev/models/{MODEL}", "prod"]
    with subprocess.Popen(command, env={**os.environ, "TMPDIR": str(scratch)}, stderr=subprocess.PIPE) as process:
        try:
            with file.open("wb"):  # once the copy reads
                process.send_signal(stop)
                assert process.wait(timeout=60) == 130
            assert process.stderr is not None
            assert process.stderr.read() == b""
        finally:
            process.kill()
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "prod" / "models").exists()


def test_json_on_standard_output_has_what_was_copied_and_the_stages_go_to_standard_error(tmp_path: Path) -> None:
    document = PublishedModel(LocalFolderStore((tmp_path / "dev").as_uri()), tmp_path / "local").publish_run()

    done = run("promote", str(tmp_path / "dev" / "models" / MODEL), str(tmp_path / "prod"), "-o", "json")

    found = json.loads(done.stdout)
    assert (found["version"], found["copiedFiles"], found["foundFiles"]) == (document.version, 7, 0)
    assert found["pointer"] == f"{(tmp_path / 'prod').as_uri()}/models/{MODEL}/latest.json"
    assert "train: 1 file, " in done.stderr

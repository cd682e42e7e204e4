"""`edgetune digest`: the revision that prepare compares a pin with."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from edgetune_cli.__main__ import app
from edgetune_contract.spec import DataSource
from edgetune_jobs.store.access import StorageAccess
from edgetune_jobs.store.sources.source import Source
from support.fake_hub import running_hub
from support.versitygw import S3Server

COMMIT = "0123456789" * 4
ROWS = b'{"instruction": "a", "response": "b"}\n'


def digest(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["digest", *arguments], catch_exceptions=False)


@pytest.fixture
def bucket(s3_server: S3Server, s3_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix with a base model and a data set, and the file profiles.yaml in the current folder."""
    client = s3_server.client()
    files = {
        "base/model.safetensors": b"weights",
        "base/config.json": b"{}",
        "data/a.jsonl": ROWS,
        "data/b.jsonl": ROWS,
        "notes/readme.txt": b"a",
    }
    for name, content in files.items():
        client.put_object(Bucket=s3_server.bucket, Key=f"{s3_prefix}/{name}", Body=content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.reader.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader.secret_access_key)
    store = {"uri": "s3://another/store", "endpoint": s3_server.endpoint, "pathStyle": True, "region": "us-east-1"}
    Path("profiles.yaml").write_text(yaml.safe_dump({"profiles": {"default": {"store": store}}}))
    return f"s3://{s3_server.bucket}/{s3_prefix}"


def opened(s3_server: S3Server, uri: str, tmp_path: Path) -> Source:
    """The source as prepare opens it."""
    access = StorageAccess(s3_server.location("any"), credentials_folder=None)
    if uri.endswith("/base"):
        return access.open_model(uri, tmp_path)
    return access.open_data(DataSource(uri=uri), "spec.dataset.train", tmp_path)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("base", "base model of 2 files, for spec.baseModel.revision"),
        ("data", "data set of 2 files, for spec.dataset.train.revision or spec.dataset.eval.revision"),
        ("data/a.jsonl", "data set of 1 file, for spec.dataset.train.revision or spec.dataset.eval.revision"),
    ],
)
def test_the_revision_in_a_bucket_is_the_one_that_prepare_compares(
    bucket: str, s3_server: S3Server, tmp_path: Path, name: str, what: str
) -> None:
    uri = f"{bucket}/{name}"

    done = digest(uri, "--profiles", "profiles.yaml")

    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{opened(s3_server, uri, tmp_path / 'scratch').digest}\n"
    assert done.stderr.splitlines()[-1] == f"{uri}: {what}"


def test_a_file_on_this_machine_has_the_digest_of_sha256sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.jsonl").write_bytes(ROWS)
    monkeypatch.chdir(tmp_path)

    assert digest("train.jsonl").stdout == f"{hashlib.sha256(ROWS).hexdigest()}\n"


@pytest.mark.parametrize("uri", ["http://host/train.jsonl", "file://host/train.jsonl", "s3://A_b/train.jsonl"])
def test_an_address_that_prepare_does_not_read_is_refused(uri: str) -> None:
    done = digest(uri)

    assert done.exit_code == 2
    assert f"{uri!r} is not the address of a base model or a data set: use s3://bucket/key, hf://" in done.stderr


def test_a_model_of_the_hub_has_the_commit_of_its_branch() -> None:
    def asked(uri: str) -> subprocess.CompletedProcess[str]:
        # In a process of its own: huggingface_hub reads its settings once, when it is imported.
        command = [sys.executable, "-m", "edgetune_cli", "digest", uri]
        environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    with running_hub("org/model", COMMIT, {"config.json": b"{}"}) as hub:
        found, missing = asked("hf://org/model"), asked("hf://org/other")

    assert (found.returncode, found.stdout) == (0, f"{COMMIT}\n"), found.stderr
    assert missing.returncode == 2
    assert "hf://org/other at main" in missing.stderr


def test_what_is_neither_model_nor_data_is_refused(bucket: str) -> None:
    done = digest(f"{bucket}/notes", "--profiles", "profiles.yaml")
    nothing = digest(f"{bucket}/nothing", "--profiles", "profiles.yaml")
    unknown = digest(f"{bucket}/base", "--profiles", "profiles.yaml", "--profile", "a100")

    assert [each.exit_code for each in (done, nothing, unknown)] == [2, 2, 2]
    assert "is neither a base model nor a data set: it has no file ending in .safetensors, .jsonl" in done.stderr
    assert f"there is nothing at {bucket}/nothing" in nothing.stderr
    assert "there is no profile 'a100'; the file has default" in unknown.stderr

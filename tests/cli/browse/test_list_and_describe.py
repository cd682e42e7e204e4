"""`edgetune list` and `edgetune describe` on a work folder and on a real S3 server."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from edgetune_jobs.store.s3.store import S3Store
from support.published import MODEL, PublishedModel
from support.versitygw import S3Server
from support.work_folder import WorkFolder

VERSION = "85615a23beda"


def test_objects_are_listed_with_the_versions_of_their_models(work_folder: WorkFolder) -> None:
    done = work_folder.edgetune("list")

    header, row = done.stdout.splitlines()
    assert done.exit_code == 0
    assert header.split() == ["namespace", "name", "phase", "version", "published", "edge", "edge", "size", "state"]
    assert row.split()[:4] == ["team-a", "pumps", "Succeeded", VERSION]
    assert row.split()[-1] == "nothing", "its training gained nothing"
    assert "current, gained nothing" in row


def test_a_model_whose_object_is_gone_and_an_object_without_a_version_are_listed_too(work_folder: WorkFolder) -> None:
    work_folder.write({**work_folder.document(), "metadata": {"name": "pumps", "namespace": "team-b", "generation": 1}})
    (work_folder.path / "objects" / "team-a" / "pumps.yaml").rename(
        work_folder.path / "objects" / "team-a" / "valves.yaml"
    )

    found = json.loads(work_folder.edgetune("list", "-o", "json").stdout)

    assert [(each["namespace"], each["name"], each["phase"], len(each["versions"])) for each in found] == [
        ("team-a", "pumps", "", 1),
        ("team-b", "pumps", "Succeeded", 0),
    ]


def test_the_versions_in_a_bucket_are_listed(
    s3_server: S3Server, s3_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work_folder: WorkFolder
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.reader.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader.secret_access_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    store = S3Store(s3_server.location(f"{s3_prefix}/team-a").uri, s3_server.client())
    version = PublishedModel(store, tmp_path / "local").publish().version

    done = work_folder.edgetune("list", store.uri, "-o", "yaml")

    (found,) = yaml.safe_load(done.stdout)
    assert (found["name"], found["versions"][0]["version"]) == (MODEL, version)


def test_nothing_to_list_is_said_with_the_place(work_folder: WorkFolder) -> None:
    shutil.rmtree(work_folder.path)

    done = work_folder.edgetune("list")

    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.strip() == f"{work_folder.path} has no objects and no models"


def test_an_object_is_described_with_its_stages_scores_conditions_and_artifacts(work_folder: WorkFolder) -> None:
    done = work_folder.edgetune("describe", "pumps")

    assert done.exit_code == 0
    assert done.stdout.startswith("team-a/pumps: Succeeded\n")
    assert "Training gained nothing" in done.stdout
    assert "latest.json names version 85615a23beda" in " ".join(done.stdout.split())
    assert f"edge-gguf-q8_0: {work_folder.store.as_uri()}/stages/quantize/" in done.stdout


@pytest.mark.parametrize("arguments", [(), ("pumps", "-n", "team-a")])
def test_the_only_object_needs_no_name_and_is_printed_whole_as_yaml(
    work_folder: WorkFolder, arguments: tuple[str, ...]
) -> None:
    done = work_folder.edgetune("describe", *arguments, "-o", "yaml")

    assert yaml.safe_load(done.stdout) == work_folder.document()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pump",), "pump was not run in {folder} (there: team-a/pumps); did you mean 'pumps'?"),
        (("pumps.yaml",), "pumps.yaml was not run in {folder} (there: team-a/pumps); did you mean -f pumps.yaml?"),
        (("pumps", "-n", "team-b"), "pumps was not run in {folder} (there: team-a/pumps); did you mean 'pumps'?"),
    ],
)
def test_an_unknown_object_is_refused_with_those_that_are_there(
    work_folder: WorkFolder, arguments: tuple[str, ...], message: str
) -> None:
    done = work_folder.edgetune("describe", *arguments)

    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.strip() == message.format(folder=work_folder.path)


def test_no_word_is_broken_at_80_columns(work_folder: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    document = work_folder.document()
    word = "a-reason-that-is-as-long-as-the-name-of-a-stage-and-a-digest-together"
    document["status"]["conditions"][0]["message"] = f"{word} {word}"
    work_folder.write(document)

    done = work_folder.edgetune("describe")

    assert done.stdout.count(word) == 2

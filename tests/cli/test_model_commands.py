"""`edgetune versions` and `edgetune verify`, on folders and a real S3 server."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from edgetune_cli.__main__ import app
from edgetune_contract.digest import version_key
from edgetune_contract.request import ModelScores
from edgetune_contract.results.measurement import EdgeMeasurement, ModelSpeed
from edgetune_contract.stages import Stage
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.s3.store import S3Store
from edgetune_jobs.store.store import Store
from support.builders import lora_fine_tune
from support.published import EDGE, IMAGE, MODEL, PublishedModel
from support.versitygw import S3Server

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Place:
    """A store with a model, and the options with which the command line reaches it."""

    store: Store
    model: PublishedModel
    options: tuple[str, ...]

    @property
    def uri(self) -> str:
        return f"{self.store.uri}/models/{MODEL}"

    def run(self, *arguments: str) -> tuple[int, str]:
        """Exit code, and the output on both streams."""
        done = CliRunner().invoke(app, [*arguments, *self.options], catch_exceptions=False)
        return done.exit_code, done.output


@pytest.fixture(params=["folder", "s3", "s3 by the environment"])
def place(request: pytest.FixtureRequest, tmp_path: Path, s3_prefix: str, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "folder":
        local = LocalFolderStore((tmp_path / "home" / "store" / "team-a").as_uri())
        return Place(local, PublishedModel(local, tmp_path / "local"), ())
    server: S3Server = request.getfixturevalue("s3_server")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.reader.access_key_id)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.reader.secret_access_key)
    store = S3Store(server.location(f"{s3_prefix}/team-a").uri, server.client())
    options: tuple[str, ...] = ()
    if request.param == "s3":
        options = ("--profiles", str(profiles_file(tmp_path, server, s3_prefix)))
    else:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
    return Place(store, PublishedModel(store, tmp_path / "local"), options)


def profiles_file(folder: Path, server: S3Server, prefix: str) -> Path:
    stores: dict[str, dict[str, Any]] = {
        "default": {"uri": f"s3://{server.bucket}/{prefix}", "endpoint": server.endpoint, "pathStyle": True},
        "elsewhere": {"uri": f"s3://{server.bucket}/{prefix}-2", "endpoint": "http://127.0.0.1:1"},
    }
    profiles = {name: {"store": {**store, "region": "us-east-1"}} for name, store in stores.items()}
    path = folder / "profiles.yaml"
    path.write_text(yaml.safe_dump({"profiles": profiles}))
    return path


def object_file(folder: Path, pin: str = "") -> Path:
    path = folder / "object.yaml"
    path.write_text(yaml.safe_dump(lora_fine_tune(MODEL).with_spec("publish.pin", pin).build()))
    return path


def test_versions_are_listed_newest_first_with_scores_sizes_and_the_current_one(place: Place) -> None:
    first, refused = place.model.publish(0.91), place.model.publish(0.5, ("minScore: bad",))
    second = place.model.publish(0.93)
    place.model.publisher.pin(first.version)

    code, output = place.run("versions", place.uri)

    assert code == 0, output
    header, *rows = [line.split() for line in output.splitlines()]
    assert header == ["version", "published", "base", "tuned", "edge", "edge", "size", "state"]
    size = f"{first.edge.artifact.bytes} B".split()
    assert rows == [
        [second.version[:12], second.created_at, "5.0%", "95.0%", "93.0%", *size],
        [refused.version[:12], refused.created_at, "5.0%", "95.0%", "50.0%", *size, "refused:", "minScore:", "bad"],
        [first.version[:12], first.created_at, "5.0%", "95.0%", "91.0%", *size, "current"],
    ]


@pytest.mark.parametrize("place", ["folder", "s3"], indirect=True)
def test_versions_of_an_object_mark_the_pinned_one(place: Place, tmp_path: Path) -> None:
    first, second = place.model.publish(), place.model.publish()
    options = () if place.options else ("--workdir", str(tmp_path / "home"))

    code, output = place.run("versions", "-f", str(object_file(tmp_path, first.version[:12])), "-o", "json", *options)

    assert code == 0, output
    rows = json.loads(output)
    assert [(row["version"], row["current"], row["pinned"]) for row in rows] == [
        (second.version, True, False),
        (first.version, False, True),
    ]
    assert rows[0]["scores"]["edge"] == 0.9
    assert rows[0]["edge"]["artifact"]["key"] == second.edge.key
    place.model.publisher.pin(first.version[:12])
    assert "current, pinned" in place.run("versions", "-f", str(tmp_path / "object.yaml"), *options)[1]


def test_a_version_that_cannot_be_read_is_listed_with_the_reason(place: Place) -> None:
    document = place.model.publish()
    place.store.put(version_key(MODEL, document.version), b"{}")

    code, output = place.run("versions", place.uri)

    assert code == 0
    assert f"unreadable: {place.uri}/versions/{document.version}.json is damaged" in output


def test_verifying_an_unchanged_model_exits_with_0_and_reports_its_provenance(place: Place) -> None:
    document = place.model.publish()

    code, output = place.run("verify", f"{place.uri}/latest.json")

    assert code == 0, output
    for text in (
        f"Version    {document.version}",
        f"ok        160   {document.edge.files[-1].sha256}   {WEIGHTS}",
        f"base             hf://org/model at {'0123456789' * 4}, content {'a' * 64}",
        f"training data    s3://datasets/train.jsonl, content {'b' * 64}",
        f"evaluation data  s3://datasets/eval.jsonl, content {'c' * 64}",
        "method           QLoRA, rank 16, alpha 32, Standard",
        "seed             42",
        IMAGE,
        "libraries        python 3.11.9, torch 2.13.0, transformers 5.23.0",
        f"Verified: 3 files of {document.edge.artifact.bytes:,} bytes match their manifest.",
    ):
        assert text in output, text


def test_scores_and_speed_are_reported_in_the_order_of_the_models(tmp_path: Path) -> None:
    store = LocalFolderStore((tmp_path / "store").as_uri())
    model = PublishedModel(store, tmp_path / "local")
    document = model.publish()
    details = {name: ModelScores(keyword_recall=0.5, loss=1.5) for name in ("edge", "base", "tuned")}
    speed = {"runtime": "transformers 5.23.0", "peak_memory_bytes": 2_000_000}
    measurement = EdgeMeasurement(
        cpu="Cortex-A76",
        threads=2,
        prompt_tokens=30,
        new_tokens=16,
        generation_tokens_per_second=21.25,
        time_to_first_token_seconds=0.5,
        base=ModelSpeed(**speed),
        **speed,
    )
    scores = document.scores.model_copy(update={"details": details})
    model.publisher.publish(document.model_copy(update={"scores": scores, "measurement": measurement}))

    lines = CliRunner().invoke(app, ["verify", f"{tmp_path}/store/models/{MODEL}"]).output.splitlines()

    scored = lines.index("Scores on 64 held-out rows")
    assert [line.split()[0] for line in lines[scored + 2 : scored + 5]] == ["base", "tuned", "edge"]
    assert lines[scored + 5].split() == []
    assert lines[scored + 6] == "Speed on 2 threads of Cortex-A76, 30-token prompt"
    assert lines[scored + 8].split() == ["base", "-", "-", "-", "2.0", "MB", "transformers", "5.23.0"]
    assert lines[scored + 9].split() == ["edge", "21.2", "-", "0.50", "s", "2.0", "MB", "transformers", "5.23.0"]


def test_libraries_are_listed_once_and_again_for_a_stage_that_differs(tmp_path: Path) -> None:
    store = LocalFolderStore((tmp_path / "store").as_uri())
    model = PublishedModel(store, tmp_path / "local")
    document = model.publish()
    (quantize,) = document.provenance.stages.values()
    evaluate = quantize.model_copy(update={"libraries": {**quantize.libraries, "torch": "2.14.0"}, "image": ""})
    stages = {Stage.EVALUATE: evaluate, Stage.QUANTIZE: quantize}
    provenance = document.provenance.model_copy(update={"stages": stages, "parameters": {"method": "LoRA"}})
    model.publisher.publish(document.model_copy(update={"provenance": provenance}))

    output = CliRunner().invoke(app, ["verify", f"{tmp_path}/store/models/{MODEL}"]).output

    assert "libraries        python 3.11.9, torch 2.13.0, transformers 5.23.0\n  evaluate       torch 2.14.0" in output
    assert output.index("\nquantize   ") < output.index("\nevaluate   "), "in the order in which they ran"
    assert "none (ran outside a container)" in output
    assert "method           LoRA, rank ?, alpha ?, ?" in output, "a document of another release may lack fields"
    assert "evaluation data  ? % of the training data, selected by the seed" in output


def test_verifying_a_damaged_model_exits_with_1_and_names_each_file(place: Place) -> None:
    document = place.model.publish()
    place.store.delete(f"{document.edge.key}/config.json")
    place.store.put(f"{document.edge.key}/more.bin", b"")

    code, output = place.run("verify", f"{place.store.uri}/{document.edge.key}")
    json_code, json_output = place.run("verify", f"{place.store.uri}/{document.edge.key}", "-o", "json")

    assert (code, json_code) == (1, 1)
    assert f"Not verified: 2 problems.\n  {EDGE}/config.json: is missing\n  {EDGE}/more.bin: is not in" in output
    assert [line.split()[0] for line in output.splitlines() if line.endswith(("config.json", "more.bin"))] == [
        "FAILED"
    ] * 2
    found = json.loads(json_output)
    assert len(found["problems"]) == 2
    assert found["artifacts"][0]["files"][0]["problem"] == "is missing"
    assert found["manifest"]["image"] == IMAGE


def test_a_model_that_cannot_be_read_exits_with_2(place: Place) -> None:
    place.model.publish()

    for arguments, text in (
        (("verify", f"{place.store.uri}/models/nobody"), "there is nothing at"),
        (("verify", f"{place.store.uri}/elsewhere"), "is not an address in a store"),
        (("versions", f"{place.store.uri}/models/nobody"), "models/nobody has no versions"),
        (("versions", f"{place.store.uri}/stages/train/{'0' * 64}"), "is not a model: give …/models/NAME"),
        (("versions",), "give either MODEL"),
        (("versions", place.uri, "-f", "object.yaml"), "give either MODEL"),
        (("generate", "-m", f"{place.store.uri}/models/nobody", "-p", "x"), "there is nothing at"),
    ):
        code, output = place.run(*arguments)
        assert code == 2, output
        assert text in output


def test_a_command_whose_libraries_are_missing_says_which_and_how_to_install_them(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.model.publish()
    monkeypatch.setitem(sys.modules, "edgetune_jobs.evaluation.text_generation", None)

    code, output = place.run("generate", "-m", f"{place.uri}/latest.json", "-p", "x")

    assert code == 2, output
    assert "which is not installed here: in a checkout of Edgetune, `pip install '.[jobs]'`" in output


def test_without_credentials_the_message_says_what_to_set(
    s3_server: S3Server, s3_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    profiles = str(profiles_file(tmp_path, s3_server, s3_prefix))
    uri = f"s3://{s3_server.bucket}/{s3_prefix}/team-a/models/{MODEL}"

    done = CliRunner().invoke(app, ["verify", uri, "--profiles", profiles])

    assert done.exit_code == 2
    assert "on your own machine set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in done.output


def test_a_store_that_no_profile_has_is_refused_with_a_list_of_the_profiles_stores(
    s3_server: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    profiles = str(profiles_file(tmp_path, s3_server, s3_prefix))

    done = CliRunner().invoke(app, ["verify", "s3://another/team-a/models/m", "--profiles", profiles])

    assert done.exit_code == 2
    stores = f"the profiles' stores are s3://{s3_server.bucket}/{s3_prefix}, "
    assert f"s3://another/team-a is not in the store of any profile; {stores}" in done.output


def test_an_object_whose_profile_is_not_in_the_file_is_refused(
    s3_server: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    profiles = str(profiles_file(tmp_path, s3_server, s3_prefix))
    path = tmp_path / "object.yaml"
    path.write_text(yaml.safe_dump(lora_fine_tune(MODEL).with_spec("profile", "a100").build()))

    done = CliRunner().invoke(app, ["versions", "-f", str(path), "--profiles", profiles])

    assert done.exit_code == 2
    assert "spec.profile: there is no profile 'a100'; name its file with --profiles" in done.output

"""`edgetune export` to folders, archives and a real registry, from which the model is pulled again."""

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from edgetune_cli.__main__ import app
from edgetune_contract.values.units import format_bytes
from edgetune_contract.version import VersionDocument
from edgetune_jobs.store.files import fingerprint
from edgetune_jobs.store.folder_store import LocalFolderStore
from support.devices import address, pull
from support.published import MODEL, PublishedModel
from support.registry import OciRegistry, docker_login, running_registry
from support.server_process import free_port
from support.signing import make_key

REPOSITORY = "team-a/sensor-faults"


def export(*arguments: object) -> str:
    """What a successful export prints."""
    done = CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def refused(*arguments: object) -> str:
    """What an export that fails prints."""
    done = CliRunner().invoke(app, ["export", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 2, done.output
    return done.output.strip()


@pytest.fixture
def model(tmp_path: Path) -> PublishedModel:
    return PublishedModel(LocalFolderStore((tmp_path / "store").as_uri()), tmp_path / "local", has_cards=True)


@pytest.fixture
def document(model: PublishedModel) -> VersionDocument:
    return model.publish()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without credentials for any registry."""
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[OciRegistry]:
    with running_registry(tmp_path / "registry") as running:
        yield running


def source_of(tmp_path: Path) -> Path:
    return tmp_path / "store" / "models" / MODEL


@pytest.mark.parametrize("name", ["out.tar.gz", "out.zip"])
@pytest.mark.usefixtures("document")
def test_other_archives_are_refused_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    done = CliRunner().invoke(app, ["export", str(source_of(tmp_path)), str(tmp_path / name)], catch_exceptions=False)

    assert done.exit_code == 2
    assert f"{tmp_path / name}: an export is a folder or a .tar" in done.stderr
    assert not (tmp_path / name).exists()


def test_a_folder_and_an_archive_are_named_with_what_they_have(tmp_path: Path, document: VersionDocument) -> None:
    size = sum(entry.bytes for entry in document.edge.all_files)
    folder = export(source_of(tmp_path), tmp_path / "out")
    archive = export(source_of(tmp_path) / "latest.json", tmp_path / "out.tar")

    ends = f"has {MODEL}, version {document.version[:12]}, edge-bnb-int8: 4 files, {format_bytes(size)}\n"
    assert folder == f"{tmp_path / 'out'} {ends}"
    assert archive == f"{tmp_path / 'out.tar'} {ends}"
    assert {path.name: fingerprint(path).sha256 for path in (tmp_path / "out").iterdir()} == {
        entry.path: entry.sha256 for entry in document.edge.all_files
    }


def test_a_signed_model_is_named_so_and_its_signature_is_in_the_registry_too(
    tmp_path: Path, model: PublishedModel, registry: OciRegistry
) -> None:
    model.signing_key = make_key(tmp_path / "key").private
    model.publish()

    said = export(source_of(tmp_path), f"oci://{registry.host}/{REPOSITORY}:v1")

    manifest, _ = registry.manifest(REPOSITORY, "v1")
    types = {layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in manifest["layers"]}
    assert said.strip().endswith(", signed")
    assert types["model.sig"].endswith("doc.v1.raw")
    assert json.loads(export(source_of(tmp_path), tmp_path / "out", "-o", "json"))["signed"] is True


def test_a_registry_has_the_model_in_the_layout_of_modelpack(
    tmp_path: Path, document: VersionDocument, registry: OciRegistry
) -> None:
    target = f"oci://{registry.host}/{REPOSITORY}:v1"

    said = export(source_of(tmp_path), target)

    manifest, digest = registry.manifest(REPOSITORY, "v1")
    assert said.startswith(f"{target}@{digest} has {MODEL}, version {document.version[:12]}")
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    layers = {layer["annotations"]["org.cncf.model.filepath"]: layer for layer in manifest["layers"]}
    assert {path: layer["mediaType"].split(".model.")[1] for path, layer in layers.items()} == {
        "README.md": "doc.v1.raw",
        "config.json": "weight.config.v1.raw",
        "edgetune.json": "weight.config.v1.raw",
        "model.safetensors": "weight.v1.raw",
    }
    for entry in document.edge.all_files:
        content = registry.blob(REPOSITORY, layers[entry.path]["digest"])
        assert hashlib.sha256(content).hexdigest() == entry.sha256
    config = json.loads(registry.blob(REPOSITORY, manifest["config"]["digest"]))
    assert config["descriptor"]["version"] == document.version
    assert config["modelfs"]["diffIds"] == [layer["digest"] for layer in manifest["layers"]]


def test_oras_pulls_the_files_again(tmp_path: Path, document: VersionDocument, registry: OciRegistry) -> None:
    import oras.client

    export(source_of(tmp_path), f"oci://{registry.host}/{REPOSITORY}:v1")

    client = oras.client.OrasClient(insecure=True)
    client.pull(target=f"{registry.host}/{REPOSITORY}:v1", outdir=str(tmp_path / "pulled"))

    assert {path.name: fingerprint(path).sha256 for path in (tmp_path / "pulled").iterdir()} == {
        entry.path: entry.sha256 for entry in document.edge.all_files
    }


@pytest.mark.usefixtures("document")
def test_a_pulled_folder_and_its_store_give_the_same_artifact(
    tmp_path: Path, model: PublishedModel, registry: OciRegistry
) -> None:
    pull(address(model), tmp_path / "device")

    export(source_of(tmp_path), f"oci://{registry.host}/{REPOSITORY}:store")
    export(tmp_path / "device", f"oci://{registry.host}/{REPOSITORY}:device")

    assert registry.manifest(REPOSITORY, "store") == registry.manifest(REPOSITORY, "device")


def test_a_tag_follows_the_newest_export(tmp_path: Path, model: PublishedModel, registry: OciRegistry) -> None:
    for _ in range(2):
        newest = model.publish()
        export(source_of(tmp_path), f"oci://{registry.host}/{REPOSITORY}:latest")

    manifest, _ = registry.manifest(REPOSITORY, "latest")
    assert manifest["annotations"]["org.opencontainers.image.version"] == newest.version


@pytest.mark.usefixtures("document")
def test_a_registry_with_a_password_takes_the_credentials_of_docker_login(tmp_path: Path, home: Path) -> None:
    with running_registry(tmp_path / "registry", with_password=True) as closed:
        target = f"oci://{closed.host}/{REPOSITORY}:v1"
        without = refused(source_of(tmp_path), target)
        docker_login(home, closed.host, "wrong")
        wrong = refused(source_of(tmp_path), target)
        docker_login(home, closed.host)
        done = export(source_of(tmp_path), target)

    expected = (
        f"{target}: the registry accepts no credentials that are here (401): run `docker login {closed.host}` with an "
        "account that may push"
    )
    assert without == wrong == expected
    assert done.startswith(target)


class Refusing(BaseHTTPRequestHandler):
    """A registry that refuses every push with one status."""

    status: ClassVar[int] = 500
    body: ClassVar[bytes] = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (403, b"", "the registry refuses the push (403): use an account that may push there"),
        (404, b"", "the registry has no such repository (404): create it, or correct its name"),
        (429, b"", "the registry answered 429 Too Many Requests; try again later"),
        (503, b"", "the registry answered 503 Service Unavailable; try again later"),
        (
            400,
            b'{"errors": [{"code": "DENIED", "message": "quota exceeded"}]}',
            "the registry refused the model: 400 Bad Request: quota exceeded",
        ),
    ],
)
@pytest.mark.usefixtures("document")
def test_a_registry_that_refuses_is_named_by_its_own_sentence(
    tmp_path: Path, status: int, body: bytes, message: str
) -> None:
    handler = type("Handler", (Refusing,), {"status": status, "body": body})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        target = f"oci://127.0.0.1:{server.server_port}/{REPOSITORY}:v1"
        said = refused(source_of(tmp_path), target)
        server.shutdown()

    assert said == f"{target}: {message}"


@pytest.mark.usefixtures("document")
def test_a_registry_that_does_not_answer_is_named(tmp_path: Path) -> None:
    target = f"oci://127.0.0.1:{free_port()}/{REPOSITORY}:v1"

    assert refused(source_of(tmp_path), target).startswith(f"{target}: cannot reach the registry: ")


@pytest.mark.parametrize("target", ["oci://host", "oci://host/Repo:v1", "oci://host/repo", "oci://user:pass@h/r:v1"])
@pytest.mark.usefixtures("document")
def test_what_is_no_reference_is_refused(tmp_path: Path, target: str) -> None:
    assert f"{target!r} is not a target: give oci://REGISTRY/REPOSITORY:TAG" in refused(source_of(tmp_path), target)


@pytest.mark.parametrize("target", ["", "s3://bucket/key"])
@pytest.mark.usefixtures("document")
def test_another_kind_of_target_is_refused(tmp_path: Path, target: str) -> None:
    expected = f"{target!r} is not a target: give a folder, a file that ends in .tar, or oci://…"
    assert refused(source_of(tmp_path), target) == expected


def test_a_source_that_is_no_model_is_refused(tmp_path: Path) -> None:
    stage = tmp_path / "store" / "stages" / "quantize" / ("0" * 64)

    assert "is not a model: give …/models/NAME or one of its versions, or a pulled folder" in refused(
        stage, tmp_path / "out"
    )


def test_json_has_what_was_exported_and_where(model: PublishedModel, document: VersionDocument, tmp_path: Path) -> None:
    found = json.loads(export(f"{model.store.uri}/models/{MODEL}", tmp_path / "out", "-o", "json"))

    assert (found["target"], found["version"]) == (str(tmp_path / "out"), document.version)
    assert found["files"] == len([each for each in (tmp_path / "out").rglob("*") if each.is_file()])

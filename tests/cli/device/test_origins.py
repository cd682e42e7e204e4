"""`edgetune pull` over real servers and disturbed networks."""

import re
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgetune_cli.device import command as pull_command
from edgetune_cli.device.folder import DeviceFolder
from edgetune_jobs.store.s3.store import S3Store
from support.devices import WEIGHTS, address, allow_everybody_to_read, is_version, pull, refused
from support.fault_proxy import Fault, FaultProxy
from support.published import MODEL, PublishedModel
from support.versitygw import S3Server


@pytest.mark.parametrize("kind", ["s3", "https without ranges", "https with ranges"])
def test_a_bucket_and_a_server_are_followed_like_a_folder(
    kind: str,
    s3_server: S3Server,
    s3_prefix: str,
    s3_proxy: FaultProxy,
    device: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = S3Store(s3_server.location(s3_prefix).uri, s3_server.client())
    model = PublishedModel(store, tmp_path / "work")
    uri = address(model)
    if kind == "s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_proxy.endpoint)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.reader.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.reader.secret_access_key)
    else:
        allow_everybody_to_read(s3_server)
        uri = uri.replace("s3://", f"{s3_proxy.endpoint}/")
    documents = [model.publish(), model.publish()]
    s3_proxy.faults.append(Fault("GET", WEIGHTS, times=1, cut_after=32))
    total = received = sum(each.bytes for each in documents[1].edge.files)
    if kind == "https without ranges":
        s3_proxy.faults.append(Fault("GET", WEIGHTS, without_request_header="Range"))
        received += 32

    assert f": {received} B of {total} B downloaded" in pull(uri, device)
    assert is_version(device, documents[1])
    assert len([path for _, path in s3_proxy.requests if WEIGHTS in path]) == 2
    assert "there is nothing at" in refused(uri.replace(MODEL, "another"), device)
    assert is_version(device, documents[1])


def test_a_network_that_is_down_keeps_what_arrived_and_a_later_pull_continues_from_there(
    s3_server: S3Server, s3_prefix: str, s3_proxy: FaultProxy, device: Path, tmp_path: Path
) -> None:
    allow_everybody_to_read(s3_server)
    model = PublishedModel(S3Store(s3_server.location(s3_prefix).uri, s3_server.client()), tmp_path / "work")
    document = model.publish()
    uri = address(model).replace("s3://", f"{s3_proxy.endpoint}/")
    weights = next(each for each in document.edge.files if each.path == WEIGHTS)
    s3_proxy.faults.append(Fault("GET", WEIGHTS, times=1, cut_after=10))
    s3_proxy.faults.append(Fault("GET", WEIGHTS, status=503))

    assert f"/{WEIGHTS}: the server answered 503" in refused(uri, device)
    assert (device / "incoming" / weights.sha256).stat().st_size == 10
    assert not (device / "current").exists()

    s3_proxy.faults.clear()
    total = sum(each.bytes for each in document.edge.files)
    others = total - weights.bytes
    said = pull(uri, device)
    assert f": {weights.bytes - 10} B of {total} B" in said or f": {others + weights.bytes - 10} B of {total} B" in said
    assert is_version(device, document)


def test_two_hundred_devices_that_pull_at_once_from_a_small_server_all_get_the_model(
    s3_server: S3Server, s3_prefix: str, s3_proxy: FaultProxy, tmp_path: Path
) -> None:
    allow_everybody_to_read(s3_server)
    model = PublishedModel(S3Store(s3_server.location(s3_prefix).uri, s3_server.client()), tmp_path / "work")
    document = model.publish()
    uri = address(model).replace("s3://", f"{s3_proxy.endpoint}/")
    follow = pull_command._parse(uri, None)
    devices = [DeviceFolder(tmp_path / f"device-{number}") for number in range(200)]
    threads = [threading.Thread(target=pull_command._pull_once, args=(each, follow)) for each in devices]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)

    assert all(is_version(each.folder, document) for each in devices)
    assert len(s3_proxy.requests) == 200 * (1 + len({each.sha256 for each in document.edge.files}))


def test_a_password_in_an_address_is_refused_and_not_printed(device: Path) -> None:
    said = refused(f"https://reader:secret@models.example/models/{MODEL}/latest.json", device)
    assert "reads https:// without credentials: leave out what is before @" in said
    assert "secret" not in said


def test_letters_of_all_scripts_in_an_address_are_read(
    model: PublishedModel, device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = model.publish()
    (tmp_path / "store").rename(tmp_path / "geräte 100%")
    monkeypatch.chdir(tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            pull(f"http://127.0.0.1:{server.server_port}/geräte 100%25/models/{MODEL}/latest.json", device)
        finally:
            server.shutdown()
            thread.join()
    assert is_version(device, document)


def test_a_certificate_that_is_not_yet_valid_names_the_devices_clock(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_tls(tmp_path, SimpleHTTPRequestHandler, monkeypatch, since="2098") as uri:
        said = refused(f"{uri}/models/{MODEL}/latest.json", device)

    assert re.search(r"certificate is not yet valid; this device's clock says 20..-.*UTC: if that is wrong", said)


def test_a_redirect_from_https_to_http_is_refused(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Redirecting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", "http://mirror.example/latest.json")
            self.end_headers()

    with serving_tls(tmp_path, Redirecting, monkeypatch, since="2025") as uri:
        said = refused(f"{uri}/models/{MODEL}/latest.json", device)

    assert "redirects to http://mirror.example/latest.json: use an address that stays with https://" in said


@pytest.mark.parametrize(
    ("secret_key", "what"), [(None, "Unable to locate credentials"), ("wrong", "SignatureDoesNot")]
)
def test_missing_and_wrong_credentials_are_said_to_be_the_devices(
    secret_key: str | None, what: str, s3_server: S3Server, device: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    if secret_key:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.reader.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)

    said = refused(f"s3://{s3_server.bucket}/models/{MODEL}/latest.json", device)

    assert "this device has no valid credentials" in said
    assert what in said
    assert "Secret" not in said


def test_a_server_that_encodes_its_answers_is_named(device: Path) -> None:
    class Encoding(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Encoding) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            said = refused(f"http://127.0.0.1:{server.server_port}/models/{MODEL}/latest.json", device)
        finally:
            server.shutdown()
            thread.join()

    assert "comes with Content-Encoding gzip" in said


@contextmanager
def serving_tls(
    folder: Path, handler: type[BaseHTTPRequestHandler], monkeypatch: pytest.MonkeyPatch, since: str
) -> Iterator[str]:
    """Serve https:// with a certificate that is valid from the year `since` on, and trusted here."""
    certificate = make_certificate(folder, since)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, folder / "key.pem")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"https://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def make_certificate(folder: Path, since: str) -> Path:
    """A certificate of localhost that is valid from the year `since` to 2099; its key is in key.pem."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    (folder / "index.txt").touch()
    (folder / "ca.conf").write_text(
        f"[ca]\ndefault_ca = one\n[one]\nnew_certs_dir = {folder}\ndatabase = {folder}/index.txt\nrand_serial = yes\n"
        "default_md = sha256\npolicy = any\nx509_extensions = names\n[any]\ncommonName = supplied\n"
        "[names]\nsubjectAltName = DNS:localhost\nbasicConstraints = CA:TRUE\n"
    )
    request = ["req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", "key.pem"]
    sign = ["ca", "-batch", "-selfsign", "-config", "ca.conf", "-keyfile", "key.pem", "-in", "request.pem"]
    sign += ["-startdate", f"{since}0101000000Z", "-enddate", "20990101000000Z", "-out", "certificate.pem", "-notext"]
    for arguments in ([*request, "-out", "request.pem"], sign):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
    return folder / "certificate.pem"

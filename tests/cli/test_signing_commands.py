"""Signatures through the command line: verify, promote, and the key of a local run."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from edgetune_cli.__main__ import app
from edgetune_contract.digest import pointer_key, signatures_key, version_key
from edgetune_jobs.publishing.publisher import encode
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_operator.api.profiles.profile import Signing
from support.builders import lora_fine_tune
from support.process_jobs import process_job
from support.published import MODEL, REVISION, PublishedModel
from support.signing import KeyFiles, make_key


@pytest.fixture
def key(tmp_path: Path) -> KeyFiles:
    return make_key(tmp_path / "key")


@pytest.fixture
def model(tmp_path: Path, key: KeyFiles) -> PublishedModel:
    store = LocalFolderStore((tmp_path / "dev").as_uri())
    return PublishedModel(store, tmp_path / "local", signing_key=key.private)


def run(*arguments: object) -> tuple[int, str]:
    """Exit code, and the output on both streams."""
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    return done.exit_code, done.output


def uri(folder: Path) -> Path:
    return folder / "models" / MODEL


def test_verify_says_who_signed_a_version_and_from_which_commit(
    model: PublishedModel, key: KeyFiles, tmp_path: Path
) -> None:
    model.publish()
    (trusted,) = key.keys

    code, unchecked = run("verify", uri(tmp_path / "dev"))
    assert code == 0
    assert f"\nSignature  by the key {trusted}, not checked: give its public key with --verify-key\n" in unchecked

    code, output = run("verify", uri(tmp_path / "dev"), "--verify-key", key.public)
    assert code == 0
    assert f"\nSignature  valid, by the key {trusted}\nSource     {REVISION}\n" in output

    code, output = run("verify", uri(tmp_path / "dev"), "--verify-key", make_key(tmp_path / "other").public)
    assert code == 1
    assert "\nSignature  NOT VALID\n" in output
    assert f"is signed by another key: {trusted}, and the trusted ones are" in output


def test_verify_requires_a_signature_where_there_is_a_key(model: PublishedModel, key: KeyFiles, tmp_path: Path) -> None:
    model = replace(model, signing_key=None)
    document = model.publish()

    assert "\nSignature  none\n" in run("verify", uri(tmp_path / "dev"))[1]

    code, output = run("verify", uri(tmp_path / "dev"), "--verify-key", key.public)
    assert code == 1
    assert f"version {document.version} of {MODEL} has no signature at" in output
    assert run("verify", uri(tmp_path / "dev"), "--verify-key", tmp_path / "none")[0] == 2


def test_a_promotion_takes_the_signatures_with_the_version(
    model: PublishedModel, key: KeyFiles, tmp_path: Path
) -> None:
    document = model.publish_run()
    # As another release may write it: a signature is about the bytes, which must stay.
    spaced = encode(document) + b"\n"
    for stored in (version_key(MODEL, document.version), pointer_key(MODEL)):
        model.store.put(stored, spaced)
    model.publisher.restore(document.version)

    code, output = run("promote", uri(tmp_path / "dev"), tmp_path / "prod")

    assert code == 0, output
    assert run("verify", uri(tmp_path / "prod"), "--verify-key", key.public)[0] == 0
    assert (tmp_path / "prod" / pointer_key(MODEL)).read_bytes() == spaced
    names = {path.name for path in (tmp_path / "prod" / signatures_key(MODEL, document.version)).iterdir()}
    assert len(names) == 6


def test_a_version_that_the_target_published_itself_keeps_its_own_signatures(
    model: PublishedModel, tmp_path: Path
) -> None:
    document = model.publish_run()
    assert run("promote", uri(tmp_path / "dev"), tmp_path / "prod")[0] == 0
    target, own_key = LocalFolderStore((tmp_path / "prod").as_uri()), make_key(tmp_path / "prod-key")
    own = document.model_copy(update={"created_at": "2026-11-25T08:00:00+00:00"})
    target.put(version_key(MODEL, document.version), encode(own))
    PublishedModel(target, tmp_path / "local", signing_key=own_key.private).publisher.restore(document.version)
    target.put(pointer_key(MODEL), encode(own))

    code, output = run("promote", uri(tmp_path / "dev"), tmp_path / "prod")

    assert code == 0, output
    assert "signatures it keeps: those of the source are not copied" in output
    assert run("verify", uri(tmp_path / "prod"), "--verify-key", own_key.public)[0] == 0


@pytest.fixture
def object_file(tmp_path: Path) -> Path:
    path = tmp_path / "object.yaml"
    path.write_text(yaml.safe_dump(lora_fine_tune(MODEL).build()))
    return path


def test_a_run_with_a_key_that_cannot_sign_ends_before_anything_runs(object_file: Path, tmp_path: Path) -> None:
    code, output = run("run", "-f", object_file, "--workdir", tmp_path / "home", "--signing-key", object_file)

    assert code == 2
    assert f"the signing key {object_file} is not a private key in PEM; make one with" in output
    assert not (tmp_path / "home").exists()


def test_a_local_run_with_a_profile_that_signs_needs_the_file_of_its_key(object_file: Path, tmp_path: Path) -> None:
    store = {"uri": (tmp_path / "store").as_uri()}
    profiles = {"default": {"store": store, "signing": {"secretName": "edgetune-signing"}}}
    (tmp_path / "profiles.yaml").write_text(yaml.safe_dump({"profiles": profiles}))

    code, output = run(
        "run", "-f", object_file, "--workdir", tmp_path / "home", "--profiles", tmp_path / "profiles.yaml"
    )

    assert code == 2
    assert "the profile default signs what it publishes (`signing`): name the file of the private key with" in output


def test_the_file_of_a_local_run_takes_the_place_of_the_mounted_key(tmp_path: Path, key: KeyFiles) -> None:
    log = "open(os.environ['EDGETUNE_TERMINATION_LOG'], 'w')"
    job = process_job(f"import os; {log}.write(os.environ['EDGETUNE_SIGNING_KEY'])", tmp_path)
    container = job.manifest["spec"]["template"]["spec"]["containers"][0]
    container["env"].append({"name": "EDGETUNE_SIGNING_KEY", "value": "/var/run/secrets/edgetune/signing/signing.pem"})

    asyncio.run(replace(job, signing_key=key.private).run())

    (pod,) = job.pods
    assert pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"] == str(key.private)


def test_a_profile_names_the_secret_and_its_key() -> None:
    assert Signing.model_validate({"secretName": "s"}).key == "signing.pem"

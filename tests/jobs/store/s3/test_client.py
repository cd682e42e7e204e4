"""The access keys of the S3 client: wrong, renewed, removed and expired ones."""

import time
from pathlib import Path

import pytest

from edgetune_jobs.errors import AccessDenied, TransientError
from edgetune_jobs.store.s3.client import Credentials, create_client, find_credentials, s3_errors
from edgetune_jobs.store.s3.store import S3Store
from support.versitygw import S3Server


@pytest.mark.parametrize("credentials", [Credentials("nobody", "x"), Credentials("reader", "wrong")])
def test_an_invalid_access_key_is_access_denied(s3_server: S3Server, s3_prefix: str, credentials: Credentials) -> None:
    store = S3Store(s3_server.location(s3_prefix).uri, s3_server.client(credentials=credentials))

    with pytest.raises(AccessDenied, match="the access key is not valid; replace it in the profile's Secret"):
        store.read("a.json")


def test_credentials_are_read_from_files_without_their_final_newline(tmp_path: Path) -> None:
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text("key\n")
    (tmp_path / "AWS_SECRET_ACCESS_KEY").write_text("secret\n")

    assert Credentials.from_folder(tmp_path) == Credentials("key", "secret", None)
    assert Credentials.from_folder(None) is None


def write_credentials(folder: Path, credentials: Credentials) -> None:
    (folder / "AWS_ACCESS_KEY_ID").write_text(credentials.access_key_id)
    (folder / "AWS_SECRET_ACCESS_KEY").write_text(credentials.secret_access_key)


def test_a_client_uses_credentials_that_were_renewed_in_their_files(
    s3_server: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    write_credentials(tmp_path, s3_server.reader)
    location = s3_server.location(s3_prefix)
    store = S3Store(location.uri, create_client(location, find_credentials(tmp_path), reread_seconds=0.05))
    with pytest.raises(AccessDenied, match="lack s3:PutObject"):
        store.put("a.json", b"")

    write_credentials(tmp_path, s3_server.admin)
    time.sleep(0.1)  # longer than `reread_seconds`

    store.put("a.json", b"")


def test_credentials_that_were_removed_from_their_files_are_access_denied(
    s3_server: S3Server, s3_prefix: str, tmp_path: Path
) -> None:
    write_credentials(tmp_path, s3_server.admin)
    location = s3_server.location(s3_prefix)
    store = S3Store(location.uri, create_client(location, find_credentials(tmp_path), reread_seconds=0.05))
    for path in tmp_path.iterdir():
        path.unlink()
    time.sleep(0.1)  # longer than `reread_seconds`

    with pytest.raises(AccessDenied, match="were removed: add them to the profile's Secret"):
        store.read("a.json")


@pytest.mark.parametrize("code", ["ExpiredToken", "TokenRefreshRequired"])
def test_an_expired_token_is_a_transient_error_because_the_next_attempt_reads_a_new_one(code: str) -> None:
    from botocore.exceptions import ClientError

    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": 400}}
    with pytest.raises(TransientError, match="the session token has expired; renew it"), s3_errors("s3://bucket/key"):
        raise ClientError(answer, "PutObject")


def test_a_missing_half_of_the_credentials_is_named(tmp_path: Path) -> None:
    (tmp_path / "AWS_ACCESS_KEY_ID").write_text("key")

    with pytest.raises(AccessDenied, match="lack AWS_SECRET_ACCESS_KEY: add this key to the profile's Secret"):
        Credentials.from_folder(tmp_path)

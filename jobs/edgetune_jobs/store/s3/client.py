"""The S3 client: credentials, configuration, and translation of its errors into stage errors."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from edgetune_contract.access.s3_service import ChecksumMode
from edgetune_contract.request import StoreLocation
from edgetune_jobs.errors import AccessDenied, InvalidInput, StageError, TransientError

_CHECKSUMS = {ChecksumMode.WHEN_SUPPORTED: "when_supported", ChecksumMode.WHEN_REQUIRED: "when_required"}
_CONNECT_TIMEOUT_SECONDS = 10
_READ_TIMEOUT_SECONDS = 60
_REQUEST_ATTEMPTS = 5
# The kubelet takes about a minute to update the files of a Secret, and tokens are renewed minutes before they expire.
_REREAD_SECONDS = 60.0

_PERMISSIONS: Mapping[str, str] = {
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "CompleteMultipartUpload": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "ListObjectsV2": "s3:ListBucket",
    "PutObject": "s3:PutObject",
    "UploadPart": "s3:PutObject",
}
_BAD_CREDENTIALS = frozenset(
    {
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidToken",
        "SignatureDoesNotMatch",
    }
)
_EXPIRED = frozenset({"ExpiredToken", "TokenRefreshRequired"})
_TRANSIENT = frozenset(
    {
        "BadDigest",
        "IncompleteBody",
        "InternalError",
        "NoSuchUpload",  # aborted by another attempt that finished the same stage
        "RequestTimeout",
        "RequestTimeTooSkewed",
        "ServiceUnavailable",
        "SlowDown",
    }
)


@dataclass(frozen=True)
class Credentials:
    """An access key. Without one, the client uses its default chain, such as the Pod's identity."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None

    @classmethod
    def from_folder(cls, folder: Path | None) -> "Credentials | None":
        """Credentials from the files AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, optionally, AWS_SESSION_TOKEN.

        Raises:
            AccessDenied: only one of the first two exists and is not empty.
        """
        if folder is None:
            return None
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        found: list[str | None] = []
        # Read until two readings are equal: a renewal in between must not mix old and new files.
        while found != (found := [read_secret(folder, name) for name in names]):
            pass
        access_key_id, secret_access_key, session_token = found
        if access_key_id is None and secret_access_key is None:
            return None
        if access_key_id is None or secret_access_key is None:
            missing = names[0] if access_key_id is None else names[1]
            raise AccessDenied(f"the S3 credentials in {folder} lack {missing}: add this key to the profile's Secret")
        return cls(access_key_id, secret_access_key, session_token)


def read_secret(folder: Path, name: str) -> str | None:
    """A secret from a mounted file, without surrounding white space; None if the file is missing or empty."""
    path = folder / name
    return (path.read_text(encoding="utf-8").strip() or None) if path.is_file() else None


@dataclass(frozen=True)
class MountedCredentials:
    """An access key in files that are renewed regularly, such as session tokens in a mounted Secret."""

    folder: Path

    def read(self) -> Credentials:
        """The access key that is in the files now.

        Raises:
            AccessDenied: it is missing or incomplete.
        """
        credentials = Credentials.from_folder(self.folder)
        if credentials is None:
            raise AccessDenied(f"the S3 credentials in {self.folder} were removed: add them to the profile's Secret")
        return credentials


def find_credentials(folder: Path | None) -> MountedCredentials | None:
    """The credentials in a folder; None if it has none.

    Raises:
        AccessDenied: they are incomplete.
    """
    if folder is None or Credentials.from_folder(folder) is None:
        return None
    return MountedCredentials(folder)


def create_client(
    location: StoreLocation,
    credentials: Credentials | MountedCredentials | None,
    attempts: int = _REQUEST_ATTEMPTS,
    reread_seconds: float = _REREAD_SECONDS,
) -> Any:
    """A boto3 S3 client.

    Args:
        location: the store.
        credentials: an access key, or the files to read it from; None for the client's default chain.
        attempts: how often a request is sent at most, if errors are transient.
        reread_seconds: how long an access key from files is used before they are read again.

    Raises:
        AccessDenied: the access key in the files is incomplete.
    """
    from botocore.config import Config

    checksums = _CHECKSUMS[location.checksums]
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if location.path_style else "auto"},
        request_checksum_calculation=checksums,
        response_checksum_validation=checksums,
        retries={"mode": "standard", "max_attempts": attempts},
        connect_timeout=_CONNECT_TIMEOUT_SECONDS,
        read_timeout=_READ_TIMEOUT_SECONDS,
    )
    with s3_errors(location.uri):
        session = _create_session(credentials, reread_seconds)
        return session.client("s3", endpoint_url=location.endpoint, region_name=location.region, config=config)


def _create_session(credentials: Credentials | MountedCredentials | None, reread_seconds: float) -> Any:
    """A boto3 session with these credentials; those in files are read again regularly."""
    import boto3
    import botocore.session
    from botocore.credentials import CredentialProvider, CredentialResolver, RefreshableCredentials

    botocore_session = botocore.session.get_session()
    botocore_session.register_component("data_loader", _data_loader())
    if not isinstance(credentials, MountedCredentials):
        return boto3.session.Session(
            aws_access_key_id=credentials.access_key_id if credentials else None,
            aws_secret_access_key=credentials.secret_access_key if credentials else None,
            aws_session_token=credentials.session_token if credentials else None,
            botocore_session=botocore_session,
        )

    def read() -> dict[str, str | None]:
        now = credentials.read()
        return {
            "access_key": now.access_key_id,
            "secret_key": now.secret_access_key,
            "token": now.session_token,
            "expiry_time": (datetime.now(UTC) + timedelta(seconds=reread_seconds)).isoformat(),
        }

    class MountedFiles(CredentialProvider):
        METHOD = "mounted-files"

        def load(self) -> RefreshableCredentials:
            # Timeouts of 0: read again only after the expiry time, not earlier in the background.
            return RefreshableCredentials.create_from_metadata(
                read(), read, self.METHOD, advisory_timeout=0, mandatory_timeout=0
            )

    botocore_session.register_component("credential_provider", CredentialResolver([MountedFiles()]))
    return boto3.session.Session(botocore_session=botocore_session)


@functools.cache
def _data_loader() -> Any:
    """The reader of botocore's models of services and endpoints, which keeps them: they take 0.1 s to read."""
    import botocore.session

    return botocore.session.get_session().get_component("data_loader")


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI; the key has no / at its ends."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key.strip("/")


@contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    """Turns exceptions of boto3 into a StageError that names `uri`."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise _translate_response(error, uri) from error
    except (BotoCoreError, Boto3Error, ValueError) as error:
        raise _translate_client_error(error, uri) from error


def has_no_valid_credentials(error: BaseException | None) -> bool:
    """Whether an exception of boto3 says that there are no credentials, or that the service does not accept them."""
    from botocore import exceptions

    no_credentials = (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError,
        exceptions.TokenRetrievalError,
    )
    # Errors of the connection have the attribute too, without an answer.
    answer = getattr(error, "response", None) or {}
    code = answer.get("Error", {}).get("Code")
    return isinstance(error, no_credentials) or code in _EXPIRED or code in _BAD_CREDENTIALS


def status_of(error: Any) -> int:
    """HTTP status of a botocore ClientError; 0 if there was none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _translate_response(error: Any, uri: str) -> StageError:
    code = error.response.get("Error", {}).get("Code", "")
    status = status_of(error)
    answer = f"the store answered {status} {code}"
    if code in _EXPIRED:
        return TransientError(
            f"{answer} for {uri}: the session token has expired; renew it in the profile's Secret before it expires"
        )
    if code in _BAD_CREDENTIALS:
        return AccessDenied(f"{answer} for {uri}: the access key is not valid; replace it in the profile's Secret")
    if status >= 500 or status in (408, 429) or code in _TRANSIENT:
        return TransientError(f"{answer} to {error.operation_name} of {uri}, also after retries; try again later")
    if status in (401, 403):
        permission = _PERMISSIONS.get(error.operation_name, error.operation_name)
        return AccessDenied(f"{answer}: the credentials lack {permission} on {uri}; grant it")
    if code == "NoSuchBucket":  # transient: an object may be applied together with its bucket
        return TransientError(f"the bucket of {uri} does not exist; create it or correct the name")
    if status in (301, 307, 400) and code in ("PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed"):
        return InvalidInput(f"{answer} for {uri}: the bucket is in another region; set the profile's region")
    message = error.response.get("Error", {}).get("Message", "")
    return InvalidInput(f"{answer} to {error.operation_name} of {uri}: {message}".removesuffix(": "))


def _translate_client_error(error: Exception, uri: str) -> StageError:
    from botocore import exceptions

    cause = error.__cause__ or error
    if has_no_valid_credentials(error):
        return AccessDenied(
            f"no credentials for {uri}: {error}; name a Secret in the profile, give the Pod an identity, or on your "
            "own machine set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if isinstance(error, (exceptions.ParamValidationError, exceptions.NoRegionError, ValueError)):
        return InvalidInput(f"invalid request for {uri}: {error}")
    return TransientError(f"cannot reach the store at {uri}: {cause}")

"""Signatures that a device requires: the keys that it trusts, and the signatures of the versions that it has."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_cli.device.origins import Missing, Origin, PullError, read_whole
from edgetune_contract.digest import provenance_key, signature_key
from edgetune_contract.version import EdgeModel, VersionDocument
from edgetune_jobs.errors import InvalidInput

if TYPE_CHECKING:
    from edgetune_jobs.publishing.signing.keys import PublicKey

MOST_SIGNATURE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Signatures:
    """The signatures of a version's edge model."""

    provenance: bytes
    """Signed provenance, which covers the version's document."""

    files: bytes
    """Signature of the files, for `model_signing verify key`."""


@dataclass(frozen=True)
class SignedVersion:
    """A version whose document and edge model are to be covered by signatures."""

    document: VersionDocument
    data: bytes
    """The bytes of the document."""

    edge: EdgeModel


def read_keys(files: Sequence[Path]) -> bytes:
    """The public keys in PEM files, as one PEM text.

    Raises:
        PullError: a file has no key that can check signatures.
    """
    if not files:
        return b""
    try:
        from edgetune_jobs.publishing.signing.keys import read_public_keys

        return b"".join(key.pem for file in files for key in read_public_keys(file))
    except InvalidInput as error:
        raise PullError(str(error)) from error
    except ImportError as error:
        raise _not_installed(error) from error


def require_signed(version: SignedVersion, signatures: Signatures, place: str, trusted: bytes) -> None:
    """Check that signatures by a trusted key cover a version's document and edge model.

    Args:
        version: the version.
        signatures: of the version.
        place: the folder that they are in, for messages.
        trusted: the public keys that are trusted, in PEM.

    Raises:
        PullError: they do not.
    """
    document, edge = version.document, version.edge
    try:
        from edgetune_jobs.publishing.signing.checks import check_document, check_files
        from edgetune_jobs.publishing.signing.keys import parse_public_keys

        keys: tuple[PublicKey, ...] = parse_public_keys(trusted)
        check_document(
            signatures.provenance,
            f"{place}/{provenance_key(document.model, document.version)}",
            document,
            version.data,
            keys,
        )
        key = signature_key(document.model, document.version, edge.artifact.name)
        check_files(signatures.files, f"{place}/{key}", edge.artifact.name, edge.all_files, keys)
    except InvalidInput as error:
        raise PullError(str(error)) from error
    except ImportError as error:
        raise _not_installed(error) from error


def fetch_signatures(origin: Origin, version: SignedVersion, trusted: bytes) -> Signatures:
    """The signatures of a version at its origin, by a trusted key.

    Raises:
        PullError: there are none, or they do not hold.
    """
    document, edge = version.document, version.edge
    keys = (
        provenance_key(document.model, document.version),
        signature_key(document.model, document.version, edge.artifact.name),
    )
    try:
        provenance, files = (read_whole(origin, key, MOST_SIGNATURE_BYTES) for key in keys)
    except Missing:
        raise no_signature(f"{origin.uri}/{keys[0]}", document) from None
    signatures = Signatures(provenance, files)
    require_signed(version, signatures, origin.uri, trusted)
    return signatures


def no_signature(place: str, document: VersionDocument) -> PullError:
    """The error of a version without signatures."""
    from edgetune_jobs.publishing.signing.checks import missing_signature

    return PullError(str(missing_signature(place, document)))


def _not_installed(error: ImportError) -> PullError:
    package = str(error.name).partition(".")[0]
    return PullError(
        f"signatures cannot be checked without {package}: run `pip install '.[pull]'` in a checkout of Edgetune"
    )

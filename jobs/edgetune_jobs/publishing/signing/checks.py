"""Checks of a version's signatures: what each one covers, compared with the version's document.

provenance.sigstore.json ── subject: the document, by the SHA-256 of its bytes ── it lists the files of each edge model
<artifact>.sig           ── the files of one artifact, as `model_signing verify key` compares them with a folder
"""

import hashlib
from collections.abc import Sequence

from edgetune_contract.digest import version_key
from edgetune_contract.request import FileEntry
from edgetune_contract.version import VersionDocument
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.signing.bundle import Statement, open_bundle
from edgetune_jobs.publishing.signing.keys import PublicKey

PROVENANCE_TYPE = "https://slsa.dev/provenance/v1"
MODEL_TYPE = "https://model_signing/signature/v1.0"
"""Type of the predicate that model-signing writes."""


def missing_signature(place: str, document: VersionDocument) -> InvalidInput:
    """The error of a version without a signature where one is required."""
    return InvalidInput(
        f"version {document.version} of {document.model} has no signature at {place}, and one is required: set "
        "`signing` in the profile that publishes it, and publish it again"
    )


def check_document(
    bundle: bytes, place: str, document: VersionDocument, data: bytes, keys: Sequence[PublicKey]
) -> Statement:
    """Check that a signed provenance is that of a version.

    Args:
        bundle: the signed provenance.
        place: where it is, for messages.
        document: the version.
        data: the bytes of its document.
        keys: the keys that are trusted.

    Returns:
        The provenance.

    Raises:
        InvalidInput: it was not signed by one of the keys, it is that of another version, or the document was changed.
    """
    statement = open_bundle(bundle, place, keys)
    if statement.predicate_type != PROVENANCE_TYPE or not statement.subject:
        raise InvalidInput(f"{place} is signed, but is no provenance: {statement.predicate_type}")
    signed, expected = statement.subject[0], version_key(document.model, document.version)
    if signed.name != expected:
        raise InvalidInput(f"{place} is the signature of another version, {signed.name} instead of {expected}")
    found = hashlib.sha256(data).hexdigest()
    if signed.digest.get("sha256") != found:
        raise InvalidInput(
            f"the document of version {document.version} of {document.model} was changed after it was signed: its "
            f"SHA-256 is {found} instead of {signed.digest.get('sha256')} in {place}"
        )
    return statement


def check_files(
    bundle: bytes, place: str, artifact: str, files: Sequence[FileEntry], keys: Sequence[PublicKey]
) -> None:
    """Check that a signature covers exactly the files of an artifact.

    Raises:
        InvalidInput: it was not signed by one of the keys, or covers other files.
    """
    statement = open_bundle(bundle, place, keys)
    if statement.predicate_type != MODEL_TYPE:
        raise InvalidInput(f"{place} is signed, but is no signature of a model: {statement.predicate_type}")
    resources = statement.predicate.get("resources")
    signed = [_entry(each) for each in resources] if isinstance(resources, list) else []
    if sorted(signed) != sorted((each.path, "sha256", each.sha256) for each in files):
        raise InvalidInput(f"{place} is the signature of other files than those of {artifact} in the version")


def _entry(resource: object) -> tuple[str, str, str]:
    fields = resource if isinstance(resource, dict) else {}
    name, algorithm, digest = (str(fields.get(field, "")) for field in ("name", "algorithm", "digest"))
    return name, algorithm, digest

"""The signatures of a version in a store: what they say, and whether they hold."""

from collections.abc import Iterator, Sequence
from enum import StrEnum

from edgetune_contract.digest import provenance_key, signature_key
from edgetune_contract.schema import Model
from edgetune_contract.version import VersionDocument
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.signing.bundle import Statement, key_of
from edgetune_jobs.publishing.signing.checks import check_document, check_files, missing_signature
from edgetune_jobs.publishing.signing.keys import PublicKey
from edgetune_jobs.store.store import Store, uri_of


class SignatureState(StrEnum):
    """What is known about the signatures of a version."""

    VALID = "valid"
    INVALID = "invalid"
    MISSING = "missing"
    UNCHECKED = "unchecked"
    """There are signatures, but no keys to check them with."""


class SignatureCheck(Model):
    """The signatures of a version."""

    state: SignatureState
    key: str = ""
    """Fingerprint of the key that the signature names: SHA-256 of the public key in PEM."""

    source_revision: str = ""
    """Git commit in the signed provenance, if the signature is valid."""

    problems: tuple[str, ...] = ()


def check_signatures(store: Store, document: VersionDocument, data: bytes, keys: Sequence[PublicKey]) -> SignatureCheck:
    """Check the signatures of a version: its provenance, and one of each edge model's files.

    Args:
        store: has them.
        document: the version.
        data: the bytes of its document.
        keys: the keys that are trusted; without them, nothing is checked or required.

    Raises:
        AccessDenied, TransientError: the store cannot be read.
    """
    key = provenance_key(document.model, document.version)
    place, found = uri_of(store, key), store.read(key)
    if found is None:
        problems = (str(missing_signature(place, document)),) if keys else ()
        return SignatureCheck(state=SignatureState.MISSING, problems=problems)
    try:
        named = key_of(found.data, place)
        if not keys:
            return SignatureCheck(state=SignatureState.UNCHECKED, key=named)
        statement = check_document(found.data, place, document, data, keys)
    except InvalidInput as error:
        return SignatureCheck(state=SignatureState.INVALID, problems=(str(error),))
    wrong = tuple(_file_problems(store, document, keys))
    state = SignatureState.INVALID if wrong else SignatureState.VALID
    return SignatureCheck(state=state, key=named, source_revision=_source_revision(statement), problems=wrong)


def _file_problems(store: Store, document: VersionDocument, keys: Sequence[PublicKey]) -> Iterator[str]:
    for edge in document.edges:
        key = signature_key(document.model, document.version, edge.artifact.name)
        place, found = uri_of(store, key), store.read(key)
        if found is None:
            yield str(missing_signature(place, document))
            continue
        try:
            check_files(found.data, place, edge.artifact.name, edge.all_files, keys)
        except InvalidInput as error:
            yield str(error)


def _source_revision(statement: Statement) -> str:
    definition = statement.predicate.get("buildDefinition")
    dependencies = definition.get("resolvedDependencies") if isinstance(definition, dict) else None
    for each in dependencies if isinstance(dependencies, list) else ():
        annotations = each.get("annotations") if isinstance(each, dict) and each.get("name") == "source" else None
        if isinstance(annotations, dict):
            return str(annotations.get("revision", ""))
    return ""

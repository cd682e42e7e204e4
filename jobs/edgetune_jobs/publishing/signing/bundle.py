"""Sigstore bundles: a DSSE envelope with an in-toto statement, signed by a key that the bundle names.

What model-signing writes and reads with a key. Formats: https://docs.sigstore.dev/about/bundle/,
https://github.com/secure-systems-lab/dsse and https://github.com/in-toto/attestation/tree/main/spec/v1.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Base64Bytes, ConfigDict, Field, ValidationError

from edgetune_contract.digest import canonical_json
from edgetune_contract.schema import Model
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.signing.keys import PrivateKey, PublicKey

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"


class _Part(Model):
    """A part of a bundle. Bundles may have more than is read here."""

    model_config = ConfigDict(extra="ignore")


class _KeyName(_Part):
    hint: str


class _Material(_Part):
    public_key: _KeyName


class _Signature(_Part):
    sig: Base64Bytes


class _Envelope(_Part):
    payload: Base64Bytes
    payload_type: Literal["application/vnd.in-toto+json"]
    signatures: Annotated[tuple[_Signature, ...], Field(min_length=1)]


class _Bundle(_Part):
    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: _Material
    dsse_envelope: _Envelope


class Resource(_Part):
    """What a statement is about."""

    name: str
    digest: dict[str, str]


class Statement(_Part):
    """A signed statement."""

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: tuple[Resource, ...]
    predicate_type: str
    predicate: dict[str, Any]


def write_bundle(statement: Mapping[str, Any], key: PrivateKey) -> bytes:
    """A bundle with an in-toto statement, without its `_type`, as JSON."""
    payload = canonical_json({"_type": STATEMENT_TYPE, **statement})
    signature = key.sign(_encoded(payload))
    return canonical_json(
        {
            "mediaType": _MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": key.public.fingerprint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": _base64(payload),
                "payloadType": _PAYLOAD_TYPE,
                "signatures": [{"sig": _base64(signature), "keyid": ""}],
            },
        }
    )


def key_of(data: bytes, place: str) -> str:
    """Fingerprint of the key that a bundle names, which is not checked.

    Raises:
        InvalidInput: it is not a bundle.
    """
    return _parse(data, place).verification_material.public_key.hint


def open_bundle(data: bytes, place: str, keys: Sequence[PublicKey]) -> Statement:
    """The statement in a bundle that one of the keys has signed.

    Args:
        data: the bundle as JSON.
        place: of the bundle, for messages.
        keys: the keys that are trusted.

    Raises:
        InvalidInput: it is not a bundle, it is signed by another key, or it was changed after it was signed.
    """
    bundle = _parse(data, place)
    named = bundle.verification_material.public_key.hint
    key = next((key for key in keys if key.fingerprint == named), None)
    if key is None:
        trusted = " and ".join(map(str, keys))
        raise InvalidInput(
            f"{place} is signed by another key: {named[:12]}, and the trusted ones are {trusted} (SHA-256 of the "
            "public key); if the publisher has a new key, give all trusted keys again: --verify-key OLD --verify-key "
            "NEW"
        )
    envelope = bundle.dsse_envelope
    if not key.has_signed(envelope.signatures[0].sig, _encoded(envelope.payload)):
        raise InvalidInput(f"{place} was changed after it was signed: its signature by {key} is not valid")
    try:
        return Statement.model_validate_json(envelope.payload)
    except ValidationError as error:
        raise InvalidInput(f"{place} is signed, but has no in-toto statement: {_first(error)}") from error


def _parse(data: bytes, place: str) -> _Bundle:
    try:
        return _Bundle.model_validate_json(data)
    except ValidationError as error:
        raise InvalidInput(f"{place} is damaged: it is not a signature by a key: {_first(error)}") from error


def _encoded(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding."""
    return b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return ": ".join(filter(None, (".".join(map(str, first["loc"])), first["msg"])))

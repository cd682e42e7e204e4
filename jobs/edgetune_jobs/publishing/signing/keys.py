"""Keys of signatures: ECDSA keys on NIST curves, in PEM files as OpenSSL and model-signing write and read them.

`cryptography` is imported when a key is used: `edgetune pull` runs without it where nothing is signed.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetune_jobs.errors import InvalidInput

_HOW_TO_MAKE = "make one with `openssl ecparam -name prime256v1 -genkey -noout -out signing.pem`"
_PUBLIC = re.compile(rb"-----BEGIN PUBLIC KEY-----[^-]*-----END PUBLIC KEY-----\s*")
_SHORT = 12
# As model-signing and the Sigstore bundle pair them.
_HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are checked with."""

    pem: bytes
    """SubjectPublicKeyInfo in PEM, as `cryptography` writes it."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the PEM text, by which signatures name their key."""
        return hashlib.sha256(self.pem).hexdigest()

    def has_signed(self, signature: bytes, message: bytes) -> bool:
        """Whether a signature of the message is by this key."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        key: Any = load_pem_public_key(self.pem)
        try:
            key.verify(signature, message, _algorithm(key.curve.name))
        except InvalidSignature:
            return False
        return True

    def __str__(self) -> str:
        return self.fingerprint[:_SHORT]


@dataclass(frozen=True)
class PrivateKey:
    """A key that signs."""

    file: Path
    _key: Any

    @property
    def public(self) -> PublicKey:
        """The key that devices get."""
        return _public(self._key.public_key())

    def sign(self, message: bytes) -> bytes:
        """A signature of the message."""
        signature: bytes = self._key.sign(message, _algorithm(self._key.curve.name))
        return signature


def read_private_key(path: Path) -> PrivateKey:
    """The private key in a PEM file.

    Raises:
        InvalidInput: there is none that can sign. The message says how to make one.
    """
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data, place = _read(path), f"the signing key {path}"
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as error:
        raise InvalidInput(
            f"{place} is encrypted with a passphrase, which no stage can enter: store it without one, as "
            "`openssl ec -in encrypted.pem -out signing.pem` writes it"
        ) from error
    except ValueError as error:
        what = "is a public key" if _PUBLIC.search(data) else "is not a private key in PEM"
        raise InvalidInput(f"{place} {what}; {_HOW_TO_MAKE}") from error
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise InvalidInput(f"{place} is {_kind(key)}, but signatures need an ECDSA key; {_HOW_TO_MAKE}")
    return PrivateKey(path, key)


def read_public_keys(path: Path) -> tuple[PublicKey, ...]:
    """All public keys in a PEM file.

    Raises:
        InvalidInput: there is none, or one that cannot check signatures. The message says how to make one.
    """
    data = _read(path)
    if found := _PUBLIC.findall(data):
        return tuple(_load_public(pem, path) for pem in found)
    kind = next((kind for kind in ("PRIVATE KEY", "CERTIFICATE") if f" {kind}-----".encode() in data), "")
    how = {
        "PRIVATE KEY": f"is a private key, which only the publisher may have: `openssl pkey -in {path} -pubout` prints "
        "its public key",
        "CERTIFICATE": f"is a certificate: `openssl x509 -in {path} -noout -pubkey` prints its public key",
    }
    raise InvalidInput(f"{path} {how.get(kind, 'is not a public key in PEM: give that of the publisher')}")


def parse_public_keys(data: bytes) -> tuple[PublicKey, ...]:
    """All public keys in PEM, of which `PublicKey.pem` was written before.

    Raises:
        InvalidInput: there is none, or one that cannot check signatures.
    """
    return tuple(_load_public(pem, Path()) for pem in _PUBLIC.findall(data))


def _load_public(pem: bytes, path: Path) -> PublicKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidInput(f"{path} is damaged: its public key cannot be read") from error
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise InvalidInput(f"{path} is {_kind(key)}, but signatures are by ECDSA keys; give the key of the publisher")
    return _public(key)


def _public(key: Any) -> PublicKey:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return PublicKey(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _algorithm(curve: str) -> Any:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    return ECDSA(getattr(hashes, _HASHES[curve])())


def _kind(key: Any) -> str:
    curve = getattr(key, "curve", None)
    name = type(key).__name__.removeprefix("_").removesuffix("PublicKey").removesuffix("PrivateKey")
    return f"a {name} key" if curve is None else f"a key on the curve {curve.name}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read the key {path}: {error.strerror}") from error

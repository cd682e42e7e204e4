"""Keys as people make them, and what is said about files that are no such keys."""

import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.signing.keys import read_private_key, read_public_keys
from support.signing import make_key

ECDSA = "openssl ecparam -name prime256v1 -genkey -noout -out signing.pem"
WITHOUT_PASSPHRASE = "`openssl ec -in encrypted.pem -out signing.pem`"


def pem_of(key: PrivateKeyTypes, password: bytes | None = None) -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def refusal_of_private(path: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        read_private_key(path)
    return str(caught.value)


@pytest.mark.parametrize("curve", [ec.SECP256R1, ec.SECP384R1, ec.SECP521R1])
def test_a_signature_is_by_its_key_and_no_other(curve: type[ec.EllipticCurve], tmp_path: Path) -> None:
    own, other = make_key(tmp_path, "own", curve), make_key(tmp_path, "other", curve)

    signature = read_private_key(own.private).sign(b"message")

    (key,), (stranger,) = own.keys, other.keys
    assert key.has_signed(signature, b"message")
    assert not key.has_signed(signature, b"another message")
    assert not key.has_signed(b"no signature", b"message")
    assert not stranger.has_signed(signature, b"message")
    assert read_private_key(own.private).public == key


@pytest.mark.parametrize("options", ["", "-noout"])
def test_keys_as_openssl_makes_them_are_read(options: str, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    private, public = tmp_path / "signing.pem", tmp_path / "signing.pub"
    make = [openssl, "ecparam", "-name", "prime256v1", "-genkey", *options.split(), "-out", str(private)]
    subprocess.run(make, check=True, capture_output=True)
    subprocess.run([openssl, "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)

    assert read_public_keys(public) == (read_private_key(private).public,)


def test_a_file_may_have_several_public_keys(tmp_path: Path) -> None:
    old, new = make_key(tmp_path, "old"), make_key(tmp_path, "new")
    both = tmp_path / "both.pub"
    both.write_bytes(b"old and new\n" + old.public.read_bytes() + b"\n" + new.public.read_bytes())

    assert read_public_keys(both) == (*old.keys, *new.keys)


BAD_PRIVATE_KEYS = {
    "encrypted": (pem_of(ec.generate_private_key(ec.SECP256R1()), b"secret"), WITHOUT_PASSPHRASE),
    "public": (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        f"is a public key; make one with `{ECDSA}`",
    ),
    "of no curve": (pem_of(ed25519.Ed25519PrivateKey.generate()), "is a Ed25519 key, but signatures need an ECDSA key"),
    "RSA": (pem_of(rsa.generate_private_key(65537, 2048)), "is a RSA key, but signatures need an ECDSA key"),
    "of another curve": (pem_of(ec.generate_private_key(ec.SECP256K1())), "is a key on the curve secp256k1, but"),
    "text": (b"my secret", f"is not a private key in PEM; make one with `{ECDSA}`"),
    "cut": (pem_of(ec.generate_private_key(ec.SECP256R1()))[:100], "is not a private key in PEM; make one with"),
    "empty": (b"", "is not a private key in PEM; make one with"),
}


@pytest.mark.parametrize("kind", BAD_PRIVATE_KEYS)
def test_a_private_key_that_cannot_sign_is_refused_with_what_to_do(kind: str, tmp_path: Path) -> None:
    data, message = BAD_PRIVATE_KEYS[kind]
    path = tmp_path / "signing.pem"
    path.write_bytes(data)

    said = refusal_of_private(path)

    assert said.startswith(f"the signing key {path} is ")
    assert message in said


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "signing.pem"
    assert refusal_of_private(path) == f"cannot read the key {path}: No such file or directory"


BAD_PUBLIC_KEYS = {
    "private": (
        pem_of(ec.generate_private_key(ec.SECP256R1())),
        "is a private key, which only the publisher may have: `openssl pkey -in",
    ),
    "certificate": (
        b"-----BEGIN CERTIFICATE-----\nMII=\n-----END CERTIFICATE-----\n",
        "is a certificate: `openssl x509",
    ),
    "text": (b"trust me", "is not a public key in PEM"),
    "damaged": (
        b"-----BEGIN PUBLIC KEY-----\nMII=\n-----END PUBLIC KEY-----\n",
        "is damaged: its public key cannot be",
    ),
    "RSA": (
        rsa.generate_private_key(65537, 2048)
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "is a RSA key, but signatures are by ECDSA keys",
    ),
}


@pytest.mark.parametrize("kind", BAD_PUBLIC_KEYS)
def test_a_file_without_a_key_that_checks_signatures_is_refused(kind: str, tmp_path: Path) -> None:
    data, message = BAD_PUBLIC_KEYS[kind]
    path = tmp_path / "signing.pub"
    path.write_bytes(data)

    with pytest.raises(InvalidInput) as caught:
        read_public_keys(path)
    assert str(caught.value).startswith(f"{path} is ")
    assert message in str(caught.value)

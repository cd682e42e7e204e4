"""Certificates of one cluster, created with openssl."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_DAYS = "365"
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")
# The machine's own configuration would make every certificate a certificate authority.
_CONFIGURATION = "[req]\ndistinguished_name = dn\n[dn]\n"
_KEY_IDENTIFIERS = ("subjectKeyIdentifier=hash", "authorityKeyIdentifier=keyid")


@dataclass(frozen=True)
class KeyPair:
    """A certificate with its private key, both PEM files."""

    certificate: Path
    key: Path


def make_authority(folder: Path, name: str) -> KeyPair:
    """A certificate authority."""
    pair = KeyPair(folder / f"{name}.crt", folder / f"{name}.key")
    extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"]
    _request(pair, f"/CN={name}", extensions)
    return pair


def issue(authority: KeyPair, name: str, subject: str, addresses: Sequence[str] = ()) -> KeyPair:
    """Issue a certificate in the authority's folder.

    Args:
        name: the files' name.
        subject: such as /O=system:masters/CN=admin.
        addresses: a server's names (DNS:…) and addresses (IP:…); without any, the certificate is a client's.
    """
    folder = authority.certificate.parent
    pair = KeyPair(folder / f"{name}.crt", folder / f"{name}.key")
    extensions = ["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature"]
    extensions.append(f"extendedKeyUsage={'serverAuth' if addresses else 'clientAuth'}")
    if addresses:
        extensions.append(f"subjectAltName={','.join(addresses)}")
    _request(pair, subject, extensions, "-CA", str(authority.certificate), "-CAkey", str(authority.key))
    return pair


def make_signing_key(folder: Path, name: str) -> KeyPair:
    """A private key with its public key (instead of a certificate), for service account tokens."""
    pair = KeyPair(folder / f"{name}.pub", folder / f"{name}.key")
    _openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(pair.key))
    _openssl("pkey", "-in", str(pair.key), "-pubout", "-out", str(pair.certificate))
    return pair


def _request(pair: KeyPair, subject: str, extensions: Sequence[str], *signed_by: str) -> None:
    configuration = pair.key.with_name("openssl.cnf")
    configuration.write_text(_CONFIGURATION, encoding="utf-8")
    added = [argument for extension in (*extensions, *_KEY_IDENTIFIERS) for argument in ("-addext", extension)]
    files = ("-config", str(configuration), "-keyout", str(pair.key), "-out", str(pair.certificate))
    _openssl("req", "-x509", "-days", _DAYS, "-subj", subject, *_NEW_KEY, *files, *signed_by, *added)


def _openssl(*arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {arguments[0]} failed: {done.stderr.strip()}")

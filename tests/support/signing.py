"""Keys of a publisher, and what people run to check its signatures."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from edgetune_jobs.publishing.signing.keys import PublicKey, read_public_keys


@dataclass(frozen=True)
class KeyFiles:
    """The two PEM files of a key."""

    private: Path
    public: Path

    @property
    def keys(self) -> tuple[PublicKey, ...]:
        """The public key, as devices trust it."""
        return read_public_keys(self.public)


def make_key(folder: Path, name: str = "signing", curve: type[ec.EllipticCurve] = ec.SECP256R1) -> KeyFiles:
    """A key in files of a folder, as `openssl ecparam` and `openssl pkey -pubout` write them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = KeyFiles(folder / f"{name}.pem", folder / f"{name}.pub")
    key = ec.generate_private_key(curve())
    files.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    files.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return files


def model_signing(*arguments: object) -> tuple[int, str]:
    """Exit code and output of the command line of the package model-signing."""
    command = [sys.executable, "-m", "model_signing", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def check_by_model_signing(folder: Path, signature: Path, key: KeyFiles) -> None:
    """Check a folder by the functions of the package model-signing.

    Raises:
        ValueError: the folder, the signature and the key do not fit together.
    """
    from model_signing.verifying import Config

    Config().use_elliptic_key_verifier(public_key=key.public).verify(folder, signature)


def verified_by_model_signing(folder: Path, signature: Path, key: KeyFiles) -> tuple[int, str]:
    """What `model_signing verify key` says about a folder."""
    return model_signing("verify", "key", folder, "--signature", signature, "--public_key", key.public)

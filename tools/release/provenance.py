"""What a download is checked with: checksums of all files, signed provenance, and a signature of the checksums.

    provenance.sigstore.json   in-toto statement, SLSA provenance v1, about every file but the three of this module
    checksums.txt              SHA-256 of every file, also of the provenance, for `sha256sum --check`
    checksums.txt.sig          signature of checksums.txt, for `openssl dgst -verify`

A release without a key has provenance.json, which is not signed, and no checksums.txt.sig.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgetune_contract.digest import canonical_json
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.publishing.signing.bundle import STATEMENT_TYPE, open_bundle, write_bundle
from edgetune_jobs.publishing.signing.checks import PROVENANCE_TYPE
from edgetune_jobs.publishing.signing.keys import PrivateKey, PublicKey
from release.checks import Source

CHECKSUMS = "checksums.txt"
SIGNATURE = "checksums.txt.sig"
SIGNED = "provenance.sigstore.json"
UNSIGNED = "provenance.json"
BUILD_TYPE = "https://edgetune.dev/release/v1"
BUILDER = "https://edgetune.dev/make-release"
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)")
_CHUNK = 1 << 20


def seal(folder: Path, source: Source, base_image: str, key: PrivateKey | None) -> None:
    """Write provenance, checksums and signature for the files of a folder.

    Args:
        folder: has the files of the release, and no folders.
        source: what they were built from.
        base_image: of both images.
        key: signs; None for a release without signatures.
    """
    statement = _statement(_digests(folder), source, base_image)
    if key is None:
        (folder / UNSIGNED).write_bytes(canonical_json({"_type": STATEMENT_TYPE, **statement}))
    else:
        (folder / SIGNED).write_bytes(write_bundle(statement, key))
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in _digests(folder).items())
    (folder / CHECKSUMS).write_text(lines, encoding="utf-8")
    if key is not None:
        (folder / SIGNATURE).write_bytes(key.sign(lines.encode()))


def problems(folder: Path, keys: Sequence[PublicKey]) -> tuple[str, ...]:
    """What is wrong with the files of a release; empty if nothing is.

    Args:
        folder: the release, completely downloaded.
        keys: the keys that are trusted; without them, signatures are not checked.
    """
    try:
        text = (folder / CHECKSUMS).read_bytes()
    except OSError:
        return (f"{folder} has no {CHECKSUMS}: download it too",)
    expected = {name: sha256 for sha256, name in _LINE.findall(text.decode(errors="replace"))}
    found = _digests(folder)
    wrong = [f"{name} is missing: download it again" for name in expected.keys() - found.keys()]
    wrong += [f"{name} is in no line of {CHECKSUMS}: remove it" for name in found.keys() - expected.keys()]
    wrong += [
        f"{name} was changed: its SHA-256 is {found[name]} instead of {sha256}; download it again"
        for name, sha256 in expected.items()
        if found.get(name, sha256) != sha256
    ]
    return (*sorted(wrong), *(_signature_problems(folder, text, found, keys) if keys else ()))


def _signature_problems(
    folder: Path, checksums: bytes, found: Mapping[str, str], keys: Sequence[PublicKey]
) -> tuple[str, ...]:
    missing = [name for name in (SIGNATURE, SIGNED) if not (folder / name).is_file()]
    if missing:
        return (f"the release is not signed: it has no {' and no '.join(missing)}",)
    signature = (folder / SIGNATURE).read_bytes()
    if not any(key.has_signed(signature, checksums) for key in keys):
        return (f"{SIGNATURE} is no signature of {CHECKSUMS} by a trusted key: trust nothing of this release",)
    try:
        statement = open_bundle((folder / SIGNED).read_bytes(), SIGNED, keys)
    except InvalidInput as error:
        return (str(error),)
    subjects = {subject.name: subject.digest.get("sha256") for subject in statement.subject}
    if statement.predicate_type != PROVENANCE_TYPE or subjects != {
        name: sha256 for name, sha256 in found.items() if name != SIGNED
    }:
        return (f"{SIGNED} is the provenance of other files",)
    return ()


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that checksums.txt lists, by name."""
    paths = sorted(path for path in folder.iterdir() if path.name not in (CHECKSUMS, SIGNATURE))
    return {path.name: sha256_of(path) for path in paths}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _statement(digests: Mapping[str, str], source: Source, base_image: str) -> dict[str, Any]:
    """The statement about a release, without its `_type`."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "subject": [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in digests.items()],
        "predicateType": PROVENANCE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"version": source.version, "tag": source.tag},
                "resolvedDependencies": [
                    {"name": "source", "digest": {"gitCommit": source.commit}},
                    {"name": "baseImage", "uri": base_image},
                ],
            },
            "runDetails": {"builder": {"id": BUILDER}, "metadata": {"finishedOn": now}},
        },
    }

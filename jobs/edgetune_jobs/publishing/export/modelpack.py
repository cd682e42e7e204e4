"""The layout of a model in an OCI registry, by the CNCF ModelPack specification: one layer for each file, as it is."""

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from edgetune_contract.digest import canonical_json
from edgetune_contract.request import FileEntry
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage
from edgetune_jobs.publishing.export.bundle import SIGNATURE, Bundle
from edgetune_jobs.publishing.model_card.card import CARD
from edgetune_jobs.store.files import fingerprint_of_bytes
from edgetune_jobs.store.sources.licence import LICENCE_FACT

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
FILE_PATH = "org.cncf.model.filepath"
"""Annotation of a layer: path of its file."""

_WEIGHTS = "application/vnd.cncf.model.weight.v1.raw"
_WEIGHTS_CONFIG = "application/vnd.cncf.model.weight.config.v1.raw"
_DOCUMENTATION = "application/vnd.cncf.model.doc.v1.raw"
_TITLE = "org.opencontainers.image.title"  # by which `oras pull` names files
_SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "cc-by-4.0": "CC-BY-4.0"}


def config_of(bundle: Bundle) -> bytes:
    """The configuration of the artifact, in JSON. It depends on nothing but the version."""
    document, edge = bundle.document, bundle.edge
    prepared = document.provenance.stages.get(Stage.PREPARE)
    licence = prepared.facts.get(LICENCE_FACT) if prepared is not None else None
    descriptor: dict[str, Any] = {
        "createdAt": document.created_at,
        "name": document.model,
        "version": document.version,
    }
    if licence:
        descriptor["licenses"] = [_SPDX.get(licence, f"LicenseRef-{licence}")]
    suffixes = {PurePosixPath(entry.path).suffix for entry in edge.files}
    model_format = "gguf" if ".gguf" in suffixes else "safetensors"
    quantization = next((each.value for each in EdgeFormat if each.artifact == edge.artifact.name), edge.artifact.name)
    return canonical_json(
        {
            "descriptor": descriptor,
            "config": {
                "architecture": "transformer",
                "format": model_format,
                "quantization": quantization,
                "capabilities": {"inputTypes": ["text"], "outputTypes": ["text"]},
            },
            "modelfs": {"type": "layers", "diffIds": [_digest(entry.sha256) for entry in bundle.entries]},
        }
    )


def manifest_of(bundle: Bundle, config: bytes) -> dict[str, Any]:
    """The manifest of the artifact."""
    found = fingerprint_of_bytes(config)
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": _digest(found.sha256), "size": found.bytes},
        "layers": [layer_of(entry) for entry in bundle.entries],
        "annotations": {
            "org.opencontainers.image.title": bundle.document.model,
            "org.opencontainers.image.version": bundle.document.version,
            "org.opencontainers.image.created": bundle.document.created_at,
        },
    }


def layer_of(entry: FileEntry) -> Mapping[str, Any]:
    """The descriptor of a file: its media type, digest, size and path."""
    metadata = {"name": entry.path, "mode": 0o644, "uid": 0, "gid": 0, "size": entry.bytes, "typeflag": 0}
    return {
        "mediaType": _media_type(entry.path),
        "digest": _digest(entry.sha256),
        "size": entry.bytes,
        "annotations": {
            FILE_PATH: entry.path,
            "org.cncf.model.file.metadata+json": json.dumps(metadata, sort_keys=True),
            _TITLE: entry.path,
        },
    }


def _media_type(path: str) -> str:
    if path in (CARD, SIGNATURE):
        return _DOCUMENTATION
    return _WEIGHTS if PurePosixPath(path).suffix in (".safetensors", ".gguf") else _WEIGHTS_CONFIG


def _digest(sha256: str) -> str:
    return f"sha256:{sha256}"

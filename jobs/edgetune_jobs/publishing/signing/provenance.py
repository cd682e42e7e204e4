"""Provenance of a version as an in-toto statement: SLSA provenance v1.

It says who built what from what. Its first subject is the version's document, so that its signature is that of the
document too; the others are the files of the edge models, by which tools for attestations find it.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from edgetune_contract.digest import version_key
from edgetune_contract.version import VersionDocument
from edgetune_jobs.publishing.signing.checks import PROVENANCE_TYPE

BUILD_TYPE = "https://edgetune.dev/LoraFineTune/v1alpha1"
BUILDER = "https://edgetune.dev/edgetune-jobs"
_COMMIT = re.compile(r"(?:.*[:@/])?(?P<commit>[0-9a-f]{40}|[0-9a-f]{64})")
_IMAGE_DIGEST = re.compile(r".+@sha256:(?P<sha256>[0-9a-f]{64})")


@dataclass(frozen=True)
class Build:
    """What only the publish stage knows about a build."""

    release: str
    """Version of Edgetune."""

    image: str
    """Reference of the publish stage's image, as in the Pod; empty outside a container."""

    source_revision: str
    """Git commit of the object, such as main@sha1:0123…; empty if it is not known."""


def provenance(document: VersionDocument, data: bytes, build: Build) -> dict[str, Any]:
    """The statement about a version, without its `_type`.

    Args:
        document: the version.
        data: the bytes of its document.
        build: what the document does not have.
    """
    origins = document.provenance.stages
    started = min((origin.created_at for origin in origins.values()), default=document.created_at)
    return {
        "subject": list(_subjects(document, data)),
        "predicateType": PROVENANCE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "namespace": document.namespace,
                    "name": document.model,
                    "spec": document.provenance.parameters,
                },
                "internalParameters": {
                    "stages": {
                        stage: {"digest": origin.digest, "libraries": origin.libraries}
                        for stage, origin in origins.items()
                    }
                },
                "resolvedDependencies": list(_dependencies(document, build)),
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": {"edgetune": build.release}},
                "metadata": {
                    "invocationId": document.version,
                    "startedOn": started,
                    "finishedOn": document.created_at,
                },
            },
        },
    }


def _subjects(document: VersionDocument, data: bytes) -> Iterator[dict[str, Any]]:
    yield _resource(version_key(document.model, document.version), hashlib.sha256(data).hexdigest())
    for edge in document.edges:
        for entry in edge.all_files:
            yield _resource(f"{edge.artifact.name}/{entry.path}", entry.sha256)


def _resource(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}


def _dependencies(document: VersionDocument, build: Build) -> Iterator[dict[str, Any]]:
    """Base, data, images and the source, as in-toto's resource descriptors."""
    parameters, resolved = document.provenance.parameters, document.provenance.resolved
    digests = {("baseModel",): resolved.base, ("dataset", "train"): resolved.train, ("dataset", "eval"): resolved.eval}
    for path, digest in digests.items():
        if digest is not None:
            uri = _uri(parameters, path)
            yield _resource("/".join(path), digest) | ({"uri": uri} if uri else {})
    images = {origin.image for origin in document.provenance.stages.values()} | {build.image}
    for image in sorted(images - {""}):
        pinned = _IMAGE_DIGEST.fullmatch(image)
        yield {"name": "image", "uri": image} | ({"digest": {"sha256": pinned["sha256"]}} if pinned else {})
    if build.source_revision:
        commit = _COMMIT.fullmatch(build.source_revision)
        digest_of_commit = {"digest": {"gitCommit": commit["commit"]}} if commit else {}
        yield {"name": "source", "annotations": {"revision": build.source_revision}} | digest_of_commit


def _uri(parameters: Any, path: tuple[str, ...]) -> str:
    for name in path:
        parameters = parameters.get(name) if isinstance(parameters, dict) else None
    uri = parameters.get("uri") if isinstance(parameters, dict) else None
    return uri if isinstance(uri, str) else ""

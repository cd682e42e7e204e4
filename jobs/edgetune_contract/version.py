"""The document of one version of a model, which edge devices, pins and reviewers refer to.

models/<name>/versions/<digest>.json     one published or refused version
models/<name>/latest.json                the pointer: a copy of the document of the current version
"""

import re
from typing import Annotated

from pydantic import AfterValidator, JsonValue

from edgetune_contract.measurement import EdgeMeasurement
from edgetune_contract.request import Artifact, Digest, FileEntry, Resolved, Scores
from edgetune_contract.schema import Model
from edgetune_contract.stages import Stage

_EDGE_FOLDER = re.compile(rf"{Stage.QUANTIZE}/[0-9a-f]{{64}}/[0-9a-f]+/(?P<name>[^/]+)")


def _check_edge_folder(artifact: Artifact) -> Artifact:
    match = _EDGE_FOLDER.fullmatch(artifact.uri.rpartition("/stages/")[2])
    if match is None or match["name"] != artifact.name:
        raise ValueError(f"{artifact.uri} is not the folder of the edge model {artifact.name} in a store")
    return artifact


class EdgeModel(Model):
    """The edge model of a version, in one format."""

    artifact: Annotated[Artifact, AfterValidator(_check_edge_folder)]
    files: tuple[FileEntry, ...]
    """Its files; paths are relative to the artifact's URI."""

    @property
    def key(self) -> str:
        """Key of its folder in the store that has the document; still valid if the whole store is copied elsewhere."""
        return f"stages/{self.artifact.uri.rpartition('/stages/')[2]}"

    @property
    def quantize_digest(self) -> Digest:
        """Digest of the quantize stage that made it."""
        return self.key.split("/")[2]


class StageOrigin(Model):
    """One stage of the run that made a version."""

    digest: Digest
    created_at: str
    """Time when the stage was done (RFC 3339, UTC)."""

    image: str = ""
    """Reference of its container image, as in the Pod; empty outside a container."""

    libraries: dict[str, str] = {}
    """Versions of Python and of the libraries that it ran with."""

    metrics: dict[str, float] = {}
    facts: dict[str, str] = {}


class Provenance(Model):
    """Inputs and stages that a version was made from."""

    resolved: Resolved
    """Content digests of the base and the data."""

    parameters: dict[str, JsonValue]
    """The spec's parameters, as plain JSON so that older documents stay readable."""

    stages: dict[Stage, StageOrigin]


class VersionDocument(Model):
    """One version: its scores, its size and its provenance."""

    model: str
    """Name of the LoraFineTune."""

    namespace: str
    version: Digest
    created_at: str
    """Time when it was published or refused (RFC 3339, UTC)."""

    published: bool
    """Whether the gates held."""

    refusals: tuple[str, ...] = ()
    """One sentence for each gate that did not hold, with the measured value and the limit."""

    edge: EdgeModel
    """The edge model in the spec's first format, which the status shows."""

    further_edges: tuple[EdgeModel, ...] = ()
    """The same model in the spec's other formats, in order."""

    artifacts: tuple[Artifact, ...]
    """All artifacts of the run."""

    scores: Scores
    measurement: EdgeMeasurement | None = None
    """Speed and memory on the machine that evaluated it; None without spec.evaluation.edge."""

    provenance: Provenance

    @property
    def edges(self) -> tuple[EdgeModel, ...]:
        """The edge model in all formats."""
        return (self.edge, *self.further_edges)

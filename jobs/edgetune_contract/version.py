"""The document of one version of a model: what edge devices follow, what a pin names, what reviewers read.

models/<name>/versions/<digest>.json     one published or refused version
models/<name>/latest.json                the pointer: a copy of the version that it names
"""

import re
from typing import Annotated

from pydantic import AfterValidator, JsonValue

from edgetune_contract.measurement import EdgeMeasurement
from edgetune_contract.model import Model
from edgetune_contract.request import Artifact, Digest, FileEntry, Resolved, Scores
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
    """Paths are relative to the artifact's URI."""

    @property
    def key(self) -> str:
        """Key of its folder in the store that holds the document, also after the whole store was copied elsewhere."""
        return f"stages/{self.artifact.uri.rpartition('/stages/')[2]}"

    @property
    def quantize_digest(self) -> Digest:
        """Digest of the quantize stage that made it."""
        return self.key.split("/")[2]


class StageOrigin(Model):
    """One stage of the run that made a version."""

    digest: Digest
    created_at: str
    """When the stage was done (RFC 3339, UTC)."""

    image: str = ""
    """Reference of the container image that it ran in, as the Pod named it; empty outside of a container."""

    libraries: dict[str, str] = {}
    """Versions of Python and the libraries that it ran with."""

    metrics: dict[str, float] = {}
    facts: dict[str, str] = {}


class Provenance(Model):
    """What a version was made of."""

    resolved: Resolved
    """Content digests of base and data."""

    parameters: dict[str, JsonValue]
    """The spec's parameters as they were; not their model, so that older documents stay readable."""

    stages: dict[Stage, StageOrigin]


class VersionDocument(Model):
    """One version: how good, how large, and all that it was made of."""

    model: str
    """Name of the LoraFineTune."""

    namespace: str
    version: Digest
    created_at: str
    """When it was published or refused (RFC 3339, UTC)."""

    published: bool
    """Whether the gates held."""

    refusals: tuple[str, ...] = ()
    """One sentence a gate that did not hold, with the figure and the limit."""

    edge: EdgeModel
    """In the first format of the spec: the one that the status shows."""

    further_edges: tuple[EdgeModel, ...] = ()
    """The same model in the other formats of the spec, in their order."""

    artifacts: tuple[Artifact, ...]
    """All that the run made."""

    scores: Scores
    measurement: EdgeMeasurement | None = None
    """How it ran on the machine that evaluated it; None without spec.evaluation.edge."""

    provenance: Provenance

    @property
    def edges(self) -> tuple[EdgeModel, ...]:
        """The edge model in all its formats."""
        return (self.edge, *self.further_edges)

"""The document of one version of a model, which edge devices, pins and reviewers refer to.

models/<name>/versions/<digest>.json                  one published or refused version
models/<name>/versions/<digest>/<artifact>/README.md  the model card of one of its edge models
models/<name>/versions/<digest>/report.html           its report
models/<name>/latest.json                             the pointer: a copy of the document of the current version

Nothing in it depends on the address of the store, so that a copy of the store is whole.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator

from edgetune_contract.digest import cards_key, reports_key
from edgetune_contract.request import Artifact, Digest, FileEntry, Resolved, Scores
from edgetune_contract.results.candidates import Candidate
from edgetune_contract.results.measurement import EdgeMeasurement
from edgetune_contract.schema import Count, Model, Name
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage

_STAGES = "stages/"
_EDGE_FOLDER = re.compile(rf"{_STAGES}{Stage.QUANTIZE}/[0-9a-f]{{64}}/[0-9a-f]+/(?P<name>[^/]+)")


def artifact_key(uri: str) -> str:
    """Key of an artifact's folder in its store; a key stays as it is."""
    return uri if uri.startswith(_STAGES) else f"{_STAGES}{uri.rpartition(f'/{_STAGES}')[2]}"


class StoredArtifact(Model):
    """One output of a stage, as documents in a store name it: a copy of the store has it at the same key."""

    name: Name
    key: Annotated[str, Field(max_length=2048)]
    """Its folder, relative to the store: to the part of the document's own address before models/."""

    bytes: Count
    """Total size of its files, in bytes."""

    sha256: Digest
    """SHA-256 of the canonical JSON of its file list, which has the path, size and SHA-256 of each file."""

    @classmethod
    def of(cls, artifact: Artifact) -> Self:
        """An artifact of a store, without the address of the store."""
        key = artifact_key(artifact.uri)
        return cls(name=artifact.name, key=key, bytes=artifact.bytes, sha256=artifact.sha256)

    @model_validator(mode="before")
    @classmethod
    def _read_uri(cls, values: Any) -> Any:
        """Stores outlive releases: 0.1.0 wrote the key behind the address that the store had then."""
        if not isinstance(values, dict) or not isinstance(values.get("uri"), str):
            return values
        return {**{name: value for name, value in values.items() if name != "uri"}, "key": artifact_key(values["uri"])}


def _check_edge_folder(artifact: StoredArtifact) -> StoredArtifact:
    match = _EDGE_FOLDER.fullmatch(artifact.key)
    if match is None or match["name"] != artifact.name:
        raise ValueError(f"{artifact.key} is not the folder of the edge model {artifact.name} in a store")
    return artifact


class EdgeModel(Model):
    """The edge model of a version, in one format."""

    artifact: Annotated[StoredArtifact, AfterValidator(_check_edge_folder)]
    files: tuple[FileEntry, ...]
    """Its files; paths are relative to the artifact's key."""

    cards: tuple[FileEntry, ...] = ()
    """Its model card, README.md, which has its scores; the path is relative to `VersionDocument.cards_key`. Versions of
    older releases have none."""

    @property
    def all_files(self) -> tuple[FileEntry, ...]:
        """What a device or an export has in one folder: the model and its card."""
        return (*self.files, *self.cards)

    @property
    def key(self) -> str:
        """Key of its folder."""
        return self.artifact.key

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

    artifacts: tuple[StoredArtifact, ...]
    """All artifacts of the run."""

    scores: Scores
    measurement: EdgeMeasurement | None = None
    """Speed and memory on the machine that evaluated it; None without spec.evaluation.edge."""

    candidates: tuple[Candidate, ...] | None = None
    """With quantization.formats Auto: the formats among which the edge model was chosen."""

    provenance: Provenance
    report: FileEntry | None = None
    """The report as an HTML page; its path is relative to `reports_key`. Versions of older releases have none."""

    @property
    def reports_key(self) -> str:
        """Key of the folder with the report."""
        return reports_key(self.model, self.version)

    @property
    def edges(self) -> tuple[EdgeModel, ...]:
        """The edge model in all formats."""
        return (self.edge, *self.further_edges)

    def cards_key(self, artifact: str) -> str:
        """Key of the folder with the card of the edge model in an artifact of this name."""
        return cards_key(self.model, self.version, artifact)

    def keys_of(self, edge: EdgeModel) -> Iterator[tuple[str, FileEntry]]:
        """Key in the store of each of an edge model's files and of its card, with its entry."""
        yield from ((entry.key_below(edge.key), entry) for entry in edge.files)
        folder = self.cards_key(edge.artifact.name)
        yield from ((f"{folder}/{entry.path}", entry) for entry in edge.cards)

    def edge_in(self, edge_format: EdgeFormat | None) -> EdgeModel:
        """The edge model in a format; None means the spec's first format.

        Raises:
            LookupError: the version has none. The message continues a sentence about the document.
        """
        wanted = self.edge.artifact.name if edge_format is None else edge_format.artifact
        edges = {edge.artifact.name: edge for edge in self.edges}
        if wanted not in edges:
            raise LookupError(f"has no model {wanted}; it has {', '.join(edges)}")
        return edges[wanted]

"""The document of one version of a model: what edge devices follow, what a pin names, what reviewers read.

models/<name>/versions/<digest>.json     one published or refused version
models/<name>/latest.json                the pointer: a copy of the version that it names
"""

from pydantic import JsonValue

from edgetune_contract.model import Model
from edgetune_contract.request import Artifact, Digest, FileEntry, Resolved, Scores
from edgetune_contract.stages import Stage

# stages/<stage>/<digest>/<attempt>/<artifact>
_PARTS_OF_AN_ARTIFACTS_KEY = 5


class EdgeModel(Model):
    """The edge model of a version."""

    artifact: Artifact
    files: tuple[FileEntry, ...]
    """Paths are relative to the artifact's URI."""

    @property
    def key(self) -> str:
        """Key of its folder in the store that holds the document, also after the whole store was copied elsewhere."""
        return "/".join(self.artifact.uri.split("/")[-_PARTS_OF_AN_ARTIFACTS_KEY:])


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
    artifacts: tuple[Artifact, ...]
    """All that the run made."""

    scores: Scores
    provenance: Provenance

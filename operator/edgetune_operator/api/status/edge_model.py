"""Which of a run's artifacts is the edge model."""

from collections.abc import Sequence
from typing import TypeVar

from edgetune_contract.pipeline import is_edge
from edgetune_contract.request import Artifact, Resolved
from edgetune_contract.results.candidates import Candidate

_Artifact = TypeVar("_Artifact", bound=Artifact)


def edge_artifact(
    artifacts: Sequence[_Artifact], candidates: Sequence[Candidate], resolved: Resolved | None
) -> _Artifact | None:
    """The edge model: the first format of the spec or, with formats Auto, the chosen candidate. None if there is none
    (yet).

    Args:
        artifacts: of the run, in the order of the spec.
        candidates: of formats Auto.
        resolved: what prepare found; it has formats with formats Auto.
    """
    edges = [artifact for artifact in artifacts if is_edge(artifact.name)]
    if resolved is not None and resolved.formats is not None:
        chosen = {each.format.artifact for each in candidates if each.chosen}
        edges = [artifact for artifact in edges if artifact.name in chosen]
    return next(iter(edges), None)

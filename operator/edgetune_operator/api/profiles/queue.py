"""How the stages of a profile wait in a Kueue queue, and where the Pods of a training run."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from edgetune_contract.schema import Model
from edgetune_contract.stages import Stage
from edgetune_operator.api import names

NodeLabel = Annotated[str, Field(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9][-A-Za-z0-9_.]*$", max_length=63)]
"""Name of a node's label, as long as Kueue allows it."""


class Topology(Model):
    """Level of the cluster's Topology at which Kueue keeps the Pods of a training on several nodes together."""

    required: NodeLabel | None = None
    """Label of the level within which all Pods must run, such as cloud.provider.com/topology-rack: the training waits
    until they fit."""

    preferred: NodeLabel | None = None
    """Label of the level within which all Pods run if they fit; otherwise within a higher one, or anywhere."""

    @model_validator(mode="after")
    def _check_one_level(self) -> Self:
        if (self.required is None) == (self.preferred is None):
            raise ValueError("topology needs either required or preferred")
        return self

    @property
    def annotation(self) -> dict[str, str]:
        """Kueue's annotation of the Pods."""
        if self.required is not None:
            return {names.REQUIRED_TOPOLOGY_ANNOTATION: self.required}
        return {names.PREFERRED_TOPOLOGY_ANNOTATION: self.preferred or ""}


class Queue(Model):
    """A Kueue queue in which stages wait for their quota."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    """LocalQueue in the object's namespace, set as the label kueue.x-k8s.io/queue-name."""

    stages: tuple[Stage, ...] | None = None
    """Stages that wait in the queue. Default: train, and each other stage that requests a GPU. The clean-up of a
    deleted object never waits."""

    priorities: tuple[Annotated[str, Field(min_length=1, max_length=63)], ...] = ()
    """Kueue WorkloadPriorityClasses that users can select with spec.priority."""

    topology: Topology | None = None
    """Where the Pods of a training on several nodes run. Default: anywhere."""

"""Tenants: which namespaces may use a profile."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from edgetune_contract.schema import Model


@dataclass(frozen=True)
class Tenant:
    """A namespace, as profiles select it."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)


class SelectorOperator(StrEnum):
    """Operators of a label selector's requirements."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


class LabelRequirement(Model):
    """One requirement on a label, as in Kubernetes' LabelSelector."""

    key: Annotated[str, Field(min_length=1)]
    operator: SelectorOperator
    values: tuple[str, ...] = ()
    """For In and NotIn."""

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        if (self.operator in (SelectorOperator.IN, SelectorOperator.NOT_IN)) is not bool(self.values):
            needs = "must have no values" if self.values else "needs values"
            raise ValueError(f"the operator {self.operator} {needs}")
        return self

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels fulfil the requirement."""
        match self.operator:
            case SelectorOperator.IN:
                return labels.get(self.key) in self.values
            case SelectorOperator.NOT_IN:
                return labels.get(self.key) not in self.values
            case SelectorOperator.EXISTS:
                return self.key in labels
            case SelectorOperator.DOES_NOT_EXIST:
                return self.key not in labels


class LabelSelector(Model):
    """Kubernetes' LabelSelector: all of its requirements must hold."""

    match_labels: dict[str, str] = {}
    match_expressions: tuple[LabelRequirement, ...] = ()

    @model_validator(mode="after")
    def _refuse_empty(self) -> Self:
        if not self.match_labels and not self.match_expressions:
            raise ValueError("an empty selector matches every namespace; leave `namespaces` out instead")
        return self

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels fulfil all requirements."""
        exact = all(labels.get(key) == value for key, value in self.match_labels.items())
        return exact and all(requirement.matches(labels) for requirement in self.match_expressions)


class Namespaces(Model):
    """Namespaces by name or by label; one of the two suffices."""

    names: tuple[str, ...] = ()
    selector: LabelSelector | None = None
    """Labels of the Namespace. Whoever may change these labels chooses who may use the profile."""

    def include(self, tenant: Tenant) -> bool:
        """Whether a namespace is one of them."""
        return tenant.name in self.names or (self.selector is not None and self.selector.matches(tenant.labels))

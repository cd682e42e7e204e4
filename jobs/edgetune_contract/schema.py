"""The base of every model that is serialized: camelCase in JSON, snake_case in Python, frozen, no unknown fields."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

LARGEST = 10**18
"""Largest whole number in results and in the status. Kubernetes stores integers in 64 bits, and refuses the whole
status for one that does not fit."""

Count = Annotated[int, Field(ge=0, le=LARGEST)]
Share = Annotated[float, Field(ge=0, le=1)]
Difference = Annotated[float, Field(ge=-1, le=1)]
"""Difference of two shares."""

Name = Annotated[str, Field(max_length=64)]
Uri = Annotated[str, Field(max_length=2048)]


def listed_once(kind: str) -> AfterValidator:
    """Validator of a list that refuses duplicates; `kind` is the word for an item in its message."""

    def check(items: tuple[Any, ...]) -> tuple[Any, ...]:
        duplicate = next((item for item in items if items.count(item) > 1), None)
        if duplicate is not None:
            raise ValueError(f"duplicate {kind} {duplicate}: list each {kind} once")
        return items

    return AfterValidator(check)


@dataclass(frozen=True)
class Rule:
    """One rule across fields of a model, for both of its validators: the API server (CEL) and the model itself."""

    cel: str | None
    """None if the API server cannot see a field of the rule: then only the operator and the command line check it."""

    holds: Callable[[Any], bool]
    message: str
    advice: Callable[[Any], str] | None = None
    """What would hold; only the model says it."""


class Model(BaseModel):
    """Frozen value with camelCase JSON names; an unknown field is an error with its path.

    Subclasses list their rules across fields in `rules`.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _check_rules(self) -> Self:
        for rule in self.rules:
            if not rule.holds(self):
                raise ValueError(rule.message if rule.advice is None else f"{rule.message}: {rule.advice(self)}")
        return self

    @classmethod
    def decode(cls, text: str) -> Self:
        """Value from its JSON text.

        Raises:
            pydantic.ValidationError: the text is not a valid value of this model, or has another contract version.
        """
        return cls.model_validate_json(text)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        rules = [{"rule": rule.cel, "message": rule.message} for rule in cls.rules if rule.cel is not None]
        if rules:
            schema["x-kubernetes-validations"] = rules
        return schema

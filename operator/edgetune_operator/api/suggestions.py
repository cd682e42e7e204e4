"""What a user probably meant by an unknown field or value of an object or a profile."""

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Union, get_args, get_origin

from pydantic_core import ErrorDetails

from edgetune_contract.schema import Model
from edgetune_contract.values.suggestions import did_you_mean, nearest

_QUOTED = re.compile(r"'([^']*)'")


def suggestion(item: ErrorDetails, model: type[Model], root: str = "") -> str:
    """The end of a message about an unknown field or value, such as "; did you mean 'rank'?"; empty if none is alike.

    Args:
        item: one error of the validation.
        model: the model that was validated.
        root: path of the model, such as spec, to suggest a field of this name in another place; empty to suggest none.
    """
    location = item["loc"]
    if item["type"] == "extra_forbidden":
        return _of_field(str(location[-1]), location[:-1], model, root)
    if item["type"] in ("enum", "literal_error"):
        return did_you_mean(item["input"], _QUOTED.findall(str(item.get("ctx", {}).get("expected", ""))))
    return ""


def _of_field(name: str, location: Sequence[int | str], model: type[Model], root: str) -> str:
    """A field beside the unknown one that is spelled alike, or the only field of this name in another place."""
    siblings = _fields(_model_at(model, location))
    if nearest(name, siblings) is not None:
        return did_you_mean(name, siblings)
    elsewhere = [path for path in _paths(model, f"{root}.") if path.rpartition(".")[2] == name] if root else []
    return f"; did you mean {elsewhere[0]}?" if len(elsewhere) == 1 else ""


def _model_at(model: type[Model] | None, location: Sequence[int | str]) -> type[Model] | None:
    """The model of the object at a place; None if objects there have no fixed fields."""
    found: Any = model
    for part in location:
        fields = _fields(found)
        # A part that is no field is an index or the key of a mapping, whose annotation has the model already.
        found = _model_in(fields[part]) if isinstance(part, str) and part in fields else found
    return found if _is_model(found) else None


def _paths(model: type[Model], prefix: str = "") -> Iterator[str]:
    """Paths of all fields below a model, such as lora.rank."""
    for name, annotation in _fields(model).items():
        yield f"{prefix}{name}"
        if (inner := _model_in(annotation)) is not None:
            yield from _paths(inner, f"{prefix}{name}.")


def _fields(model: Any) -> Mapping[str, Any]:
    """Types of a model's fields by their names in JSON."""
    return {str(field.alias): field.annotation for field in model.model_fields.values()} if _is_model(model) else {}


def _model_in(annotation: Any) -> type[Model] | None:
    """The model in a type such as Model | None, tuple[Model, ...] or dict[str, Model]."""
    if _is_model(annotation):
        return annotation  # type: ignore[no-any-return]  # _is_model has checked it
    if get_origin(annotation) in (Union, types.UnionType, tuple, list, dict):
        return next((found for each in get_args(annotation) if (found := _model_in(each)) is not None), None)
    return None


def _is_model(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Model)

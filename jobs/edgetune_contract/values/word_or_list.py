"""Schema of a field that is one of some words, or a list."""

from collections.abc import Sequence
from typing import Any


def word_or_list(*, words: Sequence[str], items: dict[str, Any], most: int, default: Any) -> dict[str, Any]:
    """A node of a structural schema, which cannot express a union of types.

    A node without a type may have value validations: one branch allows the words, the other a list (each of its
    keywords refuses one of the other JSON types). `items` applies to lists only. The rules of CEL do not see such a
    field.

    Args:
        words: the words.
        items: schema of an item of the list.
        most: maximum length of the list; it has at least one item.
        default: of the field.
    """
    return {
        "x-kubernetes-preserve-unknown-fields": True,
        "default": default,
        "items": items,
        "anyOf": [
            {"enum": list(words)},
            {
                "minItems": 1,
                "maxItems": most,
                "maxLength": 0,
                "minLength": 1,
                "minimum": 1,
                "maximum": 0,
                "minProperties": 1,
                "maxProperties": 0,
                "not": {"enum": [True, False]},
            },
        ],
    }

"""Kubernetes quantities of bytes and of CPU cores."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

_QUANTITY = re.compile(r"([0-9]+)(Ki|Mi|Gi|Ti|k|M|G|T)?")
_SUFFIXES = "Ki, Mi, Gi, Ti, k, M, G or T"
_UNITS = {
    None: 1,
    "k": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
}


def parse_bytes(quantity: str) -> int:
    """Number of bytes in a Kubernetes quantity such as 500M or 8Gi.

    Raises:
        ValueError: the text is not an integer with an optional suffix Ki, Mi, Gi, Ti, k, M, G or T.
    """
    match = _QUANTITY.fullmatch(quantity)
    if match is None:
        raise ValueError(
            f"{quantity!r} is not a valid size: use an integer with an optional suffix {_SUFFIXES}, such as 8Gi"
        )
    return int(match[1]) * _UNITS[match[2]]


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


ByteQuantity = Annotated[
    str,
    BeforeValidator(_number_as_text),
    Field(max_length=24, pattern=rf"^{_QUANTITY.pattern}$"),
    WithJsonSchema(
        {"x-kubernetes-int-or-string": True, "maxLength": 24, "pattern": rf"^{_QUANTITY.pattern}$", "minimum": 0}
    ),
]


_CPU = re.compile(r"([1-9][0-9]{0,3}|[0-9]{1,4}\.[0-9]{1,3}|[1-9][0-9]{0,6}m)")


def parse_cpu(quantity: str) -> float:
    """Number of CPU cores in a Kubernetes quantity such as 2, 1.5 or 500m.

    Raises:
        ValueError: the text is not a number with an optional suffix m for thousandths.
    """
    if _CPU.fullmatch(quantity) is None:
        raise ValueError(
            f"{quantity!r} is not a valid number of cores: use a number such as 2 or 1.5, or thousandths such as 500m"
        )
    return int(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)


CpuQuantity = Annotated[
    str,
    BeforeValidator(_number_as_text),
    Field(max_length=8, pattern=rf"^{_CPU.pattern}$"),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "maxLength": 8,
            "pattern": rf"^{_CPU.pattern}$",
            "minimum": 1,
            "maximum": 9999,
        }
    ),
]

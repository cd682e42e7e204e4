"""Attacks on the API, by users and with the operator's stolen token: what is tried, and what refuses it.

A user has the role `edit` in a namespace; an owner has every right there. The chart's rights and policies are in force.
The operator does not run, except for what only its code refuses.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Document = dict[str, Any]


class Target(StrEnum):
    """What an attack is aimed at."""

    URIS = "URIs"
    POD_SHAPING = "pod shaping"
    NUMBERS = "numbers"
    SIZE = "size"
    IDENTITY = "identity"
    TOKEN = "token"
    RESULTS = "result forgery"
    TEMPLATES = "templates"
    TERMINALS = "terminals"


class RefusedBy(StrEnum):
    """What refuses an attack; all but CODE do so while the operator is down."""

    SCHEMA = "schema"
    CEL = "CEL"
    POLICY = "policy"
    RIGHTS = "rights"
    CODE = "code"


class Attacker(StrEnum):
    """Who attacks."""

    USER = "user"
    OWNER = "owner of the namespace"
    CONTROLLER = "a controller for a user"
    TOKEN = "holder of the operator's token"


class Existing(StrEnum):
    """What exists in the namespace, to be patched."""

    STAGE_POD = "the Pod of a stage"
    STAGE_JOB = "a stage's Job"
    OWN_JOB = "a user's Job"
    OBJECT = "an object"


@dataclass(frozen=True)
class Attack:
    """One request to the API server."""

    target: Target
    name: str
    by: RefusedBy
    message: str
    """Part of the refusal."""

    document: Document
    """What is created, or the patch of what exists."""

    attacker: Attacker = Attacker.USER
    existing: Existing | None = None
    subresource: str = ""
    namespace: str = ""
    """Empty: the users' namespace."""

    def __str__(self) -> str:
        return f"{self.target}: {self.name}"

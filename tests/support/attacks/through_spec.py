"""Attacks through the spec of an object: refused by its schema, its rules, or the operator's code."""

from collections.abc import Iterator
from typing import Any

from edgetune_contract.evaluation import EvaluationSpec
from edgetune_contract.spec import BaseModelSpec, DatasetSpec, DataSource
from edgetune_contract.training import TrainingSpec
from edgetune_operator.api.spec import LoraFineTuneSpec
from support.attacks.attack import Attack, RefusedBy, Target
from support.builders import ObjectBuilder, lora_fine_tune
from support.verdicts import INVALID, Verdict

_MODELS = (BaseModelSpec, DataSource, DatasetSpec, EvaluationSpec, TrainingSpec, LoraFineTuneSpec)
_RULES = tuple(rule.message for model in _MODELS for rule in model.rules)
_OF_A_TERMINAL = ("an escape", "a control", "a return", "an override", "an isolate", "a line")
_POD_FIELDS: dict[str, Any] = {
    "image": "evil:1",
    "command": ["sh"],
    "env": [{"name": "LD_PRELOAD", "value": "/tmp/x.so"}],
    "serviceAccountName": "admin",
    "nodeName": "node-1",
    "nodeSelector": {"role": "control-plane"},
    "volumes": [{"name": "host", "hostPath": {"path": "/"}}],
    "hostNetwork": True,
    "securityContext": {"runAsUser": 0},
    "resources": {"limits": {"nvidia.com/gpu": 64}},
    "priorityClassName": "system-node-critical",
    "queue": "express",
    "store": {"uri": "s3://others"},
    "podTemplate": {},
}


def _of(verdict: Verdict) -> Attack | None:
    """The attack that a verdict is; None if the object is merely wrong."""
    rule = next((rule for rule in _RULES if verdict.problem.endswith(f": {rule}")), None)
    target = _target(verdict)
    if target is None:
        return None
    # The API server has words of its own for what a schema refuses.
    by, message = (RefusedBy.CEL, rule) if rule else (RefusedBy.SCHEMA, verdict.path)
    return Attack(target, verdict.case, by, message, verdict.object)


def _target(verdict: Verdict) -> Target | None:
    if verdict.case.startswith(_OF_A_TERMINAL):
        return Target.TERMINALS
    if "too long" in verdict.problem or "at most" in verdict.problem or "65" in verdict.case:
        return Target.SIZE
    if verdict.path.endswith((".uri", ".revision")) or "uri must not" in verdict.problem:
        return Target.URIS
    if verdict.path == "spec.dataset.template":
        return Target.TEMPLATES
    is_number = "greater than" in verdict.problem or "less than" in verdict.problem or "a valid" in verdict.problem
    return Target.NUMBERS if is_number else None


def _through_spec() -> Iterator[Attack]:
    # Some verdicts have the same name, for two schemes of a URI.
    yield from {verdict.case: attack for verdict in INVALID if (attack := _of(verdict)) is not None}.values()
    for field, value in _POD_FIELDS.items():
        document = lora_fine_tune().with_spec(field, value).build()
        yield Attack(Target.POD_SHAPING, f"spec.{field}", RefusedBy.SCHEMA, f'unknown field "spec.{field}"', document)
    for field, value in (("training.maxLength", 10**9), ("retryLimit", 10**9), ("lora.rank", 10**6)):
        document = lora_fine_tune().with_spec(field, value).build()
        yield Attack(Target.NUMBERS, f"{field} of {value}", RefusedBy.SCHEMA, f"spec.{field}", document)
    names = [f"layer_{index}" for index in range(10_000)]
    document = lora_fine_tune().with_spec("lora.targetModules", names).build()
    yield Attack(Target.SIZE, "10,000 module names", RefusedBy.SCHEMA, "spec.lora.targetModules", document)
    document = lora_fine_tune().with_spec("dataset.template", "{instruction}" + "x" * 10**6).build()
    yield Attack(Target.SIZE, "a template of 1 MB", RefusedBy.SCHEMA, "spec.dataset.template", document)


def _by_code() -> Iterator[Attack]:
    """What depends on profiles and namespaces, which the API server does not know."""
    store = "s3://artifacts/edgetune"
    objects: dict[str, tuple[Target, ObjectBuilder, str]] = {
        "the model of another namespace": (
            Target.URIS,
            lora_fine_tune().with_spec("baseModel.uri", f"{store}/team-b/stages/merge/0/merged"),
            "SourceNotAllowed",
        ),
        "the rows of another namespace": (
            Target.URIS,
            lora_fine_tune().with_spec("dataset.train.uri", f"{store}/team-b/stages/prepare/0/prepared"),
            "SourceNotAllowed",
        ),
        "the rows of all namespaces": (
            Target.URIS,
            lora_fine_tune().with_spec("dataset.eval.uri", "s3://artifacts"),
            "SourceNotAllowed",
        ),
        "a file of the node": (
            Target.URIS,
            lora_fine_tune().with_spec("baseModel.uri", "file:///etc"),
            "InvalidSpec",
        ),
        "the profile of another namespace": (
            Target.POD_SHAPING,
            lora_fine_tune().with_spec("profile", "of-team-b"),
            "ProfileNotAllowed",
        ),
        "a profile that does not exist": (
            Target.POD_SHAPING,
            lora_fine_tune().with_spec("profile", "root"),
            "ProfileNotFound",
        ),
    }
    for name, (target, builder, reason) in objects.items():
        yield Attack(target, name, RefusedBy.CODE, reason, builder.build())


THROUGH_SPEC = (*_through_spec(), *_by_code())

"""What kstatus, Argo CD and Flux make of objects, by their own libraries and with the integrations that are shipped."""

import json
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.binaries import find
from support.apiserver import REPOSITORY

EXAMPLE = REPOSITORY / "examples" / "gitops"
PROGRAM = "gitops-engines"
_LIMIT_SECONDS = 300

Document = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What the engines make of one object."""

    kstatus: str
    """Of sigs.k8s.io/cli-utils: InProgress, Current, Failed or Terminating."""

    flux_default: str
    """The same of Flux without `healthCheckExprs`."""

    flux: str
    """The same of Flux with the shipped `healthCheckExprs`."""

    argo: str
    """Argo CD's health: Progressing, Healthy, Degraded or Suspended."""

    message: str
    """What Argo CD shows beside its health."""

    actions: frozenset[str]
    """Argo CD's actions that can be used now."""

    patch: Document | None
    """Merge patch of the action that was asked for."""


def find_program() -> Path | None:
    """The program with the engines' libraries; None if `make programs` has not built it."""
    return find(PROGRAM)


def documents(path: Path) -> list[Document]:
    """Documents of a file of the example."""
    return [found for found in yaml.safe_load_all(path.read_text(encoding="utf-8")) if found is not None]


def judge(objects: Iterable[Document], action: str = "") -> list[Verdict]:
    """The engines' verdicts on objects as the API server returns them.

    Args:
        objects: the objects.
        action: name of an action of Argo CD to run on each.

    Raises:
        AssertionError: a script or an expression failed; the message is the engine's.
    """
    program = find_program()
    assert program is not None, f"no {PROGRAM} in the cache; run `make programs`"
    asked = [_integrations(), *({"object": found, "action": action} for found in objects)]
    done = subprocess.run(
        [program],
        input="\n".join(map(json.dumps, asked)),
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [_verdict(json.loads(line)) for line in done.stdout.splitlines()]


def _integrations() -> Document:
    (argo,) = documents(EXAMPLE / "argocd" / "argocd-cm.yaml")
    (flux,) = documents(EXAMPLE / "flux" / "published.yaml")
    (expressions,) = flux["spec"]["healthCheckExprs"]
    return {
        "health": argo["data"]["resource.customizations.health.edgetune.dev_LoraFineTune"],
        "actions": argo["data"]["resource.customizations.actions.edgetune.dev_LoraFineTune"],
        "healthCheckExprs": {name: expressions[name] for name in ("inProgress", "failed", "current")},
    }


def _verdict(answer: Document) -> Verdict:
    return Verdict(
        answer["kstatus"],
        answer["fluxDefault"],
        answer["flux"],
        answer["argo"]["status"],
        answer["argo"]["message"],
        frozenset(name for name, is_usable in answer["actions"].items() if is_usable),
        answer.get("patch"),
    )

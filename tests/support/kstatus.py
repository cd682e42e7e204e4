"""kstatus: how generic tools (Flux, Argo CD, `kubectl wait`, `helm --wait`) read any object's status."""

from enum import StrEnum
from typing import Any

from support.kube import condition


class KStatus(StrEnum):
    """The tools' verdicts."""

    IN_PROGRESS = "InProgress"
    FAILED = "Failed"
    CURRENT = "Current"
    TERMINATING = "Terminating"


def kstatus(document: dict[str, Any]) -> KStatus:
    """The verdict by the rules of sigs.k8s.io/cli-utils/pkg/kstatus for custom resources."""
    metadata, status = document["metadata"], document.get("status") or {}
    if metadata.get("deletionTimestamp"):
        return KStatus.TERMINATING
    if "observedGeneration" in status and status["observedGeneration"] != metadata["generation"]:
        return KStatus.IN_PROGRESS
    conditions = {each: (condition(document, each) or {}).get("status") for each in ("Reconciling", "Stalled", "Ready")}
    if conditions["Reconciling"] == "True":
        return KStatus.IN_PROGRESS
    if conditions["Stalled"] == "True":
        return KStatus.FAILED
    return KStatus.IN_PROGRESS if conditions["Ready"] in ("False", "Unknown") else KStatus.CURRENT

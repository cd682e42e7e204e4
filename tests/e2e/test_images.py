"""The image of the stages: what a GPU's kernels need, as any user and with a read-only root file system."""

from pathlib import Path
from typing import Any

import pytest

from cluster import images
from edgetune_operator.decisions.manifests.job_manifests import RESTRICTED_CONTAINER, RESTRICTED_POD, WORK_DIR
from support import triton_stub
from support.kube import Kube

pytestmark = pytest.mark.e2e


def _pod(namespace: str, name: str, script: str) -> dict[str, Any]:
    """A Pod that runs a script in the image, as restricted as a stage's."""
    container = {
        "name": "stage",
        "image": images.JOBS,
        "imagePullPolicy": "Never",
        "command": ["python", "-c", script],
        "env": [{"name": variable, "value": WORK_DIR} for variable in ("HOME", "TMPDIR")],
        "securityContext": dict(RESTRICTED_CONTAINER),
        "volumeMounts": [{"name": "work", "mountPath": WORK_DIR}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": dict(RESTRICTED_POD),
            "containers": [container],
            "volumes": [{"name": "work", "emptyDir": {}}],
        },
    }


def test_triton_compiles_its_driver_stub_in_the_image(kube: Kube, namespace: str) -> None:
    kube.apply(_pod(namespace, "triton", Path(triton_stub.__file__).read_text(encoding="utf-8")))

    ended = kube.wait(
        "v1",
        "Pod",
        namespace,
        "triton",
        lambda pod: pod["status"].get("phase") in ("Succeeded", "Failed"),
        "the stub is compiled",
        180,
    )

    log = kube.logs(namespace, "triton")
    assert ended["status"]["phase"] == "Succeeded", log
    assert "compiled as user 65532" in log
    kube.delete("v1", "Pod", namespace, "triton")

"""The example repository on a real control plane: rendered, validated, planned, and applied as Argo CD and Flux do."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster import gitops
from cluster.binaries import find
from cluster.controlplane import ControlPlane
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from support.gitops_engines import EXAMPLE, documents
from support.kube import Kube, install_crd
from support.stage_player import OBJECT, Operator, StagePlayer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find("kubectl") is None, reason="no kubectl in the cache: run `make programs`"),
]

ARGO, FLUX = "argocd-controller", "kustomize-controller"


def kubectl(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(find("kubectl")), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)


def rendered(overlay: str) -> str:
    """The overlay's manifests, as kustomize builds them."""
    done = kubectl("kustomize", str(EXAMPLE / overlay))
    assert done.returncode == 0, done.stderr
    return done.stdout


class Engine:
    """Applies manifests as one engine does: on the server, with its own field manager, and by force."""

    def __init__(self, plane: ControlPlane, manager: str) -> None:
        self._access = (f"--kubeconfig={plane.kubeconfig()}", "--server-side", f"--field-manager={manager}")

    def apply(self, manifests: str) -> None:
        done = kubectl("apply", "-f", "-", "--force-conflicts", *self._access, stdin=manifests)
        assert done.returncode == 0, done.stderr

    def diff(self, manifests: str) -> str:
        """What applying would change; empty if nothing."""
        done = kubectl("diff", "-f", "-", "--force-conflicts", *self._access, stdin=manifests)
        assert done.returncode in (0, 1), done.stderr
        return done.stdout


@pytest.fixture
def environment(request: pytest.FixtureRequest, control_plane: ControlPlane, operator: Operator) -> StagePlayer:
    """The kubelet of the namespace `team-a-…` of an overlay, which is the test's parameter; the operator is running."""
    operator.ensure()
    kube = Kube.from_kubeconfig(control_plane.kubeconfig())
    namespace = f"team-a-{request.param}"
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    kube.wait("v1", "ServiceAccount", namespace, "default", lambda _: True, "the namespace has its service account")
    return StagePlayer(kube, namespace)


def managers(found: dict[str, Any]) -> set[tuple[str, str, str]]:
    """Manager, operation and subresource of the fields of an object."""
    return {
        (each["manager"], each["operation"], each.get("subresource", "")) for each in found["metadata"]["managedFields"]
    }


@pytest.mark.parametrize("overlay", ["dev", "prod"])
@pytest.mark.parametrize("command", ["validate", "plan"])
def test_every_overlay_is_valid_and_can_be_planned(tmp_path: Path, overlay: str, command: str) -> None:
    path = tmp_path / f"{overlay}.yaml"
    path.write_text(rendered(f"overlays/{overlay}"), encoding="utf-8")

    line = [sys.executable, "-m", "edgetune_cli", command, "-f", str(path)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("environment", "manager"), [("dev", FLUX), ("prod", ARGO)], indirect=["environment"])
def test_an_overlay_is_applied_and_published_and_applying_it_again_writes_nothing(
    control_plane: ControlPlane, environment: StagePlayer, manager: str
) -> None:
    engine = Engine(control_plane, manager)
    manifests = rendered(f"overlays/{environment.namespace.removeprefix('team-a-')}")

    engine.apply(manifests)
    environment.finish_from(Stage.PREPARE)
    before = environment.wait_for_phase("Succeeded")
    difference = engine.diff(manifests)
    engine.apply(manifests)
    again = environment.object
    environment.kube.merge(*OBJECT, environment.namespace, "sensor-faults", {"spec": {"suspend": True}})

    assert difference == ""
    assert again["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    # kubectl reads the object twice, and the operator writes its status for the edit.
    environment.wait(lambda found: found["status"]["observedGeneration"] == 2, "the edit is observed")
    # As an action of Argo CD does: no engine reverts a field that Git does not have.
    assert engine.diff(manifests) == ""
    assert managers(before) == {(manager, "Apply", ""), ("edgetune", "Update", "status")}


@pytest.mark.parametrize("environment", ["shared"], indirect=True)
def test_two_engines_with_the_same_object_edit_it_by_turns(
    control_plane: ControlPlane, environment: StagePlayer
) -> None:
    flux, argo = Engine(control_plane, FLUX), Engine(control_plane, ARGO)
    dev, prod = (rendered(f"overlays/{name}").replace(f"team-a-{name}", "team-a-shared") for name in ("dev", "prod"))

    flux.apply(dev)
    argo.apply(prod)
    both = environment.object
    flux.apply(dev)
    argo.apply(prod.replace("rank: 16", "rank: 8"))
    flux.apply(dev)
    taken_back = environment.object

    # The object has fields of both, as neither repository says; each change of a common field is an edit.
    assert both["spec"]["training"]["maxSteps"] == 32
    assert both["spec"]["evaluation"]["gates"] == {"minImprovement": 0.05, "minScore": 0.85, "maxDrop": 0.05}
    assert taken_back["spec"]["lora"]["rank"] == 16
    assert (both["metadata"]["generation"], taken_back["metadata"]["generation"]) == (2, 4)
    assert {(FLUX, "Apply", ""), (ARGO, "Apply", "")} <= managers(both)
    environment.kube.delete(*OBJECT, environment.namespace, "sensor-faults")


@pytest.mark.parametrize("environment", ["pruned"], indirect=True)
def test_an_object_that_was_pruned_and_created_again_trains_nothing_that_is_done(
    control_plane: ControlPlane, environment: StagePlayer
) -> None:
    engine = Engine(control_plane, FLUX)
    manifests = rendered("overlays/dev").replace("team-a-dev", "team-a-pruned")
    engine.apply(manifests)
    environment.finish_from(Stage.PREPARE)
    published = environment.wait_for_phase("Succeeded")

    environment.kube.delete(*OBJECT, environment.namespace, "sensor-faults")
    environment.kube.wait_until_gone("batch/v1", "Job", environment.namespace, names.STAGE_LABEL)
    engine.apply(manifests)
    environment.finish(Stage.PREPARE)
    again = environment.wait_for_phase("Succeeded")

    assert again["metadata"]["uid"] != published["metadata"]["uid"]
    assert again["status"]["publication"]["version"] == published["status"]["publication"]["version"]
    assert again["status"]["scores"] == published["status"]["scores"]


def test_the_api_server_accepts_the_objects_for_argo_cd_and_flux(control_plane: ControlPlane) -> None:
    kube = Kube.from_kubeconfig(control_plane.kubeconfig())
    for crd in gitops.crds():
        install_crd(kube, crd)
    for namespace in ("argocd", "flux-system"):
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    paths = [*sorted((EXAMPLE / "argocd").iterdir()), *sorted((EXAMPLE / "flux").iterdir())]
    found = [document for path in paths for document in documents(path)]

    for document in found:
        namespace = document["metadata"]["namespace"]
        path = f"{kube.path(document['apiVersion'], document['kind'], namespace)}?dryRun=All&fieldValidation=Strict"
        reply = kube.request("POST", path, document)
        assert reply.accepted, f"{document['kind']} {document['metadata']['name']}: {reply.message}"

    folders = [
        document["spec"].get("path") or document["spec"].get("source", {}).get("path")
        for document in found
        if document["kind"] in ("Application", "Kustomization")
    ]
    assert len(folders) == 3
    # In the repository of a team, this example is the folder gitops/.
    assert all((EXAMPLE.parent / folder / "kustomization.yaml").is_file() for folder in folders)


def test_what_waits_for_the_models_checks_the_object_that_the_overlay_has() -> None:
    overlay = rendered("overlays/prod")
    (checking,) = documents(EXAMPLE / "flux" / "published.yaml")
    (checked,) = checking["spec"]["healthChecks"]

    assert (checked["apiVersion"], checked["kind"]) == (names.API_VERSION, names.KIND)
    assert f"name: {checked['name']}\n  namespace: {checked['namespace']}\n" in overlay
    assert "kind: LoraFineTune" not in rendered("published")

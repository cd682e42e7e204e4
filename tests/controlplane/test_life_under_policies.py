"""The installed operator under the chart's own rights and admission policies: its whole life needs nothing more."""

from collections.abc import Iterator

import pytest

from cluster.controlplane import ControlPlane
from edgetune_contract.clean_up import CleanUpResult
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from support.apiserver import BINARIES_VARIABLE
from support.chart import PROFILE, RELEASE, RELEASE_NAMESPACE, Values, find_helm, one, render
from support.kube import Kube, audit_events, pod_ended
from support.operator_process import OperatorProcess, running_installed_operator, service_account_kubeconfig
from support.policies import OPERATOR, Cluster, installed_policies
from support.stage_player import OBJECT, Operator, StagePlayer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_helm() is None, reason=f"no helm in ${BINARIES_VARIABLE}, the cache folder or PATH: there is no chart"
    ),
]

LABEL = "edgetune.test/team"
VALUES: Values = {
    "profiles": {
        "default": PROFILE,
        **{
            team: {**PROFILE, "namespaces": {"selector": {"matchLabels": {LABEL: team}}}}
            for team in ("speech", "vision")
        },
    }
}


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane) -> Iterator[Cluster]:
    """The policies on a control plane with the controllers of Jobs."""
    with installed_policies(Kube.from_kubeconfig(control_plane.kubeconfig()), VALUES) as cluster:
        cluster.admin.merge("v1", "Namespace", None, cluster.namespace, {"metadata": {"labels": {LABEL: "vision"}}})
        yield cluster


@pytest.fixture(scope="module")
def installed(
    cluster: Cluster, control_plane: ControlPlane, operator: Operator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """The operator as the chart runs it, in place of the other tests' one, which may do everything."""
    operator.stop()
    manifests = render(VALUES)
    folder = tmp_path_factory.mktemp("installed")
    admin = folder / "kubeconfig"
    admin.write_bytes(control_plane.kubeconfig().read_bytes())
    own = service_account_kubeconfig(cluster.admin, admin, RELEASE_NAMESPACE, RELEASE)
    profiles = one(manifests, "ConfigMap", f"{RELEASE}-profiles")["data"]["profiles.yaml"]
    with running_installed_operator(folder, own, one(manifests, "Deployment"), profiles) as process:
        yield process


@pytest.fixture
def player(cluster: Cluster, installed: OperatorProcess) -> StagePlayer:
    """Plays kubelet and stages in the users' namespace."""
    assert installed.process.poll() is None
    return StagePlayer(cluster.admin, cluster.namespace)


def uids(player: StagePlayer) -> set[str]:
    return {job["metadata"]["uid"] for job in player.jobs()}


def refused_requests(control_plane: ControlPlane) -> list[tuple[str, str, int, str]]:
    """The operator's requests that rights or policies refused."""
    events = [event for event in audit_events(control_plane.audit_log) if event["user"]["username"] == OPERATOR]
    assert len(events) > 50
    statuses = [(event, event.get("responseStatus") or {}) for event in events]
    return [
        (event["verb"], event["requestURI"], status["code"], status.get("message", ""))
        for event, status in statuses
        if status.get("code") in (401, 403, 422)
    ]


def test_the_operators_whole_life_is_within_its_policies(player: StagePlayer, control_plane: ControlPlane) -> None:
    player.apply()
    player.finish_from(Stage.PREPARE)
    player.wait_for_phase("Succeeded")

    player.apply(lora={"rank": 8})
    player.finish(Stage.PREPARE)
    first, _ = player.live_pod(Stage.TRAIN)
    player.apply(lora={"rank": 8}, retryLimit=1)
    player.wait(lambda _: first["metadata"]["uid"] not in uids(player), "the Job is replaced")
    player.apply(lora={"rank": 8}, retryLimit=1, suspend=True)
    player.wait_for_phase("Suspended")
    player.apply(lora={"rank": 8}, retryLimit=1)
    player.finish_from(Stage.TRAIN)
    player.wait_for_phase("Succeeded")

    player.request_retry("again")
    player.finish(Stage.PREPARE)
    player.wait(lambda found: found["status"].get("lastHandledRetry") == "again", "the retry is handled")

    player.apply(lora={"rank": 8}, deletionPolicy="Delete")
    player.wait(lambda found: names.FINALIZER in found["metadata"].get("finalizers", ()), "it has the finalizer")
    player.kube.delete(*OBJECT, player.namespace, "sensor-faults")
    _, pod = player.live_pod(names.CLEAN_UP)
    player.end_pod(pod, pod_ended(0, CleanUpResult().encode().decode()))
    player.kube.wait_until_gone(*OBJECT, player.namespace, "")

    assert refused_requests(control_plane) == []


def test_labels_of_the_namespace_decide_about_profiles(player: StagePlayer, control_plane: ControlPlane) -> None:
    player.apply(profile="speech")
    refused = player.wait_for_condition("Reconciling", "ProfileNotAllowed")["message"]
    player.apply(profile="vision")
    player.live_pod(Stage.PREPARE)
    player.kube.delete(*OBJECT, player.namespace, "sensor-faults")

    assert refused == (
        f"spec.profile: namespace {player.namespace} may not use profile 'speech'; it may use default, vision"
    )
    assert refused_requests(control_plane) == []

"""Trainings in the queues of a real Kueue, on a real control plane; the kubelet is played."""

import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster import binaries, kueue
from cluster.controlplane import ControlPlane, running_control_plane
from cluster.kueue import API_VERSION
from cluster.processes import wait_for
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.generate.crd import custom_resource_definition
from support.apiserver import BINARIES_VARIABLE
from support.kube import LIMIT_SECONDS, Kube, install_crd
from support.operator_process import service_account_kubeconfig
from support.queue_player import QUEUED_PROFILES, RACK, QueuePlayer, add_cluster_queue, add_flavor, add_racks
from support.stage_player import Operator

PROGRAMS = ("etcd", "kube-apiserver", "kubectl", "kueue", "helm")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        any(binaries.find(name) is None for name in PROGRAMS),
        reason=f"no {', '.join(PROGRAMS)} in ${BINARIES_VARIABLE} or the cache",
    ),
]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane with Kueue and the CRD."""
    with running_control_plane(tmp_path_factory.mktemp("controlplane")) as plane:
        kueue.start(plane)
        kube = Kube.from_kubeconfig(plane.kubeconfig())
        install_crd(kube, custom_resource_definition())
        add_flavor(kube)
        yield plane


@pytest.fixture(scope="module")
def queue_operator(plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator process."""
    operator = Operator(tmp_path_factory.mktemp("operator"), plane)
    yield operator
    operator.stop()


@pytest.fixture
def kube(plane: ControlPlane) -> Kube:
    """The administrator."""
    return Kube.from_kubeconfig(plane.kubeconfig())


NewTeam = Callable[[], QueuePlayer]


@pytest.fixture
def new_team(kube: Kube, queue_operator: Operator) -> NewTeam:
    """Makes the namespace of a team; the operator is running."""
    queue_operator.ensure(QUEUED_PROFILES)

    def make() -> QueuePlayer:
        namespace = f"team-{secrets.token_hex(4)}"
        kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        kube.wait("v1", "ServiceAccount", namespace, "default", lambda _: True, "Pods have a service account")
        return QueuePlayer(kube, namespace)

    return make


@pytest.fixture
def teams(new_team: NewTeam) -> tuple[QueuePlayer, QueuePlayer]:
    """Two teams, whose queues share one GPU."""
    first, second = new_team(), new_team()
    add_cluster_queue(first.kube, first.namespace)
    for team in (first, second):
        team.add_queue(first.namespace)
    return first, second


def test_a_stage_that_waits_says_where_why_and_since_when(teams: tuple[QueuePlayer, QueuePlayer]) -> None:
    first, second = teams
    first.submit()
    running = first.run()

    job = second.submit()
    message = second.wait_for_words("Reconciling", "Queued", "insufficient unused quota")
    waiting = second.object["status"]
    first.finish_pod(first.training, running)
    second.run()

    since, _, cause = message.removeprefix("train: waits in queue gpu since ").partition("Z: ")
    assert f"{since}Z" >= job["metadata"]["creationTimestamp"]
    assert cause == "insufficient unused quota for nvidia.com/gpu in flavor l4, 1 more needed"
    assert (waiting["phase"], waiting["display"]["progress"]) == ("Queued", "Queued")
    row = next(row for row in waiting["stages"] if row["name"] == "train")
    assert row["state"] == "Queued"
    assert "startedAt" not in row
    assert wait_for(lambda: second.events() == ["TrainStarted"], 30), second.events()


def describe_as_user(team: QueuePlayer, plane: ControlPlane, folder: Path) -> Callable[[], str]:
    """Prints `kubectl edgetune describe` for an account that may read objects, Jobs and pending Workloads."""
    group = "rbac.authorization.k8s.io"
    rules = [
        {"apiGroups": [names.GROUP], "resources": [names.PLURAL], "verbs": ["get"]},
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
    ]
    api = {"apiVersion": f"{group}/v1"}
    team.kube.apply({**api, "kind": "ClusterRole", "metadata": {"name": "reader"}, "rules": rules})
    for role in ("reader", "kueue-pending-workloads-lq-viewer-role"):
        binding = {**api, "kind": "RoleBinding", "metadata": {"name": role, "namespace": team.namespace}}
        subject = {"kind": "ServiceAccount", "name": "default", "namespace": team.namespace}
        reference = {"apiGroup": group, "kind": "ClusterRole", "name": role}
        team.kube.apply({**binding, "roleRef": reference, "subjects": [subject]})
    (folder / "kubectl").symlink_to(binaries.binary("kubectl"))
    shutil.copy(plane.kubeconfig(), folder / "admin")
    kubeconfig = service_account_kubeconfig(team.kube, folder / "admin", team.namespace, "default")
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "KUBECONFIG": str(kubeconfig)}
    command = [sys.executable, "-m", "edgetune_cli.kubectl", "describe", "sensor-faults", "-n", team.namespace]

    def describe() -> str:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return describe


def test_users_see_their_position_in_the_queue_with_their_own_rights(
    teams: tuple[QueuePlayer, QueuePlayer], new_team: NewTeam, plane: ControlPlane, tmp_path: Path
) -> None:
    first, second = teams
    third = new_team()
    third.add_queue(first.namespace)
    first.submit()
    first.run()
    for waiting in (second, third):
        waiting.submit()
        waiting.wait_for_words("Reconciling", "Queued", "waits in queue gpu")

    describe = describe_as_user(third, plane, tmp_path)

    # Kueue takes some time to queue the Workload, and orders two of the same second by chance.
    position = re.compile("Position in the queue: 1 in queue gpu, [12] in its ClusterQueue")
    assert wait_for(lambda: position.search(describe()) is not None, LIMIT_SECONDS), describe()


def test_a_preempted_training_says_by_whom_and_why_and_resumes(teams: tuple[QueuePlayer, QueuePlayer]) -> None:
    low, high = teams
    low.submit(priority="low")
    running = low.run()

    high.submit(priority="high")
    message = low.wait_for_words("Reconciling", "Preempted", "prioritization in the ClusterQueue")
    low.stop(running)
    winner = high.run()
    waiting = low.wait_for_words("Reconciling", "Preempted", "1 more needed")
    interrupted, evicted_at = low.row(Stage.TRAIN), _evicted_at(low)
    high.finish_pod(high.training, winner)
    resumed = low.run()
    low.finish_pod(low.training, resumed)
    low.wait(lambda found: _row(found)["state"] == "Succeeded", "the training is done")

    queue = low.namespace
    assert message.startswith(f"train: preempted by a workload of ClusterQueue {queue}: prioritization in the ")
    assert f"waits in queue gpu since {evicted_at}" in waiting
    assert high.namespace not in message + waiting
    assert (interrupted["state"], interrupted["preemptions"]) == ("Queued", 1)
    assert low.row(Stage.TRAIN)["attempts"] == 1


def _evicted_at(team: QueuePlayer) -> str:
    found = next(each for each in team.workload["status"]["conditions"] if each["type"] == "Evicted")
    return str(found["lastTransitionTime"])


def _row(document: dict[str, Any], stage: str = "train") -> dict[str, Any]:
    rows = (document.get("status") or {}).get("stages") or []
    return next((row for row in rows if row["name"] == stage), {"state": ""})


def test_a_training_that_is_preempted_before_its_container_starts_has_no_failed_attempt(
    teams: tuple[QueuePlayer, QueuePlayer],
) -> None:
    low, high = teams
    low.submit(priority="low", retryLimit=0)
    low.live_pod(Stage.TRAIN)

    high.submit(priority="high")
    low.wait_for_words("Reconciling", "Preempted", "waits in queue gpu")
    high.finish_pod(high.training, high.run())
    low.finish_pod(low.training, low.run())

    done = low.wait(lambda found: _row(found)["state"] == "Succeeded", "the training is done")
    assert _row(done)["attempts"] == 1


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        ({"stopPolicy": "Hold"}, "QueueOnHold", "an administrator holds ClusterQueue {queue}; waits in it since "),
        (
            {"flavor": "h100"},
            "QueueInactive",
            "references missing ResourceFlavor(s): h100",
        ),
        ({"namespaceSelector": {"matchLabels": {"team": "b"}}}, "QueueRefuses", "does not admit this namespace"),
        (
            {"gpus": 0},
            "QueueTooSmall",
            "can never admit this stage: insufficient quota for nvidia.com/gpu",
        ),
    ],
    ids=["held", "incomplete", "not for this namespace", "too small"],
)
def test_a_queue_that_admits_nothing_says_why(new_team: NewTeam, spec: dict[str, Any], reason: str, words: str) -> None:
    team = new_team()
    add_cluster_queue(team.kube, team.namespace, **spec)
    team.add_queue(team.namespace)

    team.submit()

    phase = "Stalled" if reason == "QueueTooSmall" else "Queued"
    kind = "Stalled" if phase == "Stalled" else "Reconciling"
    team.wait_for_words(kind, reason, words.format(queue=team.namespace))
    assert team.object["status"]["phase"] == phase
    assert team.object["status"]["display"]["progress"] == reason
    # It continues by itself once the cause is removed.
    team.kube.merge(API_VERSION, "ClusterQueue", None, team.namespace, {"spec": {"stopPolicy": None}})
    team.kube.apply({"apiVersion": API_VERSION, "kind": "ResourceFlavor", "metadata": {"name": "h100"}})
    if "gpus" in spec or "namespaceSelector" in spec:
        add_cluster_queue(team.kube, team.namespace)
    team.run()
    team.kube.delete(API_VERSION, "ResourceFlavor", None, "h100")


def test_a_missing_queue_holds_the_object_up_until_it_exists(new_team: NewTeam) -> None:
    team = new_team()
    team.submit()

    held_up = team.wait_for_words("Reconciling", "QueueNotFound", "not found")
    add_cluster_queue(team.kube, team.namespace)
    team.add_queue(team.namespace)
    team.run()

    assert held_up == (
        f"train: LocalQueue gpu of namespace {team.namespace} not found; create it, or correct queue.name in the "
        "profile"
    )


def test_a_missing_priority_class_holds_the_object_up_until_it_exists(new_team: NewTeam) -> None:
    team = new_team()
    add_cluster_queue(team.kube, team.namespace)
    team.add_queue(team.namespace)
    team.submit(priority="unknown")

    team.wait_for_words("Reconciling", "PriorityClassNotFound", "WorkloadPriorityClass unknown not found")
    manifest = {"apiVersion": API_VERSION, "kind": "WorkloadPriorityClass", "metadata": {"name": "unknown"}}
    team.kube.apply({**manifest, "value": 1, "description": ""})
    team.run()
    team.kube.delete(API_VERSION, "WorkloadPriorityClass", None, "unknown")


def test_a_deactivated_workload_stalls_the_object_until_it_is_active(teams: tuple[QueuePlayer, QueuePlayer]) -> None:
    team, _ = teams
    team.submit()
    running = team.run()

    team.set_active(False)
    team.wait_for_words("Stalled", "WorkloadDeactivated", "set spec.active of the Workload to true")
    team.stop(running)
    team.set_active(True)

    team.run()


def test_a_waiting_training_keeps_its_place_over_an_edit_a_new_image_and_a_new_node_selector(
    new_team: NewTeam, queue_operator: Operator
) -> None:
    holder, first, second = new_team(), new_team(), new_team()
    add_cluster_queue(holder.kube, holder.namespace, queueingStrategy="StrictFIFO")
    for team in (holder, first, second):
        team.add_queue(holder.namespace)
    holder.submit()
    running = holder.run()
    before = first.submit()
    workload = first.workload
    # Kueue queues Workloads of the same second in the order of their uids.
    created = datetime.fromisoformat(workload["metadata"]["creationTimestamp"])
    assert wait_for(lambda: datetime.now(UTC) > created + timedelta(seconds=1), 5)
    second.submit()

    first.apply(retryLimit=7)
    changed = {**QUEUED_PROFILES["default"], "nodeSelector": {"gpu": "l4"}, "image": {"reference": "jobs:next"}}
    queue_operator.stop()
    queue_operator.start({"default": changed})
    first.wait_for_words("Reconciling", "Queued", "the profile has changed since: the Job keeps its place")
    patched = wait_for(lambda: first.training["spec"]["template"]["spec"].get("nodeSelector") == {"gpu": "l4"}, 30)
    after = first.training
    holder.finish_pod(holder.training, running)
    first.run()

    assert patched
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["spec"]["backoffLimit"] == 7
    assert first.workload["metadata"]["uid"] == workload["metadata"]["uid"]
    assert second.object["status"]["phase"] == "Queued"


def test_while_kueue_is_down_a_waiting_training_keeps_its_settings_and_says_so(
    teams: tuple[QueuePlayer, QueuePlayer], plane: ControlPlane
) -> None:
    holder, waiting = teams
    holder.submit()
    holder.run()
    waiting.submit()
    waiting.wait_for_words("Reconciling", "Queued", "insufficient unused quota")

    kueue.stop(plane)
    try:
        waiting.apply(retryLimit=7)
        message = waiting.wait_for_words("Reconciling", "JobRefused", "the cluster refuses to change the waiting Job")
    finally:
        kueue.resume(plane)
    waiting.apply(retryLimit=8)  # otherwise it would be tried again after a minute

    assert 'change the waiting Job: Internal error occurred: failed calling webhook "vjob.kb.io"' in message
    assert wait_for(lambda: waiting.training["spec"]["backoffLimit"] == 8, 30)
    assert waiting.wait_for_words("Reconciling", "Queued", "1 more needed").endswith("1 more needed")


def test_a_change_of_the_priority_moves_a_waiting_training(new_team: NewTeam) -> None:
    holder, first, second = new_team(), new_team(), new_team()
    add_cluster_queue(holder.kube, holder.namespace, preemption={"withinClusterQueue": "Never"})
    for team in (holder, first, second):
        team.add_queue(holder.namespace)
    holder.submit(priority="high")
    running = holder.run()
    first.submit(priority="low")
    second.submit(priority="low")

    second.apply(priority="high")
    moved = wait_for(lambda: second.workload["spec"].get("priority") == 100, 30)
    holder.finish_pod(holder.training, running)
    second.run()

    assert moved
    assert first.object["status"]["phase"] == "Queued"


def test_a_deadline_is_no_preemption_and_is_reported_once(teams: tuple[QueuePlayer, QueuePlayer]) -> None:
    team, _ = teams
    job = team.submit()
    running = team.run()

    deadline = {"spec": {"activeDeadlineSeconds": 1}}
    team.kube.merge("batch/v1", "Job", team.namespace, job["metadata"]["name"], deadline)
    team.stop(running)
    stalled = team.wait_for_words("Stalled", "DeadlineExceeded", "not done after 1 seconds")

    assert stalled.startswith("train: not done after 1 seconds; raise spec.activeDeadlineSeconds")
    assert team.row(Stage.TRAIN).get("preemptions", 0) == 0
    assert "TrainInterrupted" not in team.events()


def test_gpu_time_is_counted_over_preemptions(teams: tuple[QueuePlayer, QueuePlayer]) -> None:
    low, high = teams
    low.submit(priority="low", maxGpuSeconds=60)
    running = low.run()
    high.submit(priority="high")

    low.stop(running)  # it ran for 60 s, as the played kubelet says
    low.wait_for_words("Stalled", "GpuSecondsExceeded", "used 60 GPU-seconds, spec.maxGpuSeconds is 60")

    assert wait_for(lambda: not low.jobs(Stage.TRAIN), 30)


def test_the_clean_up_of_a_deleted_object_waits_in_no_queue(new_team: NewTeam) -> None:
    team = new_team()
    add_cluster_queue(team.kube, team.namespace, stopPolicy="Hold")
    team.add_queue(team.namespace)
    team.submit(deletionPolicy="Delete")
    team.wait_for_words("Reconciling", "QueueOnHold", "an administrator holds")

    team.kube.delete(names.API_VERSION, names.KIND, team.namespace, "sensor-faults")

    job, _ = team.live_pod(names.CLEAN_UP)
    assert "suspend" not in job["spec"] or job["spec"]["suspend"] is False
    assert names.QUEUE_LABEL not in job["metadata"]["labels"]


def test_other_stages_wait_in_no_queue_and_users_cannot_invent_a_priority(new_team: NewTeam) -> None:
    team = new_team()
    team.apply(priority="emergency")
    stalled = team.wait_for_words("Stalled", "InvalidSpec", "spec.priority")

    team.apply(priority="low")
    job, _ = team.live_pod(Stage.PREPARE)

    assert stalled == ("spec.priority: profile 'default' does not offer 'emergency'; use one of low, high, unknown")
    assert not {names.QUEUE_LABEL, names.PRIORITY_LABEL} & job["metadata"]["labels"].keys()


def test_two_trainings_on_two_nodes_with_room_for_one_are_admitted_one_after_the_other(new_team: NewTeam) -> None:
    first, second = new_team(), new_team()
    add_cluster_queue(first.kube, first.namespace, gpus=2)
    for team in (first, second):
        team.add_queue(first.namespace)
    first.submit(profile="nodes")
    running = first.run_on_nodes(2)

    waiting = second.submit(profile="nodes")
    message = second.wait_for_words("Reconciling", "Queued", "insufficient unused quota")
    pods = second.kube.list("v1", "Pod", second.namespace, f"{names.STAGE_LABEL}={Stage.TRAIN}")
    services = [team.kube.get("v1", "Service", team.namespace, team.job_name) for team in (first, second)]
    for pod in running:
        first.finish_pod(first.training, pod)
    admitted = second.run_on_nodes(2)

    assert message.endswith("insufficient unused quota for nvidia.com/gpu in flavor l4, 2 more needed")
    assert (waiting["spec"]["suspend"], pods) == (True, [])
    assert [service is not None for service in services] == [True, False]
    assert len(admitted) == 2


def test_a_training_on_more_nodes_than_its_queue_has_gpus_says_so(new_team: NewTeam) -> None:
    team = new_team()
    add_cluster_queue(team.kube, team.namespace, gpus=1)
    team.add_queue(team.namespace)
    team.submit(profile="nodes")

    message = team.wait_for_words("Stalled", "QueueTooSmall", "can never admit this stage")

    assert "request (2) > maximum capacity (1)" in message


def test_the_pods_of_a_training_on_several_nodes_run_in_the_rack_that_has_room(new_team: NewTeam) -> None:
    team = new_team()
    add_racks(team.kube, "racks", {"rack-a": 1, "rack-b": 2})
    add_cluster_queue(team.kube, team.namespace, gpus=3, flavor="racks")
    team.add_queue(team.namespace)
    team.submit(profile="rack")

    hosts: list[str] = []

    def are_free_to_run() -> bool:
        pods = team.kube.list("v1", "Pod", team.namespace, f"{names.STAGE_LABEL}={Stage.TRAIN}")
        free = [pod["spec"] for pod in pods if not pod["spec"].get("schedulingGates")]
        hosts[:] = sorted(pod.get("nodeSelector", {}).get("kubernetes.io/hostname", "") for pod in free)
        return len(hosts) == 2

    assert wait_for(are_free_to_run, LIMIT_SECONDS), team.object["status"]
    assert hosts == ["rack-b-0", "rack-b-1"]


def test_a_training_for_which_no_rack_has_room_says_so(new_team: NewTeam) -> None:
    team = new_team()
    add_racks(team.kube, "small-racks", {"rack-c": 1, "rack-d": 1})
    add_cluster_queue(team.kube, team.namespace, gpus=2, flavor="small-racks")
    team.add_queue(team.namespace)
    job = team.submit(profile="rack")

    message = team.wait_for_words("Reconciling", "Queued", "topology")

    assert job["spec"]["template"]["metadata"]["annotations"] == {"kueue.x-k8s.io/podset-required-topology": RACK}
    assert message.endswith('topology "small-racks" allows to fit only 1 out of 2 pod(s)')


def test_a_preempted_training_on_two_nodes_is_one_preemption(new_team: NewTeam) -> None:
    team = new_team()
    add_cluster_queue(team.kube, team.namespace, gpus=2)
    team.add_queue(team.namespace)
    team.submit(profile="nodes")
    running = team.run_on_nodes(2)
    team.set_active(active=False)
    for pod in running:
        team.stop(pod)
    team.set_active(active=True)
    team.run_on_nodes(2)

    team.wait(lambda _: team.row(Stage.TRAIN).get("preemptions") == 1, "one preemption")
    assert team.row(Stage.TRAIN)["attempts"] == 1

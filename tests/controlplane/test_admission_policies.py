"""Attacks on a real API server with the chart's rights and policies, and what these must let through.

`support.attacks` has the table of attacks. The operator does not run.
"""

import copy
from collections.abc import Iterator
from typing import Any

import pytest

from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.profiles.tenants import Namespaces
from edgetune_operator.decisions.manifests.job_manifests import change_of, render_clean_up
from support.apiserver import BINARIES_VARIABLE, ApiServer, running_with_crd
from support.attacks import ATTACKS
from support.attacks.attack import Attack, Attacker, Existing, RefusedBy, Target
from support.attacks.by_users import own_job, own_pod
from support.attacks.with_token import job_on_nodes, service, stage_job
from support.builders import NAMESPACE, ObjectBuilder, lora_fine_tune
from support.chart import find_helm
from support.golden import NODES, PROFILES, clean_up_request
from support.kube import Reply
from support.policies import Cluster, installed_policies
from support.scenario import PROFILE, Scenario

pytestmark = pytest.mark.skipif(
    find_helm() is None, reason=f"no helm in ${BINARIES_VARIABLE}, the cache folder or PATH: there is no chart"
)

Job = dict[str, Any]
BY_POLICY = "ValidatingAdmissionPolicy 'edgetune-edgetune-system-{}' with binding 'edgetune-edgetune-system-{}' denied"
VALUES = {
    "profiles": {
        name: profile.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        for name, profile in {**PROFILES, "nodes": NODES}.items()
    },
}


@pytest.fixture(scope="module")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A server of its own: the policies would hold for all other tests on it."""
    with running_with_crd(tmp_path_factory.mktemp("apiserver")) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(apiserver: ApiServer) -> Iterator[Cluster]:
    """The policies for the profiles of the golden manifests."""
    with installed_policies(apiserver, VALUES, NAMESPACE) as cluster:
        yield cluster


def by(policy: str, message: str) -> str:
    """The API server's words for a refusal by a policy."""
    return f"{BY_POLICY.format(policy, policy)} request: {message}"


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("stage", Stage)
def test_every_job_of_a_stage_is_accepted(cluster: Cluster, profile: str, stage: Stage) -> None:
    reply = cluster.create(cluster.operator, stage_job(profile, stage))

    assert reply.accepted, reply.message


@pytest.mark.parametrize("job", ["", "4-bit-train-0123456789"], ids=["its name", "a digit"])
def test_the_job_of_a_training_on_several_nodes_and_its_service_are_accepted(cluster: Cluster, job: str) -> None:
    replies = [cluster.create(cluster.operator, each) for each in (job_on_nodes(), service(job))]

    assert [reply.message for reply in replies if not reply.accepted] == []


@pytest.mark.parametrize("profile", PROFILES)
def test_every_clean_up_is_accepted(cluster: Cluster, profile: str) -> None:
    owner = lora_fine_tune().build()["metadata"]
    job = render_clean_up(owner, PROFILES[profile], clean_up_request(PROFILES[profile]))

    reply = cluster.create(cluster.operator, job)

    assert reply.accepted, reply.message


@pytest.fixture(scope="module")
def running(cluster: Cluster) -> Job:
    """A stage's Job that the operator has created."""
    reply = cluster.create(cluster.operator, stage_job(), dry_run=False)
    assert reply.accepted, reply.message
    return reply.body


@pytest.fixture(scope="module")
def foreign(cluster: Cluster) -> Job:
    """A user's own Job, which waits."""
    template = {"metadata": {}, "spec": {"restartPolicy": "Never", "containers": [{"name": "own", "image": "own:1"}]}}
    spec = {"suspend": True, "template": template}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "own"}, "spec": spec}
    reply = cluster.create(cluster.tenant, job, dry_run=False)
    assert reply.accepted, reply.message
    return reply.body


@pytest.fixture(scope="module")
def object_path(cluster: Cluster) -> str:
    """Path of an object that a user has created."""
    reply = cluster.create(cluster.tenant, lora_fine_tune().build(), dry_run=False)
    assert reply.accepted, reply.message
    return cluster.admin.path(names.API_VERSION, names.KIND, cluster.namespace, "sensor-faults")


@pytest.fixture(scope="module")
def pod_path(cluster: Cluster, running: Job) -> str:
    """Path of the Pod of the stage's Job, which waits for a node."""
    pod = own_pod(name=f"{running['metadata']['name']}-1", labels={names.STAGE_LABEL: "train"})
    reply = cluster.create(cluster.admin, pod, dry_run=False)
    assert reply.accepted, reply.message
    return cluster.admin.path("v1", "Pod", cluster.namespace, reply.body["metadata"]["name"])


def job_path(cluster: Cluster, job: Job) -> str:
    return cluster.admin.path("batch/v1", "Job", cluster.namespace, job["metadata"]["name"])


@pytest.fixture(scope="module")
def existing(cluster: Cluster, running: Job, foreign: Job, object_path: str, pod_path: str) -> dict[Existing, str]:
    """Paths of what attacks change."""
    return {
        Existing.STAGE_JOB: job_path(cluster, running),
        Existing.STAGE_POD: pod_path,
        Existing.OWN_JOB: job_path(cluster, foreign),
        Existing.OBJECT: object_path,
    }


def attempt(cluster: Cluster, existing: dict[Existing, str], attack: Attack) -> Reply:
    attackers = {
        Attacker.USER: cluster.tenant,
        Attacker.OWNER: cluster.owner,
        Attacker.CONTROLLER: cluster.controller("cronjob-controller"),
        Attacker.TOKEN: cluster.operator,
    }
    kube = attackers[attack.attacker]
    if attack.existing is None:
        return cluster.create(kube, attack.document, namespace=attack.namespace)
    subresource = f"/{attack.subresource}" if attack.subresource else ""
    return cluster.patch(kube, existing[attack.existing] + subresource, attack.document)


@pytest.mark.parametrize("attack", [each for each in ATTACKS if each.by is not RefusedBy.CODE], ids=str)
def test_an_attack_is_refused_while_the_operator_is_down(
    cluster: Cluster, existing: dict[Existing, str], attack: Attack
) -> None:
    reply = attempt(cluster, existing, attack)

    is_by_policy, is_by_right = "ValidatingAdmissionPolicy" in reply.message, " cannot patch resource" in reply.message
    assert not reply.accepted
    assert attack.message in reply.message
    assert (is_by_policy, is_by_right) == (attack.by is RefusedBy.POLICY, attack.by is RefusedBy.RIGHTS), reply.message


@pytest.mark.parametrize("attack", [each for each in ATTACKS if each.by is RefusedBy.CODE], ids=str)
def test_an_attack_that_profiles_decide_about_is_refused_by_the_operator(cluster: Cluster, attack: Attack) -> None:
    of_team_b = PROFILE.model_copy(update={"namespaces": Namespaces(names=("team-b",))})
    scenario = Scenario(ObjectBuilder(attack.document))
    scenario.profiles["of-team-b"] = of_team_b

    scenario.reconcile()

    assert cluster.create(cluster.tenant, attack.document | {"metadata": {"name": "by-code"}}).accepted
    assert (scenario.held_up or ())[:2] == ("True", attack.message)
    assert scenario.cluster.created == []


def test_most_attacks_are_refused_without_the_operator_and_no_target_is_left_out() -> None:
    by_code = [attack for attack in ATTACKS if attack.by is RefusedBy.CODE]

    assert len(ATTACKS) >= 100
    assert len(by_code) <= len(ATTACKS) // 5
    assert {attack.target for attack in ATTACKS} == set(Target)
    assert len({str(attack) for attack in ATTACKS}) == len(ATTACKS)


def test_the_operator_deletes_jobs_of_stages_and_no_others(cluster: Cluster, running: Job, foreign: Job) -> None:
    own = cluster.operator.request("DELETE", f"{job_path(cluster, running)}?dryRun=All")
    other = cluster.operator.request("DELETE", f"{job_path(cluster, foreign)}?dryRun=All")

    assert own.accepted, own.message
    assert by("jobs", "the operator may only touch Jobs with the labels of a stage") in other.message


def test_of_a_waiting_job_the_operator_changes_limits_and_nodes_but_no_labels_of_pods(cluster: Cluster) -> None:
    job = stage_job(stage=Stage.EVALUATE)
    waiting = cluster.create(cluster.operator, job | {"spec": job["spec"] | {"suspend": True}}, dry_run=False)
    path = f"{job_path(cluster, waiting.body)}?dryRun=All"

    own = cluster.operator.request("PATCH", path, change_of(job), "application/json-patch+json")
    labels = {"spec": {"template": {"metadata": {"labels": {"app": "of-another-team"}}}}}
    forged = cluster.patch(cluster.operator, job_path(cluster, waiting.body), labels)

    assert own.accepted, own.message
    assert by("jobs", "the labels and annotations of a Job's Pods are not changed") in forged.message


@pytest.mark.parametrize(
    ("patch", "is_allowed"),
    [
        ({"metadata": {"finalizers": [names.FINALIZER]}}, True),
        ({"spec": {"profile": "other"}}, False),
        ({"metadata": {"labels": {"team": "b"}}}, False),
        ({"metadata": {"annotations": {names.RETRY_REQUESTED_ANNOTATION: "now"}}}, False),
    ],
)
def test_of_an_object_the_operator_changes_only_finalizers_and_status(
    cluster: Cluster, object_path: str, patch: Job, *, is_allowed: bool
) -> None:
    reply = cluster.patch(cluster.operator, object_path, patch)

    message = by("operator", "the operator may only change the finalizers and the status of a LoraFineTune")
    assert (reply.accepted, message in reply.message) == (is_allowed, not is_allowed), reply.message


def test_the_operator_writes_its_status_its_leases_and_events_of_objects(cluster: Cluster, object_path: str) -> None:
    status = cluster.patch(cluster.operator, f"{object_path}/status", {"status": {"phase": "Training"}})
    lease: Job = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": names.CLUSTER_LEASE}}
    own = cluster.create(cluster.operator, lease, namespace="kube-system")
    other = cluster.create(cluster.operator, lease | {"metadata": {"name": "others"}}, namespace="kube-system")
    event: Job = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "type": "Normal", "reason": "R"}
    about = {"namespace": cluster.namespace, "name": "x"}
    posted = cluster.create(cluster.operator, event | {"involvedObject": {"kind": names.KIND, **about}})
    forged = cluster.create(cluster.operator, event | {"involvedObject": {"kind": "Pod", **about}})

    assert [each.message for each in (status, own, posted) if not each.accepted] == []
    assert by("operator", "the operator may only write its own Leases") in other.message
    assert by("operator", "the operator may only post Events of LoraFineTunes") in forged.message


def test_users_keep_their_own_jobs_and_pods(cluster: Cluster, foreign: Job) -> None:
    template = {"metadata": {"labels": {"team": "a"}}}
    own = cluster.patch(cluster.tenant, job_path(cluster, foreign), {"spec": {"suspend": False, "template": template}})

    assert cluster.create(cluster.tenant, own_job(labels={names.MANAGED_BY_LABEL: "Helm"})).accepted
    assert cluster.create(cluster.tenant, own_pod()).accepted
    assert own.accepted, own.message


def test_users_delete_the_job_of_a_stage_and_edit_their_objects(
    cluster: Cluster, running: Job, object_path: str
) -> None:
    edit = {"spec": {"suspend": True}, "metadata": {"annotations": {names.RETRY_REQUESTED_ANNOTATION: "now"}}}

    assert cluster.tenant.request("DELETE", f"{job_path(cluster, running)}?dryRun=All").accepted
    assert cluster.patch(cluster.tenant, object_path, edit).accepted


def test_kubernetes_and_the_queue_do_their_work_on_stages(cluster: Cluster, running: Job) -> None:
    path, queue = job_path(cluster, running), "system:serviceaccount:kueue-system:kueue-controller-manager"
    cluster.admin.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "kueue"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit-jobs"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": queue}],
        }
    )
    cluster.admin.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "edit-jobs"},
            "rules": [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["patch"]}],
        }
    )
    pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(running["spec"]["template"])}
    pod["metadata"] |= {"generateName": "sensor-faults-"}
    pod["spec"] |= {"priorityClassName": "", "runtimeClassName": None, "serviceAccountName": "default"}

    suspended = cluster.patch(cluster.admin.impersonate(queue), path, {"spec": {"suspend": True}})
    orphaned = cluster.patch(
        cluster.controller("generic-garbage-collector"), path, {"metadata": {"ownerReferences": None}}
    )
    created = cluster.create(cluster.controller("job-controller"), pod)

    assert suspended.accepted, suspended.message
    assert orphaned.accepted, orphaned.message
    assert "ValidatingAdmissionPolicy" not in created.message


def test_controllers_report_how_a_stage_ended_and_others_add_conditions(cluster: Cluster, pod_path: str) -> None:
    terminated = {"name": "stage", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    ended = {"status": {"containerStatuses": [terminated | {"state": {"terminated": {"exitCode": 137}}}]}}
    condition = {"status": {"conditions": [{"type": "example.com/Seen", "status": "True"}]}}

    by_controller = cluster.patch(cluster.controller("pod-garbage-collector"), f"{pod_path}/status", ended)
    by_owner = cluster.patch(cluster.owner, f"{pod_path}/status", condition)

    assert by_controller.accepted, by_controller.message
    assert by_owner.accepted, by_owner.message

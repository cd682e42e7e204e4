"""The chart on a real API server: accepted manifests, the notes, and the permissions of the installed operator."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgetune_contract.digest import prepare_digest
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.spec_check import parse_spec
from support.apiserver import BINARIES_VARIABLE, ApiServer
from support.builders import lora_fine_tune
from support.chart import (
    ALL_SWITCHES,
    CHART,
    PROFILE,
    RELEASE,
    RELEASE_NAMESPACE,
    Manifest,
    Values,
    find_helm,
    helm,
    one,
    parse,
    pod_specs,
    render,
)
from support.operator_process import running_installed_operator, service_account_kubeconfig

pytestmark = pytest.mark.skipif(
    find_helm() is None, reason=f"no helm in ${BINARIES_VARIABLE}, the cache folder or PATH: the chart is not installed"
)

NAMESPACE = "chart-users"
WITHOUT_CRD: Values = {"crd": {"install": False}, "profiles": {"default": PROFILE}}
# Kinds of the Prometheus Operator, which this API server does not serve.
FOREIGN_KINDS = ("ServiceMonitor", "PodMonitor", "PrometheusRule")
PATHS = {
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "ConfigMap": "/api/v1/namespaces/{namespace}/configmaps",
    "Deployment": "/apis/apps/v1/namespaces/{namespace}/deployments",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
    "Service": "/api/v1/namespaces/{namespace}/services",
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "ValidatingAdmissionPolicy": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    "ValidatingAdmissionPolicyBinding": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
}
OBJECTS = f"/apis/{names.API_VERSION}/namespaces/{NAMESPACE}/{names.PLURAL}"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
EVENTS = f"/api/v1/namespaces/{NAMESPACE}/events"


@pytest.fixture(scope="module")
def kubeconfig(apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The administrator's kubeconfig, with namespaces of the release and of users, all of them `restricted`."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    for name in (RELEASE_NAMESPACE, NAMESPACE, "chart-a", "chart-b"):
        reply = apiserver.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        assert reply.accepted, reply.message
        accounts = f"/api/v1/namespaces/{name}/serviceaccounts"
        assert apiserver.request("POST", accounts, {"metadata": {"name": "default"}}).accepted
    path = tmp_path_factory.mktemp("chart") / "kubeconfig"
    apiserver.write_kubeconfig(path)
    return path


@pytest.fixture(scope="module")
def installed(kubeconfig: Path) -> Iterator[list[Manifest]]:
    """Manifests of the release, for all namespaces. No node runs its Pod; the CRD is already installed."""
    target = ("-n", RELEASE_NAMESPACE, f"--kubeconfig={kubeconfig}")
    helm("install", RELEASE, str(CHART), *target, values=WITHOUT_CRD)
    yield list(parse(helm("get", "manifest", RELEASE, *target)))
    helm("uninstall", RELEASE, *target)


def notes(kubeconfig: Path, values: Values) -> str:
    """The notes that helm prints after an install."""
    target = ("-n", RELEASE_NAMESPACE, f"--kubeconfig={kubeconfig}", "--dry-run=client")
    return helm("install", "notes", str(CHART), *target, values={**WITHOUT_CRD, **values}).partition("NOTES:\n")[2]


def submit(apiserver: ApiServer, manifest: Manifest) -> str:
    """Why the API server refuses a manifest; empty if it accepts it."""
    path = PATHS[manifest["kind"]].format(namespace=manifest["metadata"].get("namespace"))
    reply = apiserver.request("POST", f"{path}?dryRun=All&fieldValidation=Strict", manifest)
    return "" if reply.accepted else reply.message


@pytest.mark.usefixtures("kubeconfig")
@pytest.mark.parametrize(
    "values",
    [
        WITHOUT_CRD,
        {**WITHOUT_CRD, **ALL_SWITCHES, "priorityClassName": "system-cluster-critical"},
        {**WITHOUT_CRD, "watchNamespaces": ["chart-a", "chart-b"]},
    ],
    ids=["default", "all switches", "namespaced"],
)
def test_the_api_server_accepts_every_manifest(apiserver: ApiServer, values: Values) -> None:
    stages = {"stages": {"enabled": True, "namespaces": ["chart-a"], "prometheus": {"enabled": True}}}
    manifests = render({**values, "crd": {"install": False}, "networkPolicy": {"enabled": True, **stages}})

    known = [manifest for manifest in manifests if manifest["kind"] not in FOREIGN_KINDS]
    problems = {f"{each['kind']} {each['metadata']['name']}": submit(apiserver, each) for each in known}
    assert {what: problem for what, problem in problems.items() if problem} == {}


def test_pod_security_restricted_admits_every_pod(apiserver: ApiServer, installed: list[Manifest]) -> None:
    health_test = one(render(WITHOUT_CRD), "Pod", f"{RELEASE}-test")
    for what, spec in pod_specs([*installed, health_test]).items():
        pod = {"kind": "Pod", "metadata": {"name": "attempt", "namespace": RELEASE_NAMESPACE}, "spec": spec}

        assert submit(apiserver, pod) == "", what


def test_the_installed_crd_is_served_as_rendered(apiserver: ApiServer) -> None:
    crd = one(render({}), "CustomResourceDefinition", f"{names.PLURAL}.{names.GROUP}")
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}"
    served = apiserver.request("GET", path).body
    crd["metadata"]["resourceVersion"] = served["metadata"]["resourceVersion"]

    reply = apiserver.request("PUT", f"{path}?dryRun=All&fieldValidation=Strict", crd)

    assert reply.accepted, reply.message
    assert reply.body["spec"] == served["spec"]


def test_notes_ask_for_a_profile_if_there_is_none(kubeconfig: Path) -> None:
    text = notes(kubeconfig, {"profiles": {}})

    assert "every LoraFineTune is stalled with the reason ProfileNotFound" in text
    assert "--set profiles.default.store.uri=" in text


def test_notes_say_that_stages_are_not_restricted_while_their_namespaces_are_unknown(kubeconfig: Path) -> None:
    text = notes(kubeconfig, {})

    assert "The network traffic of stages is not restricted." in text
    assert "--set 'networkPolicy.stages.enabled=true,networkPolicy.stages.namespaces={team-a}'" in text


def test_notes_have_the_next_commands_for_these_values(apiserver: ApiServer, kubeconfig: Path) -> None:
    text = notes(kubeconfig, {"profiles": {"a100": PROFILE}, "watchNamespaces": [NAMESPACE]})

    namespace, _, secret = text.partition(f"kubectl create secret generic edgetune-s3 -n {NAMESPACE}")
    assert f"kubectl create namespace {NAMESPACE}\n" in namespace
    assert secret
    assert f"helm test notes -n {RELEASE_NAMESPACE}" in text
    assert f"edgetune policy --namespace {NAMESPACE} --profiles values.yaml" in text
    assert "The network traffic of stages is not restricted" not in text
    example = yaml.safe_load(text.partition("<<'YAML'\n")[2].partition("\nYAML\n")[0])
    assert example["spec"]["profile"] == "a100"
    reply = apiserver.request("POST", f"{OBJECTS}?dryRun=All&fieldValidation=Strict", example)
    assert reply.accepted, reply.message


@dataclass(frozen=True)
class RunningOperator:
    """The operator under test."""

    apiserver: ApiServer
    log: Path

    def wait_for(self, what: str, found: Callable[[], bool]) -> None:
        """Wait until something is found."""
        deadline = time.monotonic() + 60
        while not found():
            assert time.monotonic() < deadline, f"no {what}; the operator's log:\n{self.log.read_text('utf-8')}"
            time.sleep(0.1)

    def status(self, name: str) -> dict[str, Any]:
        """Status of an object."""
        return self.apiserver.request("GET", f"{OBJECTS}/{name}").body.get("status") or {}

    def ready_reason(self, name: str) -> str:
        """Reason of an object's condition Ready."""
        conditions = self.status(name).get("conditions") or []
        return next((condition["reason"] for condition in conditions if condition["type"] == "Ready"), "")

    def events(self) -> set[str]:
        """Reasons of all Events."""
        return {event["reason"] for event in self.apiserver.request("GET", EVENTS).body["items"]}


@pytest.fixture
def operator(apiserver: ApiServer, kubeconfig: Path, installed: list[Manifest]) -> Iterator[RunningOperator]:
    """The operator as its Deployment runs it: its service account, arguments and profiles, but free ports."""
    deployment = one(installed, "Deployment")
    account = deployment["spec"]["template"]["spec"]["serviceAccountName"]
    own = service_account_kubeconfig(apiserver, kubeconfig, RELEASE_NAMESPACE, account)
    profiles = one(installed, "ConfigMap", f"{RELEASE}-profiles")["data"]["profiles.yaml"]
    with running_installed_operator(kubeconfig.parent, own, deployment, profiles) as process:
        yield RunningOperator(apiserver, process.log)
        assert process.process.poll() is None, process.log.read_text(encoding="utf-8")


def prepare_job(name: str) -> str:
    """Name of the first Job of the smallest object under another name."""
    spec = parse_spec(lora_fine_tune().build()["spec"])
    return names.job_name(name, Stage.PREPARE, prepare_digest(spec.parameters))


def create(apiserver: ApiServer, name: str, **spec: Any) -> None:
    """Create the smallest object under another name, with some fields of its spec changed."""
    document = lora_fine_tune().build()
    changed = {"metadata": {"name": name}, "spec": document["spec"] | spec}
    reply = apiserver.request("POST", OBJECTS, document | changed)
    assert reply.accepted, reply.message


def suspend(apiserver: ApiServer, name: str) -> bool:
    """Suspend an object; False if its status was written in between."""
    current = apiserver.request("GET", f"{OBJECTS}/{name}").body
    current["spec"]["suspend"] = True
    return apiserver.request("PUT", f"{OBJECTS}/{name}", current).accepted


def test_the_installed_rights_are_enough_for_the_operator(apiserver: ApiServer, operator: RunningOperator) -> None:
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "other", "image": "other:1"}]}}
    foreign = {"metadata": {"name": prepare_job("taken")}, "spec": {"template": template}}
    assert apiserver.request("POST", JOBS, foreign).accepted

    create(apiserver, "first")
    create(apiserver, "taken")

    operator.wait_for("status", lambda: operator.status("first").get("phase") == "Preparing")
    operator.wait_for("Event", lambda: "PrepareStarted" in operator.events())
    operator.wait_for("reason of the foreign Job", lambda: operator.ready_reason("taken") == "JobNameTaken")

    operator.wait_for("edit", lambda: suspend(apiserver, "first"))
    job = f"{JOBS}/{prepare_job('first')}"
    operator.wait_for("deletion", lambda: "deletionTimestamp" in apiserver.request("GET", job).body["metadata"])
    operator.wait_for("suspension", lambda: operator.status("first").get("phase") == "Suspended")

    create(apiserver, "kept", suspend=True, deletionPolicy="Delete")
    kept = f"{OBJECTS}/kept"
    operator.wait_for("finalizer", lambda: "finalizers" in apiserver.request("GET", kept).body["metadata"])
    uid = apiserver.request("DELETE", kept).body["metadata"]["uid"]
    job = f"{JOBS}/{names.clean_up_job_name('kept', uid)}"
    operator.wait_for("clean-up", lambda: apiserver.request("GET", job).accepted)
    retain = {"spec": {"deletionPolicy": "Retain"}}
    assert apiserver.request("PATCH", kept, retain, "application/merge-patch+json").accepted
    operator.wait_for("end", lambda: apiserver.request("GET", kept).code == 404)
    operator.wait_for("Event", lambda: "ArtifactsRetained" in operator.events())

    log = operator.log.read_text(encoding="utf-8")
    assert "orbidden" not in log
    assert '"severity": "error"' not in log

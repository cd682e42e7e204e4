"""`kubectl edgetune` with the real kubectl on a real API server."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.binaries import find
from edgetune_operator.api import names
from support.apiserver import ApiServer
from support.builders import lora_fine_tune
from support.chart import PROFILE, find_helm, render
from support.operator_process import service_account_kubeconfig
from support.scenario import Scenario

OBJECTS = f"/apis/{names.API_VERSION}/namespaces/default/{names.PLURAL}"
NAME = "shown-to-users"
# The part of the role `view` for built-in kinds; the controller that aggregates the parts does not run here.
_VIEW = "system:aggregate-to-view"


@pytest.fixture
def environment(apiserver: ApiServer, tmp_path: Path) -> dict[str, str]:
    """A shell that has kubectl and access to the API server, where one object has succeeded."""
    kubectl = find("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl in the cache: the plugin cannot run")
    (tmp_path / "kubectl").symlink_to(kubectl)
    kubeconfig = tmp_path / "kubeconfig"
    apiserver.write_kubeconfig(kubeconfig)
    scenario = Scenario(lora_fine_tune())
    scenario.finish_all()
    document = lora_fine_tune().build() | {"metadata": {"name": NAME, "namespace": "default"}}
    if apiserver.request("GET", f"{OBJECTS}/{NAME}").code == 404:
        created = apiserver.request("POST", OBJECTS, document)
        assert created.accepted, created.message
        status = scenario.status.model_dump(mode="json", exclude_none=True)
        written = apiserver.request("PUT", f"{OBJECTS}/{NAME}/status", created.body | {"status": status})
        assert written.accepted, written.message
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "KUBECONFIG": str(kubeconfig), "COLUMNS": "250"}


def plugin(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgetune_cli.kubectl", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_get_lists_objects_with_scores_and_sizes(environment: dict[str, str]) -> None:
    done = plugin(environment, "get", "--namespace", "default")

    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if NAME in line)
    assert line.split()[:3] == ["default", NAME, "Succeeded"]
    assert "94.0%" in line


def test_names_of_objects_and_namespaces_are_completed(environment: dict[str, str]) -> None:
    folder = Path(environment["KUBECONFIG"]).parent
    for name, module in (("kubectl-edgetune", "__main__"), ("kubectl_complete-edgetune", "completion")):
        executable = folder / name
        executable.write_text(f"#!{sys.executable}\nfrom edgetune_cli.kubectl.{module} import main\nmain()\n")
        executable.chmod(0o755)

    def completed(*words: str) -> list[str]:
        command = ["kubectl", "__complete", "edgetune", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.splitlines()

    assert NAME in completed("describe", "-n", "default", NAME[:5])
    assert NAME not in completed("describe", "-n", "kube-system", NAME[:5])
    assert "kube-system" in completed("get", "-n", "kube-s")


def test_get_accepts_a_name_a_selector_a_context_and_a_kubeconfig(environment: dict[str, str]) -> None:
    kubeconfig = environment.pop("KUBECONFIG")
    access = ("--kubeconfig", kubeconfig, "-n", "default")
    named = plugin(environment, "get", NAME, *access)
    selected = plugin(environment, "get", "-l", "team=nobody", *access)
    elsewhere = plugin(environment, "get", *access, "--context", "nowhere")

    assert (named.returncode, selected.returncode, elsewhere.returncode) == (0, 0, 1)
    assert NAME in named.stdout
    assert NAME not in selected.stdout
    assert 'context "nowhere" does not exist' in elsewhere.stderr


def test_describe_shows_stages_conditions_and_artifacts(environment: dict[str, str]) -> None:
    done = plugin(environment, "describe", NAME, "--namespace", "default")

    assert done.returncode == 0, done.stderr
    assert f"default/{NAME}: Succeeded" in done.stdout
    assert "edge-bnb-int8: s3://artifacts/" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["Ready", "True", "Published"] in [line[:3] for line in lines]
    versions = [line[2] for line in lines if line[1:2] == ["Succeeded"] and len(line) > 2]
    assert [len(version) for version in versions] == [12]


def test_a_watch_prints_a_line_for_each_change_until_it_is_stopped(
    apiserver: ApiServer, environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "edgetune_cli.kubectl", "get", NAME, "-n", "default", "--watch"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        document = apiserver.request("GET", f"{OBJECTS}/{NAME}").body
        changes = []
        for phase in ("Pending", "Succeeded"):  # the other tests show the object as succeeded
            document["status"]["phase"] = phase
            document = apiserver.request("PUT", f"{OBJECTS}/{NAME}/status", document).body
            changes.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        code = process.wait(60)

    assert first.startswith(f"default/{NAME}: Succeeded: ")
    assert [line.split(": ")[:2] for line in changes] == [
        [f"default/{NAME}", phase] for phase in ("Pending", "Succeeded")
    ]
    assert code == 130


def test_the_wide_columns_of_kubectl_say_that_no_gate_is_set(environment: dict[str, str]) -> None:
    command = ["kubectl", "get", names.PLURAL, NAME, "-n", "default", "-o", "wide"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    header, row = done.stdout.splitlines()
    assert "NOTE" in header.split()
    assert row[header.index("NOTE") :].startswith("no gate")


def test_a_missing_object_is_reported_with_kubectls_message(environment: dict[str, str]) -> None:
    done = plugin(environment, "describe", "missing", "--namespace", "default")

    assert done.returncode == 1
    assert 'lorafinetunes.edgetune.dev "missing" not found' in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def user(apiserver: ApiServer, environment: dict[str, str]) -> dict[str, str]:
    """A shell of a user with the cluster's role `view` in the namespaces vision and speech, and the chart's catalog."""
    if find_helm() is None:
        pytest.skip("no helm in the cache: there is no chart")
    by_label = {"selector": {"matchLabels": {"team": "vision"}}}
    profiles: dict[str, Any] = {
        "default": PROFILE,
        "large": {
            **PROFILE,
            "namespaces": by_label,
            "gpuMemory": "80Gi",
            "queue": {"name": "gpu"},
            "requireQueue": True,
        },
        "own": {**PROFILE, "namespaces": {"names": ["speech"]}, "sources": ["s3://models/*"]},
    }
    manifests = [each for each in render({"profiles": profiles}) if each["metadata"]["name"] == "edgetune-catalog"]
    for name, labels in (("edgetune-system", {}), ("vision", {"team": "vision"}), ("speech", {})):
        apiserver.apply(
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"x": "y", **labels}}}
        )
    for manifest in manifests:
        apiserver.apply(manifest)
    for namespace in ("vision", "speech"):
        apiserver.apply(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "RoleBinding",
                "metadata": {"name": "viewers", "namespace": namespace},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": _VIEW},
                "subjects": [{"kind": "ServiceAccount", "name": "viewer", "namespace": "vision"}],
            }
        )
    apiserver.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "viewer", "namespace": "vision"}}
    )
    kubeconfig = service_account_kubeconfig(apiserver, Path(environment["KUBECONFIG"]), "vision", "viewer")
    return {**environment, "KUBECONFIG": str(kubeconfig)}


def test_profiles_lists_those_that_a_namespace_may_use_with_the_users_own_rights(user: dict[str, str]) -> None:
    vision, speech = plugin(user, "profiles", "-n", "vision"), plugin(user, "profiles", "-n", "speech")

    assert [line.split() for line in vision.stdout.splitlines()] == [
        ["PROFILE", "GPU", "QUEUE", "SOURCES"],
        ["default", "1", "nvidia.com/gpu", "outside", "of", "the", "stores"],
        ["large", "1", "nvidia.com/gpu", "(80Gi)", "gpu,", "required", "outside", "of", "the", "stores"],
    ], vision.stderr
    assert [line.split()[0] for line in speech.stdout.splitlines()] == ["PROFILE", "default", "own"]
    assert speech.stdout.splitlines()[-1].rstrip().endswith("s3://models/*")


def test_profiles_says_what_cannot_be_read(user: dict[str, str]) -> None:
    nowhere = plugin(user, "profiles", "-n", "vision", "--catalog", "edgetune-system/other-catalog")
    foreign = plugin(user, "profiles", "-n", "kube-system")

    assert 'configmaps "other-catalog" is forbidden' in nowhere.stderr
    assert 'namespaces "kube-system" is forbidden' in foreign.stderr
    assert "Traceback" not in nowhere.stderr + foreign.stderr


def test_a_plan_compares_a_file_with_the_live_object(environment: dict[str, str], tmp_path: Path) -> None:
    changed = lora_fine_tune().with_spec("evaluation.maxExamples", 7).build()
    absent = lora_fine_tune().build() | {"metadata": {"name": "absent", "namespace": "default"}}
    documents = [changed | {"metadata": {"name": NAME, "namespace": "default"}}, absent]
    (tmp_path / "objects.yaml").write_text(yaml.safe_dump_all(documents))
    command = [sys.executable, "-m", "edgetune_cli", "plan", "-f", "objects.yaml", "--live", "-o", "json"]

    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    live, new = json.loads(done.stdout)["objects"]
    assert {stage["stage"]: stage["plan"] for stage in live["stages"] if stage["stage"] != "publish"} == {
        "prepare": "check",
        "train": "keep",
        "merge": "keep",
        "quantize": "keep",
        "evaluate": "run",
    }
    assert {stage["plan"] for stage in new["stages"]} == {"run"}


def steered(apiserver: ApiServer, name: str, status: dict[str, Any] | None = None) -> None:
    """Create an object as Flux does: by server-side apply; and write its status, as the operator does."""
    applied = apply_as_flux(apiserver, name)
    if status is not None:
        write_status(apiserver, name, {"observedGeneration": applied["metadata"]["generation"], **status})


def apply_as_flux(apiserver: ApiServer, name: str) -> dict[str, Any]:
    document = lora_fine_tune().build() | {"metadata": {"name": name, "namespace": "default"}}
    command = f"{OBJECTS}/{name}?fieldManager=kustomize-controller&force=true"
    reply = apiserver.request("PATCH", command, document, content_type="application/apply-patch+yaml")
    assert reply.accepted, reply.message
    return reply.body


def write_status(apiserver: ApiServer, name: str, status: dict[str, Any]) -> None:
    current = apiserver.request("GET", f"{OBJECTS}/{name}").body
    written = apiserver.request("PUT", f"{OBJECTS}/{name}/status", current | {"status": status})
    assert written.accepted, written.message


def condition(kind: str, status: str, reason: str, message: str) -> dict[str, str]:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": TIME}


TIME = "2026-11-28T00:00:00Z"
PUBLISHED = [condition("Ready", "True", "Published", "it is published")]
FAILED = [
    condition("Ready", "False", "OutOfGpuMemory", "no memory"),
    condition("Stalled", "True", "OutOfGpuMemory", "no memory"),
]
RUNNING = [
    condition("Ready", "False", "Running", "it trains"),
    condition("Reconciling", "True", "Running", "it trains"),
]


def test_changes_have_a_manager_that_flux_leaves_alone(environment: dict[str, str], apiserver: ApiServer) -> None:
    name = "steered"
    history = [
        {"generation": 3, "outcome": "Succeeded", "version": "a" * 64},
        {"generation": 2, "outcome": "Refused: GatesNotMet", "version": "b" * 64},
        {"generation": 1, "outcome": "Succeeded", "version": "c" * 64},
    ]
    steered(apiserver, name, {"phase": "Succeeded", "conditions": PUBLISHED, "history": history})

    for action in (["suspend", name], ["retry", name], ["pin", name]):
        done = plugin(environment, *action, "--namespace", "default")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert done.stdout.startswith(f"default/{name} ")
    found = apply_as_flux(apiserver, name)

    managers = {entry["manager"] for entry in found["metadata"]["managedFields"]}
    assert managers >= {"edgetune", "kustomize-controller"}
    assert not [manager for manager in managers if manager.startswith(("kubectl", "before-first-apply"))]
    assert (found["spec"]["suspend"], found["spec"]["publish"]["pin"]) == (True, "c" * 64)
    assert found["metadata"]["annotations"][names.RETRY_REQUESTED_ANNOTATION].startswith("kubectl 20")
    for action in (["resume", name], ["unpin", name]):
        assert plugin(environment, *action, "--namespace", "default").returncode == 0
    found = apply_as_flux(apiserver, name)
    assert (found["spec"]["suspend"], found["spec"]["publish"]["pin"]) == (False, "")


def test_a_field_that_git_sets_too_is_named(environment: dict[str, str], apiserver: ApiServer) -> None:
    name = "set-by-git"
    document = lora_fine_tune().with_spec("suspend", False).build()
    document["metadata"] = {"name": name, "namespace": "default"}
    path = f"{OBJECTS}/{name}?fieldManager=kustomize-controller"
    assert apiserver.request("PATCH", path, document, content_type="application/apply-patch+yaml").accepted
    # The manager that applies shares the field until its value changes.
    assert plugin(environment, "resume", name, "-n", "default").returncode == 0

    done = plugin(environment, "resume", name, "-n", "default")

    assert done.stderr.strip() == (
        "Note: kustomize-controller also sets this field, and may set it back: change it there too"
    )


def test_a_pin_without_an_earlier_version_is_refused(environment: dict[str, str]) -> None:
    done = plugin(environment, "pin", NAME, "--namespace", "default")

    assert done.returncode == 1
    assert "status.history has no other published version" in done.stderr


@pytest.mark.parametrize(("conditions", "code", "last"), [(PUBLISHED, 0, "it is published"), (FAILED, 1, "no memory")])
def test_wait_ends_with_the_outcome(
    environment: dict[str, str], apiserver: ApiServer, conditions: list[dict[str, str]], code: int, last: str
) -> None:
    name = f"awaited-{code}"
    steered(apiserver, name, {"phase": "Training", "conditions": RUNNING})
    command = [sys.executable, "-m", "edgetune_cli.kubectl", "wait", name, "-n", "default", "--timeout", "60s"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        write_status(apiserver, name, {"observedGeneration": 1, "phase": "Succeeded", "conditions": conditions})
        rest = process.stdout.read()

    assert first == f"default/{name}: Training: it trains\n"
    assert (process.returncode, rest.splitlines()[-1]) == (code, f"default/{name}: Succeeded: {last}")


def test_wait_ends_at_its_timeout_and_does_not_take_a_waiting_retry_for_the_outcome(
    environment: dict[str, str], apiserver: ApiServer
) -> None:
    name = "awaited-retry"
    steered(apiserver, name, {"phase": "Failed", "conditions": FAILED})
    assert plugin(environment, "retry", name, "-n", "default").returncode == 0

    done = plugin(environment, "wait", name, "-n", "default", "--timeout", "3s")

    assert (done.returncode, done.stdout) == (124, f"default/{name}: the requested retry waits for the operator\n")

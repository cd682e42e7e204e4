"""`kubectl edgetune` with the real kubectl on a real API server."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.binaries import find
from edgetune_operator.api import names
from support.apiserver import ApiServer
from support.builders import lora_fine_tune
from support.scenario import Scenario

OBJECTS = f"/apis/{names.API_VERSION}/namespaces/default/{names.PLURAL}"
NAME = "shown-to-users"


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


def test_a_missing_object_is_reported_with_kubectls_message(environment: dict[str, str]) -> None:
    done = plugin(environment, "describe", "missing", "--namespace", "default")

    assert done.returncode == 1
    assert 'lorafinetunes.edgetune.dev "missing" not found' in done.stderr
    assert "Traceback" not in done.stderr

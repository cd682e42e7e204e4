"""`kubectl edgetune` completed by a real kubectl, without a cluster; names of objects are tested in controlplane."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from cluster.binaries import find
from support.apiserver import REPOSITORY

SCRIPTS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
OF_PLUGIN = [name for name in SCRIPTS if name.startswith("kubectl")]

pytestmark = pytest.mark.skipif(find("kubectl") is None, reason="no kubectl in the cache: run `make programs`")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with kubectl and the plugin's executables, as an installation has them."""
    program = find("kubectl")
    assert program is not None
    (tmp_path / "kubectl").symlink_to(program)
    for name in OF_PLUGIN:
        module, _, function = SCRIPTS[name].partition(":")
        executable = tmp_path / name
        executable.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
        executable.chmod(0o755)
    contexts = [{"name": name, "context": {"cluster": "c", "user": "u"}} for name in ("prod", "staging")]
    kubeconfig = {"apiVersion": "v1", "kind": "Config", "contexts": contexts}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
    return tmp_path


def completed(folder: Path, *words: str) -> list[str]:
    """The lines that the completion scripts of kubectl read."""
    environment = {**os.environ, "PATH": f"{folder}:/usr/bin:/bin", "KUBECONFIG": str(folder / "kubeconfig")}
    command = [str(folder / "kubectl"), "__complete", "edgetune", *words]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.splitlines()


def test_commands_are_completed_with_what_they_do(folder: Path) -> None:
    lines = completed(folder, "")

    assert {line.partition("\t")[0] for line in lines} >= {"get", "describe", "logs", "wait", "pin", "profiles"}
    assert any(line.startswith("retry\tRetry what failed, and check") for line in lines)
    assert lines[-1] == ":4", "no names of files"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["re"], ["resume", "retry"]),
        (["get", "--all"], ["--all-namespaces"]),
        (["logs", "x", "--stage", "tr"], ["train"]),
        (["get", "-o", "j"], ["json"]),
        (["get", "--context", "st"], ["staging"]),
        (["describe", ""], []),
    ],
)
def test_options_and_their_values_are_completed(folder: Path, words: list[str], found: list[str]) -> None:
    lines = completed(folder, *words)

    assert sorted(line.partition("\t")[0] for line in lines[:-1]) == found
    assert lines[-1] == ":4"


def test_the_path_of_the_kubeconfig_is_left_to_the_shell(folder: Path) -> None:
    assert completed(folder, "get", "--kubeconfig", "") == [":0"]

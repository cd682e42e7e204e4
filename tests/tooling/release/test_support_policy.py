"""The support policy names the versions that the code requires and that the tests run on."""

import re
import tomllib

import yaml

from cluster import binaries
from cluster.folders import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CHART = yaml.safe_load((REPOSITORY / "charts" / "edgetune" / "Chart.yaml").read_text(encoding="utf-8"))
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SECURITY = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
POLICY = (REPOSITORY / "docs" / "support.md").read_text(encoding="utf-8")


def row(name: str) -> tuple[str, str]:
    """What is supported, and what it is tested with."""
    found = re.search(rf"(?m)^\| {re.escape(name)} \| (.*) \| (.*) \|$", POLICY)
    assert found is not None, name
    return found[1], found[2]


def minor(version: str) -> str:
    return ".".join(version.removeprefix("v").split("-")[0].split(".")[:2])


def test_kubernetes_helm_and_kueue_are_those_of_the_chart_and_of_the_tests() -> None:
    supported, tested = row("Kubernetes")
    assert CHART["kubeVersion"] == f">={supported.partition(' ')[0]}.0-0"
    assert tested == minor(binaries.version("kube-apiserver"))
    assert row("Helm")[1] == minor(binaries.version("helm"))
    supported, tested = row("Kueue (optional)")
    assert f"v{tested}" == binaries.version("kueue").split("-")[0]
    assert supported == minor(tested)
    assert (
        f"Kubernetes {row('Kubernetes')[0].partition(' ')[0]} or newer (tested with {row('Kubernetes')[1]})" in README
    )
    assert f"Kueue {supported}" in README


def test_python_versions_are_those_of_the_project() -> None:
    first, last = row("Python")[0].split(" to ")

    assert PROJECT["requires-python"] == f">={first},<3.{int(last.partition('.')[2]) + 1}"
    assert f"Python {first} to {last}" in README


def test_every_page_promises_the_same_days() -> None:
    assert re.findall(r"for (\d+ days)", POLICY) == ["90 days"]
    assert re.findall(r"for (\d+ days)", SECURITY) == ["90 days"]
    assert re.findall(r"for (\d+ days)", README.partition("## Support\n")[2].partition("\n## ")[0]) == ["90 days"]

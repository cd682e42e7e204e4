"""The example that checks a pull request: its script with the real kubectl, and the two files that call it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.binaries import find
from support.apiserver import REPOSITORY

CI = REPOSITORY / "examples" / "gitops" / "ci"
RECIPE = """apiVersion: edgetune.dev/v1alpha1
kind: LoraFineTune
metadata: {name: sensor-faults}
spec:
  baseModel: {uri: s3://models/base}
  dataset: {train: {uri: s3://data/train.jsonl}}
  evaluation: {gates: {minScore: 0.5}}
"""


def write_repository(folder: Path, recipe: str) -> None:
    """A base and two overlays, each in a namespace of its own."""
    (folder / "base").mkdir(parents=True)
    (folder / "base" / "recipe.yaml").write_text(recipe)
    (folder / "base" / "kustomization.yaml").write_text("resources: [recipe.yaml]\n")
    for overlay in ("dev", "prod"):
        (folder / "overlays" / overlay).mkdir(parents=True)
        kustomization = f"resources: [../../base]\nnamespace: team-{overlay}\n"
        (folder / "overlays" / overlay / "kustomization.yaml").write_text(kustomization)


def check(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kubectl = find("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl in the cache: run make programs")
    (folder / "bin").mkdir()
    (folder / "bin" / "kubectl").symlink_to(kubectl)
    path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    command = ["sh", str(CI / "check.sh"), *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=120, check=False
    )


def test_a_pull_request_is_validated_and_planned_for_each_overlay(tmp_path: Path) -> None:
    write_repository(tmp_path / "before", RECIPE)
    write_repository(tmp_path / "after", RECIPE.replace("minScore: 0.5", "minScore: 0.6"))

    done = check(tmp_path, "before", "after")

    assert done.returncode == 0, done.stderr
    assert "LoraFineTune team-dev/sensor-faults is valid" in done.stdout
    comment = (tmp_path / "plan.md").read_text()
    assert comment.startswith("### Edgetune plan: 2 objects: 2 with stages that run, 0 with a GPU")
    assert comment.count("| publish | **run** | changed: spec.evaluation.gates.minScore |") == 2


def test_an_invalid_recipe_stops_the_check_with_an_annotation(tmp_path: Path) -> None:
    write_repository(tmp_path / "before", RECIPE)
    write_repository(tmp_path / "after", RECIPE + "  lora: {rank: 0}\n")

    done = check(tmp_path, "before", "after", "github")

    assert done.returncode == 1
    assert done.stdout.startswith("::error file=after.yaml,line=")
    assert not (tmp_path / "plan.md").exists()


def test_an_overlay_that_cannot_be_rendered_stops_the_check(tmp_path: Path) -> None:
    write_repository(tmp_path / "before", RECIPE)
    write_repository(tmp_path / "after", RECIPE)
    (tmp_path / "after" / "overlays" / "prod" / "kustomization.yaml").write_text("resources: [../missing]\n")

    assert check(tmp_path, "before", "after").returncode != 0


def commands(value: Any) -> list[str]:
    """All texts in a workflow."""
    if isinstance(value, dict):
        return [each for item in value.values() for each in commands(item)]
    if isinstance(value, list):
        return [each for item in value for each in commands(item)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("name", ["github-actions.yaml", "gitlab-ci.yaml"])
def test_both_examples_call_the_script_and_post_its_comment(name: str) -> None:
    texts = "\n".join(commands(yaml.safe_load((CI / name).read_text())))

    assert "sh gitops/ci/check.sh ../before/gitops gitops" in texts
    assert "plan.md" in texts

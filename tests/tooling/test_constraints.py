"""constraints.txt has one version of each library that pyproject.toml requires; images and .venv install it.

If a test fails after a change of pyproject.toml, run `make generate`.
"""

import re
import tomllib
from collections.abc import Iterable
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cluster.folders import REPOSITORY
from support.constraints import constraint_lines, pins

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
DOCS = PYPROJECT["dependency-groups"]["docs"]
REQUIREMENTS = {"base": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
# llama-cpp is compiled into a separate environment.
INSTALLED = ("base", "operator", "jobs", "dev")


def installed_requirements(requirements: Iterable[str]) -> set[str]:
    """Canonical names of the installed libraries that the requirements need, directly or transitively."""
    waiting = [(Requirement(text), "") for text in requirements]
    seen: set[tuple[str, str]] = set()
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(text), wanted) for text in metadata.requires(name) or ()]
    return {name for name, _ in seen}


def commands(path: str) -> list[str]:
    """Shell commands of a Dockerfile or Makefile that choose or install libraries."""
    text = (REPOSITORY / path).read_text(encoding="utf-8").replace("\\\n", " ")
    parts = [part for line in text.splitlines() if not line.startswith("#") for part in re.split(r"&&|;", line)]
    return [part for part in parts if re.search(r"\bpip (compile|install|wheel)\b", part)]


def test_every_constraint_is_a_name_with_one_version_and_no_url() -> None:
    odd = [line for line in constraint_lines() if not re.fullmatch(r"[a-z0-9-]+==[0-9][a-z0-9.+!]*( ; [^/:@]+)?", line)]

    assert odd == []


def test_a_library_has_the_same_version_on_every_python() -> None:
    assert len(pins()) == len(constraint_lines())


@pytest.mark.parametrize("group", REQUIREMENTS)
def test_constraints_are_within_the_bounds_of_the_project(group: str) -> None:
    versions = pins()
    requirements = [Requirement(text) for text in REQUIREMENTS[group]]
    found = {each: versions.get(canonicalize_name(each.name), "missing") for each in requirements}

    outside = [
        f"{each}: {version}"
        for each, version in found.items()
        if version == "missing" or not each.specifier.contains(version, prereleases=True)
    ]

    assert outside == [], "run `make generate`"


@pytest.mark.parametrize("group", INSTALLED)
def test_direct_and_transitive_requirements_are_installed_in_the_constrained_versions(group: str) -> None:
    versions = pins()
    installed = {name: metadata.version(name) for name in installed_requirements(REQUIREMENTS[group])}

    # A local version such as 2.13.0+cpu is a build of the same version.
    different = {
        name: f"{version} is installed, constraints.txt has {versions.get(name, 'none')}"
        for name, version in installed.items()
        if version.partition("+")[0] != versions.get(name)
    }

    assert different == {}, "run `make generate` after a change of pyproject.toml, and `make .venv/dev`"


def test_the_requirements_of_the_site_are_one_version_of_each_within_the_bounds() -> None:
    lines = (REPOSITORY / "docs" / "site" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    versions = {each.name: str(each.specifier).removeprefix("==") for each in pinned}

    assert {str(each.specifier)[:2] for each in pinned} == {"=="}
    for text in DOCS:
        assert Requirement(text).specifier.contains(versions[Requirement(text).name]), "run `make generate`"


@pytest.mark.parametrize("path", ["operator/Dockerfile", "jobs/Dockerfile", "Makefile"])
def test_no_library_is_installed_without_the_constraints(path: str) -> None:
    found = commands(path)
    # Constraints, requirements that were compiled with them, or a single package without dependencies.
    bound = (
        "constraints.txt",
        "-r /opt/edgetune/requirements.txt",
        "-r docs/site/requirements.txt",
        "--no-deps",
        "$(UV_INSTALL)",
    )

    assert found, path
    assert [each for each in found if not any(word in each for word in bound)] == []

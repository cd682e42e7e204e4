"""The images have the same names everywhere: in chart, Dockerfiles, code, documentation and releases."""

import re
import subprocess
from collections.abc import Iterator

from cluster.folders import REPOSITORY
from edgetune_operator.api.profiles.profile import Image
from release import versions
from release.chart import CHART, repositories

NAMES = repositories(REPOSITORY / CHART)
# Behind a registry or a placeholder for one; not in a URL.
_IMAGE = re.compile(r"(?<![\w./-])(?P<registry>[A-Za-z0-9.-]+)/(?P<name>edgetune[-/](?:operator|jobs))\b")
# In the values for clusters of cloud providers.
_CLOUDS = ("123456789012.dkr.ecr.eu-central-1.amazonaws.com",)
_PLACES = ("README.md", "CONTRIBUTING.md", "Makefile", "docs", "examples", "operator", "jobs", "charts", "tools")


def mentioned() -> Iterator[tuple[str, str, str]]:
    """Path, registry and name of each mention of an image in tracked files."""
    listed = subprocess.run(["git", "ls-files", *_PLACES], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    for path in listed.stdout.splitlines():
        if path.endswith((".md", ".py", ".yaml", ".txt", "Dockerfile", "Makefile")) and (REPOSITORY / path).is_file():
            for found in _IMAGE.finditer((REPOSITORY / path).read_text(encoding="utf-8")):
                yield path, found["registry"], found["name"]


def test_every_mention_of_an_image_has_the_name_of_the_chart() -> None:
    allowed = {name.partition("/")[2] for name in NAMES.values()}
    registries = {name.partition("/")[0] for name in NAMES.values()}

    found = set(mentioned())

    assert [each for each in found if each[2] not in allowed] == []
    assert {registry for _, registry, _ in found} <= registries | {"REGISTRY", "registry.example.com", *_CLOUDS}
    assert {path for path, _, _ in found} >= {
        "charts/edgetune/values.yaml",
        "docs/operations.md",
        "docs/releases.md",
        "jobs/Dockerfile",
        "operator/Dockerfile",
        "operator/edgetune_operator/api/profiles/profile.py",
    }


def test_the_operators_default_image_is_that_of_the_chart_in_the_version_of_the_project() -> None:
    version = versions.PLACES["pyproject.toml"].read(REPOSITORY)

    assert Image().reference == f"{NAMES['jobs']}:{version}"
    assert {place.read(REPOSITORY) for place in versions.PLACES.values()} == {version}

"""`make e2e` installs what a release is: the packaged chart, which names by digest the images that the node has."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster import images, playground
from cluster.folders import CACHE_VARIABLE, RunFolder
from cluster.images import ContainerImages, Layout
from cluster.kind import KindCluster
from cluster.lifecycle import Cluster
from release import oci
from release.images import archive_image
from release.provenance import seal
from support.chart import KUBERNETES_VERSION, find_helm, helm, one, parse
from support.release import FILES, SOURCE, make_image

DIGESTS = {images.OPERATOR: f"sha256:{'1' * 64}", images.JOBS: f"sha256:{'2' * 64}"}
CTR = """#!/bin/sh
shift 4
echo "$*" >> {calls}
case "$*" in
  "images list") cat {listed} ;;
  "images import -") cat > /dev/null ;;
esac
"""


class NodeCluster(Cluster):
    """A cluster whose images have known digests."""

    def image_digest(self, name: str) -> str:
        return DIGESTS[name]


class DockerCluster(KindCluster):
    """The same with kind."""

    def image_digest(self, name: str) -> str:
        return DIGESTS[name]


def installed(cluster: Cluster | KindCluster, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Container of the operator, and image of the stages, as the cluster gets them."""
    if find_helm() is None:
        pytest.skip("no helm in the cache: run `make programs`")
    values = playground.chart_values(cluster, {"default": playground.profile("http://store")})
    package = str(playground.chart_package(cluster))
    manifests = list(parse(helm("template", "edgetune", package, "--kube-version", KUBERNETES_VERSION, values=values)))
    (container,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    profiles = json.loads(one(manifests, "ConfigMap", "edgetune-profiles")["data"]["profiles.yaml"])["profiles"]
    assert folder.is_dir()
    return container, profiles["default"]["image"]


def test_a_node_gets_the_chart_with_its_images_by_digest(tmp_path: Path) -> None:
    container, of_stages = installed(NodeCluster(RunFolder(tmp_path)), tmp_path)

    assert container["image"] == f"ghcr.io/edgetune/operator@{DIGESTS[images.OPERATOR]}"
    assert container["imagePullPolicy"] == "Never"
    assert of_stages == {"reference": f"ghcr.io/edgetune/jobs@{DIGESTS[images.JOBS]}", "pullPolicy": "Never"}


def test_kind_gets_the_same_chart_with_its_images_by_tag(tmp_path: Path) -> None:
    container, of_stages = installed(DockerCluster(RunFolder(tmp_path)), tmp_path)

    assert container["image"] == images.OPERATOR
    assert of_stages == {"reference": images.JOBS, "pullPolicy": "Never"}


def test_a_given_release_is_installed_by_its_own_chart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archives: dict[str, str]
) -> None:
    del archives  # only required to be there
    folder = tmp_path / "dist"
    chart = folder / "edgetune-7.8.9.tgz"
    chart.write_bytes(b"chart")
    seal(folder, SOURCE, "base", None)
    monkeypatch.setenv(images.RELEASE_VARIABLE, str(folder))
    assert playground.chart_package(NodeCluster(RunFolder(tmp_path))) == chart

    chart.write_bytes(b"another chart")
    with pytest.raises(RuntimeError, match=r"^edgetune-7\.8\.9\.tgz was changed: its SHA-256 is"):
        images.build_all()
    chart.unlink()
    with pytest.raises(RuntimeError, match=r"has 0 files edgetune-\*\.tgz instead of one: run `make release`"):
        playground.chart_package(NodeCluster(RunFolder(tmp_path)))
    with pytest.raises(RuntimeError, match="RELEASE is tested on a real node only"):
        DockerCluster(RunFolder(tmp_path)).build()


@dataclass(frozen=True)
class Node:
    """Images of a node whose `ctr` only records its calls."""

    images: ContainerImages
    calls: Path
    listed: Path

    def load(self) -> list[str]:
        """Load the images of a release; return the calls of ctr."""
        self.calls.write_text("")
        self.images.load((images.OPERATOR, images.JOBS))
        return self.calls.read_text().splitlines()


@pytest.fixture
def archives(tmp_path: Path) -> dict[str, str]:
    """Digests of the images of a release in tmp_path/dist, by name."""
    (tmp_path / "dist").mkdir()
    return {
        name: archive_image(
            name,
            make_image(tmp_path / name, FILES, {"app": name.encode()}),
            SOURCE,
            f"ghcr.io/edgetune/{name}:7.8.9",
            tmp_path / "dist" / f"edgetune-{name}-7.8.9.oci.tar",
        )
        for name in images.TAGS
    }


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archives: dict[str, str]) -> Layout:
    """The layout in the cache with an older image of the operator, and then those of the release."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    found = Layout()
    older = make_image(found.folder, {"app": b"older"})
    named = {**older.descriptor, "annotations": {"org.opencontainers.image.ref.name": images.OPERATOR}}
    (found.folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    for name in archives:
        found.add(tmp_path / "dist" / f"edgetune-{name}-7.8.9.oci.tar", images.TAGS[name])
    found.prune()
    return found


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Layout) -> Node:
    del layout  # only required to be there
    run = RunFolder(tmp_path / "run")
    programs = tmp_path / "programs"
    programs.mkdir()
    found = Node(ContainerImages(run), tmp_path / "calls", tmp_path / "listed")
    found.listed.write_text("REF TYPE DIGEST\n")
    (programs / "ctr").write_text(CTR.format(calls=found.calls, listed=found.listed))
    (programs / "ctr").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    # The recorder stores nothing that could be linked.
    monkeypatch.setattr(ContainerImages, "_share_blobs", lambda *_: None)
    return found


def test_the_images_of_a_release_replace_those_of_the_cache(layout: Layout, archives: dict[str, str]) -> None:
    found = {name: oci.Image(layout.folder, layout.descriptor(tag)) for name, tag in images.TAGS.items()}

    assert {name: image.digest for name, image in found.items()} == archives
    assert oci.read_files(found["operator"], lambda path: path == "app") == {"app": b"operator"}
    kept = {path.name for path in (layout.folder / "blobs" / "sha256").iterdir()}
    assert kept == {
        digest.partition(":")[2] for image in found.values() for digest in layout.blobs(image.descriptor)
    }, "the blobs of the older image are gone"


def test_a_node_has_the_images_by_the_names_of_the_packaged_chart(node: Node, archives: dict[str, str]) -> None:
    calls = node.load()

    for name, tag in images.TAGS.items():
        assert f"images tag {tag} ghcr.io/edgetune/{name}@{archives[name]}" in calls
    assert calls.count("images import -") == 2
    assert [call for call in calls if call.startswith("images remove ghcr")] == []


def test_a_node_keeps_no_name_of_an_earlier_image(node: Node, archives: dict[str, str]) -> None:
    older, same = f"ghcr.io/edgetune/operator@sha256:{'0' * 64}", f"ghcr.io/edgetune/jobs@{archives['jobs']}"
    rows = ((older, f"sha256:{'0' * 64}"), (same, archives["jobs"]), (images.JOBS, archives["jobs"]))
    node.listed.write_text("REF TYPE DIGEST\n" + "".join(f"{name} manifest {digest}\n" for name, digest in rows))

    calls = node.load()

    assert f"images tag {images.OPERATOR} ghcr.io/edgetune/operator@{archives['operator']}" in calls
    assert f"images remove {older}" in calls
    assert [call for call in calls if same in call] == []
    assert calls.index(f"images remove {older}") < calls.index(f"images remove --sync {images.PAUSE}-again")

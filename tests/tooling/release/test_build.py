"""A whole release of this repository, with small images in place of the two that take minutes to build."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.folders import REPOSITORY
from edgetune_jobs.publishing.signing.bundle import open_bundle
from edgetune_jobs.publishing.signing.keys import read_private_key
from release import checks, oci
from release.build import Images, Programs, build_release
from release.chart import CHART
from release.provenance import problems
from support.chart import KUBERNETES_VERSION, PROFILE, find_helm, helm, one, parse
from support.constraints import pins
from support.release import FILES, SITE_PACKAGES, VERSION, dist_info, git, make_image, make_repository, released_files
from support.signing import KeyFiles, make_key

IMAGES = ("operator", "jobs")
UV = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")


@dataclass(frozen=True)
class Release:
    """A release, and what it was made of."""

    folder: Path
    commit: str
    key: KeyFiles

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_bytes())


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    program = find_helm()
    if program is None or UV is None:
        pytest.skip("no helm in the cache, or no uv: run `make programs`")
    folder = tmp_path_factory.mktemp("release")
    repository = make_repository(folder / "repository", released_files())
    (repository / "operator" / "edgetune_cli" / "__pycache__").mkdir()
    (repository / "operator" / "edgetune_cli" / "__pycache__" / "ignored.py").write_text("")
    key = make_key(folder)
    source = checks.check(repository, VERSION, str(key.private))
    images = {name: make_image(folder / name, FILES, {"app": name.encode()}) for name in IMAGES}
    target = repository / "dist"
    target.mkdir()
    (target / "old").write_text("of an earlier release")
    build_release(source, Images(images, "base"), Programs(program, Path(UV)), read_private_key(key.private), target)
    yield Release(target, git(repository, "rev-parse", "HEAD").strip(), key)
    assert git(repository, "status", "--porcelain") == "", "a release leaves nothing but dist/"


def test_a_release_has_these_files_and_no_others(release: Release) -> None:
    assert sorted(path.name for path in release.folder.iterdir()) == sorted(
        [
            "checksums.txt",
            "checksums.txt.sig",
            "constraints.txt",
            "edgetune-7.8.9-py3-none-any.whl",
            "edgetune-7.8.9.cdx.json",
            "edgetune-7.8.9.tar.gz",
            "edgetune-7.8.9.tgz",
            "edgetune-jobs-7.8.9.cdx.json",
            "edgetune-jobs-7.8.9.oci.tar",
            "edgetune-operator-7.8.9.cdx.json",
            "edgetune-operator-7.8.9.oci.tar",
            "lorafinetune_v1alpha1.json",
            "lorafinetunes.edgetune.dev.yaml",
            "provenance.sigstore.json",
        ]
    )


def test_the_chart_of_a_release_names_both_images_of_it_by_digest(release: Release, tmp_path: Path) -> None:
    digests = {
        name: oci.unpack(release.folder / f"edgetune-{name}-7.8.9.oci.tar", tmp_path / name).digest for name in IMAGES
    }
    package = str(release.folder / "edgetune-7.8.9.tgz")

    values = {"profiles": {"default": PROFILE}}
    manifests = list(parse(helm("template", "edgetune", package, "--kube-version", KUBERNETES_VERSION, values=values)))
    described = yaml.safe_load(helm("show", "chart", package))

    deployment = one(manifests, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == f"ghcr.io/edgetune/operator@{digests['operator']}"
    assert deployment["metadata"]["labels"]["app.kubernetes.io/version"] == VERSION
    profiles = json.loads(one(manifests, "ConfigMap", "edgetune-profiles")["data"]["profiles.yaml"])["profiles"]
    assert profiles["default"]["image"]["reference"] == f"ghcr.io/edgetune/jobs@{digests['jobs']}"
    assert (described["version"], described["appVersion"]) == (VERSION, VERSION)
    assert yaml.safe_load(described["annotations"]["artifacthub.io/images"]) == [
        {"name": name, "image": f"ghcr.io/edgetune/{name}@{digests[name]}"} for name in IMAGES
    ]
    # Comments of the values stay: they are the documentation of `helm show values`.
    shown = re.sub(r'digest: "sha256:[0-9a-f]{64}"', 'digest: ""', helm("show", "values", package))
    assert shown.strip() == (REPOSITORY / CHART / "values.yaml").read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("image", IMAGES)
def test_the_bill_of_an_image_has_its_python_and_debian_packages(release: Release, image: str) -> None:
    bill = release.json(f"edgetune-{image}-7.8.9.cdx.json")

    found = {each["purl"]: each.get("licenses") for each in bill["components"]}
    assert found == {
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?arch=amd64&distro=debian-12&upstream=glibc": None,
        "pkg:pypi/edgetune@7.8.9": None,
        "pkg:pypi/kopf@1.45.2": [{"license": {"id": "MIT"}}],
        "pkg:pypi/torch@2.13.0": [{"license": {"id": "BSD-3-Clause"}}],
    }
    subject = bill["metadata"]["component"]
    assert (subject["name"], subject["version"]) == (f"ghcr.io/edgetune/{image}", VERSION)
    assert bill["metadata"]["timestamp"] == "2026-11-05T12:30:00+00:00"


def test_images_of_another_version_are_refused_and_the_old_release_stays(release: Release, tmp_path: Path) -> None:
    older = {**FILES, f"{SITE_PACKAGES}/edgetune-{VERSION}.dist-info/METADATA": dist_info("edgetune", "7.8.8")}
    images = {name: make_image(tmp_path / name, older) for name in IMAGES}
    repository, key = release.folder.parent, release.key.private
    before = sorted(path.name for path in release.folder.iterdir())
    source = checks.check(repository, VERSION, str(key))
    programs = Programs(Path(str(find_helm())), Path(str(UV)))

    with pytest.raises(RuntimeError, match=r"the image operator has edgetune 7\.8\.8 instead of 7\.8\.9: build it"):
        build_release(source, Images(images, "base"), programs, read_private_key(key), release.folder)

    assert sorted(path.name for path in release.folder.iterdir()) == before


def test_the_bill_of_the_wheel_has_what_it_brings_and_no_tools_of_development(release: Release) -> None:
    found = {each["name"]: each["version"] for each in release.json("edgetune-7.8.9.cdx.json")["components"]}

    versions = pins()
    assert {name: found[name] for name in ("pydantic", "kopf", "torch", "boto3", "llama-cpp-python", "botocore")} == {
        name: versions[name] for name in ("pydantic", "kopf", "torch", "boto3", "llama-cpp-python", "botocore")
    }
    assert found.keys() & {"pytest", "mypy", "playwright", "cyclonedx-python-lib"} == set()


def test_the_packages_have_the_files_of_the_commit_only(release: Release) -> None:
    with tarfile.open(release.folder / "edgetune-7.8.9.tar.gz") as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}

    assert "jobs/edgetune_jobs/__main__.py" in names
    assert [name for name in names if "ignored.py" in name or name.startswith("dist/")] == []


def test_the_wheel_is_installed_into_an_empty_environment_without_torch(release: Release, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    run(str(UV), "venv", "--quiet", "--python", sys.executable, str(tmp_path / "venv"))
    wheel = release.folder / "edgetune-7.8.9-py3-none-any.whl"
    constraints = release.folder / "constraints.txt"
    install = (str(UV), "pip", "install", "--quiet", "--python", str(python), "--constraint", str(constraints))
    run(*install, str(wheel))

    assert run(str(python.with_name("edgetune")), "--version") == "edgetune 7.8.9\n"
    assert run(str(UV), "pip", "freeze", "--quiet", "--python", str(python)).count("torch") == 0


def test_the_crd_of_a_release_is_that_of_its_chart(release: Release) -> None:
    crd = yaml.safe_load((release.folder / "lorafinetunes.edgetune.dev.yaml").read_bytes())

    with tarfile.open(release.folder / "edgetune-7.8.9.tgz") as package:
        member = package.extractfile("edgetune/files/crd.yaml")
        assert member is not None
        assert yaml.safe_load(member) == crd


def test_sha256sum_and_openssl_check_a_release_as_the_page_says(release: Release, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "releases.md").read_text(encoding="utf-8")
    section = page.partition("## Check a download\n")[2]
    commands = section.partition("```\n")[2].partition("```")[0]
    folder = copy_of(release, tmp_path)
    shutil.copy(release.key.public, folder / "edgetune.pub")

    def check() -> tuple[int, str]:
        done = subprocess.run(["sh", "-ec", commands], cwd=folder, check=False, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    code, output = check()
    assert code == 0, output
    assert "Verified OK" in output
    assert "edgetune-jobs-7.8.9.oci.tar: OK" in output
    flip_a_byte(folder / "edgetune-7.8.9.tgz")
    code, output = check()
    assert code != 0
    assert "edgetune-7.8.9.tgz: FAILED" in output


def test_a_release_is_verified_and_every_change_is_found(release: Release, tmp_path: Path) -> None:
    keys = release.key.keys
    assert problems(release.folder, keys) == ()

    for name in sorted(path.name for path in release.folder.iterdir()):
        folder = copy_of(release, tmp_path / name)
        flip_a_byte(folder / name)
        assert problems(folder, keys) != (), name
        (folder / name).unlink()
        assert problems(folder, keys) != (), name


def test_a_file_and_its_checksum_that_were_replaced_together_are_found_by_the_signature(
    release: Release, tmp_path: Path
) -> None:
    folder = copy_of(release, tmp_path)
    flip_a_byte(folder / "edgetune-7.8.9.tgz")
    checksums = folder / "checksums.txt"
    done = subprocess.run(["sha256sum", "edgetune-7.8.9.tgz"], cwd=folder, check=True, capture_output=True, text=True)
    checksums.write_text(re.sub(r".*  edgetune-7.8.9.tgz\n", lambda _: done.stdout, checksums.read_text()))

    distrusted = "checksums.txt.sig is no signature of checksums.txt by a trusted key: trust nothing of this release"
    assert problems(folder, ()) == ()
    assert problems(folder, release.key.keys) == (distrusted,)
    assert problems(release.folder, make_key(tmp_path / "other").keys) == (distrusted,)


def test_the_command_verifies_a_download_and_says_what_is_wrong_with_it(release: Release, tmp_path: Path) -> None:
    folder = copy_of(release, tmp_path / "download")
    key = ("--key", str(release.key.public))

    assert command("verify", str(folder), *key) == (
        0,
        f"{folder}: every file is as it was released, and signed by {release.key.keys[0]}\n",
    )
    (folder / "constraints.txt").unlink()
    (folder / "other").write_text("")
    assert command("verify", str(folder), *key) == (
        1,
        "release: constraints.txt is missing: download it again\n"
        "release: other is in no line of checksums.txt: remove it\n"
        "release: provenance.sigstore.json is the provenance of other files\n",
    )


def test_the_command_refuses_a_release_of_a_version_that_is_not_tagged() -> None:
    code, output = command("build", "99.0.0", "--signing-key", "none")

    assert code == 1
    assert "release: There is no tag v99.0.0: create it with" in output


def test_the_provenance_names_commit_tag_and_every_file(release: Release) -> None:
    data = (release.folder / "provenance.sigstore.json").read_bytes()
    statement = open_bundle(data, "provenance", release.key.keys)

    definition = statement.predicate["buildDefinition"]
    assert statement.predicate_type == "https://slsa.dev/provenance/v1"
    assert definition["externalParameters"] == {"version": VERSION, "tag": "v7.8.9"}
    assert definition["resolvedDependencies"] == [
        {"name": "source", "digest": {"gitCommit": release.commit}},
        {"name": "baseImage", "uri": "base"},
    ]
    own = {"checksums.txt", "checksums.txt.sig", "provenance.sigstore.json"}
    assert {each.name for each in statement.subject} == {path.name for path in release.folder.iterdir()} - own


def command(*arguments: str) -> tuple[int, str]:
    """Exit code and output of `python -m release`."""
    path = os.pathsep.join(
        (*(str(REPOSITORY / folder) for folder in ("tests", "tools")), os.environ.get("PYTHONPATH", ""))
    )
    line = [sys.executable, "-m", "release", *arguments]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(line, check=False, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


def run(*line: str) -> str:
    done = subprocess.run(line, check=False, capture_output=True, text=True, cwd=Path("/"), env=_environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def _environment() -> Mapping[str, str]:
    """Without the path of this clone's packages, which the empty environment would find."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}


def copy_of(release: Release, folder: Path) -> Path:
    return shutil.copytree(release.folder, folder, dirs_exist_ok=True)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

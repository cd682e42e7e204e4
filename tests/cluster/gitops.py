"""The CRDs of Argo CD and Flux, from the Go modules of their controllers."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster import binaries
from cluster.folders import cache_folder, locked

# By kind: Go module, version, and file. The last versions for Go 1.26, with which the programs are built.
_SOURCES: Mapping[str, tuple[str, str, str]] = {
    "Application": ("github.com/argoproj/argo-cd/v3", "v3.5.7", "manifests/crds/application-crd.yaml"),
    "GitRepository": (
        "github.com/fluxcd/source-controller",
        "v1.9.6",
        "config/crd/bases/source.toolkit.fluxcd.io_gitrepositories.yaml",
    ),
    "Kustomization": (
        "github.com/fluxcd/kustomize-controller",
        "v1.9.6",
        "config/crd/bases/kustomize.toolkit.fluxcd.io_kustomizations.yaml",
    ),
}


def crds() -> list[dict[str, Any]]:
    """CRDs of the kinds that the example uses; their modules are downloaded once."""
    return [yaml.safe_load(_file(*source).read_text(encoding="utf-8")) for source in _SOURCES.values()]


def _file(module: str, version: str, path: str) -> Path:
    """A copy in the cache: one of the modules has 50 MB."""
    copied = cache_folder() / "crds" / f"{version}-{Path(path).name}"
    copied.parent.mkdir(parents=True, exist_ok=True)
    with locked(copied.parent, copied.name):
        if not copied.is_file():
            draft = copied.with_suffix(".draft")
            shutil.copyfile(binaries.module(module, version) / path, draft)
            draft.rename(copied)
    return copied

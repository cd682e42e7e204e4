"""Objects before a change: of local runs, of an older file, or of a cluster."""

import json
import shutil
import subprocess
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgetune_cli.documents.many import FileObject
from edgetune_cli.local.objects import ObjectFolder
from edgetune_contract.digest import prepare_digest, sha256_of, stage_digests
from edgetune_contract.pipeline import stages_of
from edgetune_contract.request import Resolved
from edgetune_contract.spec import BaseModelSpec, DataSource
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.api.spec import LoraFineTuneSpec
from edgetune_operator.api.spec_check import InvalidSpec, parse_spec
from edgetune_operator.api.status.stage_status import StageState
from edgetune_operator.decisions.observe import observe

_SHA256_DIGITS = 64


class NotReadable(Exception):
    """The objects before the change cannot be read; the message says why."""


class Before(Protocol):
    """Where an object is as it was before the change."""

    def read(self, key: Key) -> Mapping[str, Any] | None:
        """The object with its status; None if it was not there.

        Raises:
            NotReadable: it cannot be read.
        """
        ...

    def applied(self, key: Key, changed: Mapping[str, Any], spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """The object with its status after a changed file is applied; `spec` is its spec with all defaults."""
        ...


@dataclass(frozen=True)
class LocalRuns:
    """Objects of local runs. Like a run, the plan has a new retry token: inputs are checked, failures retried."""

    folder: Path

    def read(self, key: Key) -> Mapping[str, Any] | None:
        return ObjectFolder(self.folder / "objects").read(key)

    def applied(self, key: Key, changed: Mapping[str, Any], spec: Mapping[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002 - the protocol's
        return ObjectFolder(self.folder / "objects").applied(key, spec, retry=str(uuid.uuid4()))


class AppliedObjects:
    """Objects of a cluster, to which a file is applied as kubectl does."""

    def __init__(self, documents: Mapping[Key, Mapping[str, Any]], knows_store: bool) -> None:
        """`knows_store`: the profiles say where the store is; otherwise it is assumed to be that of the last run."""
        self.documents = documents
        self._knows_store = knows_store

    def read(self, key: Key) -> Mapping[str, Any] | None:
        return self.documents.get(key)

    def applied(self, key: Key, changed: Mapping[str, Any], spec: Mapping[str, Any]) -> Mapping[str, Any]:
        was = self.read(key) or {}
        metadata, annotations = dict(was.get("metadata") or {}), changed["metadata"].get("annotations") or {}
        status = dict(was.get("status") or {})
        if not self._knows_store:
            status.pop("store", None)
        return {
            **was,
            "metadata": {
                **metadata,
                "namespace": key.namespace,
                "name": key.name,
                "generation": metadata.get("generation", 0) + (_spec_values(was) != spec),
                "annotations": {**(metadata.get("annotations") or {}), **annotations},
            },
            "spec": spec,
            "status": status,
        }


def finished_objects(objects: tuple[FileObject, ...], knows_store: bool) -> AppliedObjects:
    """Objects of an older file. One without a status counts as finished and published, with unchanged inputs."""
    documents = {}
    for each in objects:
        metadata, status = dict(each.document["metadata"]), each.document.get("status")
        if not isinstance(metadata.get("generation"), int):
            metadata["generation"] = 1
        document = {**each.document, "metadata": metadata}
        if not status or not isinstance(status, dict):
            document.pop("status", None)
            handled = observe(document, jobs=(), pods=(), progress=None).retries
            document["status"] = {
                **_finished_status(parse_spec(document["spec"]), each.key.name),
                "handledRetries": handled,
            }
        documents[each.key] = document
    return AppliedObjects(documents, knows_store)


def live_objects(keys: tuple[Key, ...], options: tuple[str, ...], knows_store: bool) -> AppliedObjects:
    """Objects of a cluster as they are now, read with kubectl.

    Args:
        keys: their namespaces and names.
        options: of kubectl, such as --context=prod.
        knows_store: see `AppliedObjects`.

    Raises:
        NotReadable: kubectl is missing, or fails with this message.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise NotReadable("kubectl is not on the PATH: install it and configure its access to the cluster")
    documents: dict[Key, Mapping[str, Any]] = {}
    for key in keys:
        command = [kubectl, "get", f"{names.PLURAL}.{names.GROUP}", key.name, f"--namespace={key.namespace}"]
        command += [*options, "--ignore-not-found", "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise NotReadable(f"{key.namespace}/{key.name}: {done.stderr.strip()}")
        if done.stdout.strip():
            documents[key] = json.loads(done.stdout)
    return AppliedObjects(documents, knows_store)


def spec_of(document: Mapping[str, Any] | None) -> LoraFineTuneSpec | None:
    """The spec of an object; None without an object, or if another version wrote it."""
    try:
        return None if document is None else parse_spec(document.get("spec"))
    except InvalidSpec:
        return None


def _spec_values(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    spec = spec_of(document or None)
    return None if spec is None else spec.model_dump(mode="json", exclude_none=True)


def _finished_status(spec: LoraFineTuneSpec, name: str) -> dict[str, Any]:
    """The status after the run of a spec, as far as plan reads it. Unknown content gets a digest of its name."""
    parameters = spec.parameters
    evaluation = parameters.dataset.eval
    resolved = Resolved(
        base=_content(parameters.base_model),
        train=_content(parameters.dataset.train),
        eval=None if evaluation is None else _content(evaluation),
    )
    digests = {Stage.PREPARE: prepare_digest(parameters), **stage_digests(parameters, resolved, name)}
    present = stages_of(parameters)
    rows = [
        {"name": stage, "state": StageState.SUCCEEDED, "digest": digests[stage]}
        if stage in present
        else {"name": stage, "state": StageState.SKIPPED}
        for stage in Stage
    ]
    publication = {"published": True, "version": digests[Stage.PUBLISH], "pinned": bool(spec.publish.pin)}
    return {
        "observedGeneration": 1,
        "resolved": resolved.model_dump(mode="json", exclude_none=True),
        "stages": rows,
        "publication": publication,
    }


def _content(source: BaseModelSpec | DataSource) -> str:
    if len(source.revision) == _SHA256_DIGITS:
        return source.revision
    return sha256_of(["unknown content", source.uri, source.revision])

"""LoraFineTunes of local runs: the API server's part, done with files."""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from edgetune_cli.local.processes import now
from edgetune_operator.api import names
from edgetune_operator.api.names import Key
from edgetune_operator.api.yaml_files import read_yaml, yaml_text

DEFAULT_WORK_DIR = Path(".edgetune")
_LONGEST_FILE_NAME = 200


class ObjectFolder:
    """LoraFineTunes of local runs, one YAML file each, with the same status as in a cluster."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: Key) -> Path:
        """File of one object."""
        # An object's name may be as long as the longest file name, which must also have a suffix.
        name = key.name if len(key.name) <= _LONGEST_FILE_NAME else names.label_value(key.name)
        return self._root / key.namespace / f"{name}.yaml"

    def lock_path(self, key: Key) -> Path:
        """File that a run of an object keeps locked."""
        return self.path(key).with_suffix(".lock")

    def all(self) -> list[dict[str, Any]]:
        """All objects that can be read, by namespace and name."""
        found = [document for path in sorted(self._root.glob("*/*.yaml")) if (document := _read(path)) is not None]
        return sorted(found, key=lambda each: (each["metadata"]["namespace"], each["metadata"]["name"]))

    def read(self, key: Key) -> dict[str, Any] | None:
        """The object; None before its first run."""
        return _read(self.path(key))

    def write(self, key: Key, document: Mapping[str, Any]) -> None:
        """Replace the object atomically."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")  # the holder of the object's lock is the only writer
        draft.write_text(yaml_text(dict(document)), encoding="utf-8")
        draft.replace(path)

    def apply(self, key: Key, spec: Mapping[str, Any], retry: str, source_revision: str = "") -> dict[str, Any]:
        """Apply the object as the API server would: a changed spec increments the generation.

        Args:
            key: namespace and name.
            spec: the whole spec, including defaults.
            retry: retry token; a new one makes the run check the inputs and retry failed stages.
            source_revision: the Git commit that the object comes from; empty if it is not known.
        """
        document = self.applied(key, spec, retry)
        if source_revision:
            document["metadata"]["annotations"][names.SOURCE_REVISION_ANNOTATION] = source_revision
        self.write(key, document)
        return document

    def applied(self, key: Key, spec: Mapping[str, Any], retry: str) -> dict[str, Any]:
        """The object that `apply` would write; nothing is written."""
        document = self.read(key)
        # Unlike in a cluster, applying the object again cancels an interrupted deletion.
        if document is None or document["metadata"].get("deletionTimestamp"):
            document = _new_object(key)
        if document.get("spec") != spec:
            document["metadata"]["generation"] += 1
            document["spec"] = dict(spec)
        document["metadata"]["annotations"] = {names.RETRY_REQUESTED_ANNOTATION: retry}
        return document

    def delete(self, key: Key, finalizers: Sequence[str]) -> None:
        """Delete the object as the API server would: at once, or when its finalizers are removed."""
        document = self.read(key)
        if document is not None:
            document["metadata"].setdefault("deletionTimestamp", now())
            self.write(key, document)
            self.write_finalizers(key, finalizers)

    def write_finalizers(self, key: Key, finalizers: Sequence[str]) -> dict[str, Any]:
        """The object with its finalizers replaced. A deleted object without finalizers is removed."""
        document = self.read(key)
        if document is None:
            raise FileNotFoundError(f"{self.path(key)} was removed during the run")
        document["metadata"]["finalizers"] = list(finalizers)
        if document["metadata"].get("deletionTimestamp") and not finalizers:
            self.path(key).unlink()
        else:
            self.write(key, document)
        return document


def not_run(folder: Path, name: str = "", nearby: Path | None = None) -> str:
    """Why a work folder does not have what a command needs, and what to do.

    Args:
        folder: absolute path of the work folder.
        name: of the object; empty if no object was run there.
        nearby: another work folder, where the object was run.
    """
    what, which = (f"{name} was not", "it") if name else ("nothing was", "an object")
    place = "its work folder with --workdir" if nearby is None else f"--workdir {nearby}, where it was run"
    return f"{what} run in {folder}: run {which} first, or give {place}"


def nearby_run(filename: Path, key: Key) -> Path | None:
    """The default work folder of the file's folder, or of one above it, in which an object was run; None if none is."""
    folders = (each / DEFAULT_WORK_DIR for each in filename.resolve().parents)
    return next((each for each in folders if ObjectFolder(each / "objects").path(key).is_file()), None)


def _new_object(key: Key) -> dict[str, Any]:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {
            "name": key.name,
            "namespace": key.namespace,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": now(),
            "generation": 0,
        },
    }


def _read(path: Path) -> dict[str, Any] | None:
    try:
        documents = read_yaml(path)
    except FileNotFoundError:
        return None
    except (yaml.YAMLError, ValueError, RecursionError):
        # The file can be written again: every stage finds its manifest in the store.
        return None
    document = documents[0] if documents else None
    return document if _is_object(document) else None


def _is_object(document: Any) -> bool:
    """Whether it is an object as `write` has written it, and not what somebody else has put there."""
    metadata = document.get("metadata") if isinstance(document, dict) else None
    is_named = isinstance(metadata, dict) and all(isinstance(metadata.get(each), str) for each in ("name", "namespace"))
    return is_named and all(isinstance(document.get(each, {}), dict) for each in ("spec", "status"))

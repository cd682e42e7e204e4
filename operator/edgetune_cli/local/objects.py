"""LoraFineTunes of local runs: what the API server does with objects, done with files."""

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from edgetune_cli.local.processes import now
from edgetune_operator.api import names
from edgetune_operator.api.names import Key

_LONGEST_FILE_NAME = 200


class ObjectFolder:
    """LoraFineTunes of local runs: one YAML file each, with the status that a cluster would show."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, key: Key) -> Path:
        """File of one object."""
        # A name may be as long as a file's name, which has an ending besides.
        name = key.name if len(key.name) <= _LONGEST_FILE_NAME else names.label_value(key.name)
        return self._root / key.namespace / f"{name}.yaml"

    def read(self, key: Key) -> dict[str, Any] | None:
        """The object, or None if there was no run of it yet."""
        try:
            document = yaml.safe_load(self.path(key).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (yaml.YAMLError, UnicodeDecodeError):
            # A view of the store's facts: without it, every stage finds its manifest.
            return None
        return document if isinstance(document, dict) and "metadata" in document else None

    def write(self, key: Key, document: Mapping[str, Any]) -> None:
        """Replace the object in one step."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")  # one writer only: whoever holds the object's lock
        draft.write_text(yaml.safe_dump(dict(document), sort_keys=False, allow_unicode=True), encoding="utf-8")
        draft.replace(path)

    def apply(self, key: Key, spec: Mapping[str, Any], retry: str) -> dict[str, Any]:
        """What the API server does when somebody applies the object: a changed spec is a new generation.

        Args:
            key: namespace and name.
            spec: the whole spec, defaults filled in.
            retry: retry token; applying by hand asks for a look at the inputs and another try.
        """
        document = self.applied(key, spec, retry)
        self.write(key, document)
        return document

    def applied(self, key: Key, spec: Mapping[str, Any], retry: str) -> dict[str, Any]:
        """The object as `apply` would leave it; nothing is written."""
        document = self.read(key)
        # Here a deletion that was interrupted can be taken back.
        if document is None or document["metadata"].get("deletionTimestamp"):
            document = _new_object(key)
        if document.get("spec") != spec:
            document["metadata"]["generation"] += 1
            document["spec"] = dict(spec)
        document["metadata"]["annotations"] = {names.RETRY_REQUESTED_ANNOTATION: retry}
        return document

    def delete(self, key: Key, finalizers: Sequence[str]) -> None:
        """What the API server does when somebody deletes the object: it is gone, or waits for its finalizers."""
        document = self.read(key)
        if document is not None:
            document["metadata"].setdefault("deletionTimestamp", now())
            self.write(key, document)
            self.write_finalizers(key, finalizers)

    def write_finalizers(self, key: Key, finalizers: Sequence[str]) -> dict[str, Any]:
        """Replace the finalizers; the object after that. A deleted one without any is gone."""
        document = self.read(key)
        if document is None:
            raise FileNotFoundError(f"{self.path(key)} was removed meanwhile")
        document["metadata"]["finalizers"] = list(finalizers)
        if document["metadata"].get("deletionTimestamp") and not finalizers:
            self.path(key).unlink()
        else:
            self.write(key, document)
        return document


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

"""Addresses on the command line: a model's pointer or version, a stage's manifest, an artifact's folder.

    …/models/<name>[/latest.json]             the version at the pointer
    …/models/<name>/versions/<digest>.json    one version
    …/stages/<stage>/<digest>[/manifest.json] all artifacts of a stage
    …/stages/<stage>/<digest>/<attempt>/<artifact>

An address is an s3:// or file:/// URI or a local path. The part before models/ or stages/ is a namespace's store.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from edgetune_contract.digest import MANIFEST, manifest_key, pointer_key, stage_key, version_key
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput

_DIGEST = r"[0-9a-f]{64}"
_ROOT = r"(?P<root>s3://[^/]+(?:/.+)?|file:///.+)"
# The shortest root: in …/models/models/latest.json the model is named models.
_MODEL_ROOT = r"(?P<root>s3://[^/]+(?:/.+?)??|file:///.+?)"
_MODEL = re.compile(rf"{_MODEL_ROOT}/models/(?P<name>[^/]+?)(?:/latest\.json|/versions/(?P<version>{_DIGEST})\.json)?")
_STAGE = re.compile(
    rf"{_ROOT}/stages/(?P<stage>{'|'.join(Stage)})/(?P<digest>{_DIGEST})"
    rf"(?:/{re.escape(MANIFEST)}|/(?P<artifact>[0-9a-f]+/[^/]+))?"
)


@dataclass(frozen=True)
class ModelAddress:
    """A version of a model."""

    root: str
    """URI of the store."""

    name: str
    version: str | None
    """Digest of the version; None for the one at the pointer."""

    @property
    def key(self) -> str:
        """Key of the document."""
        return pointer_key(self.name) if self.version is None else version_key(self.name, self.version)


@dataclass(frozen=True)
class StageAddress:
    """A finished stage, or one of its artifacts."""

    root: str
    """URI of the store."""

    stage: Stage
    digest: str
    artifact: str | None
    """<attempt>/<artifact>, such as 0011223344556677/edge-bnb-int8; None for all artifacts."""

    @property
    def folder(self) -> str:
        """Key of the stage's folder."""
        return stage_key(self.stage, self.digest)

    @property
    def key(self) -> str:
        """Key of the manifest."""
        return manifest_key(self.stage, self.digest)


Address = ModelAddress | StageAddress


def parse_store(text: str, model: str) -> str:
    """URI of the store of a namespace that a URI or a path means.

    Args:
        text: the address.
        model: name of a model, whose own address is no store; one that ends in /models/team-a may be.

    Raises:
        InvalidInput: the text is not a valid address of a store.
    """
    uri = _uri(text)
    is_model = _MODEL.fullmatch(uri) and (uri.endswith((f"/{model}", ".json")))
    if not text or not re.fullmatch(_ROOT, uri) or is_model or _STAGE.fullmatch(uri):
        raise InvalidInput(f"{text!r} is not a store: use s3://bucket/prefix/namespace, file:///folder or a path")
    return uri


def parse_address(text: str) -> Address:
    """The address that a URI or a path means. It is not looked up.

    Raises:
        InvalidInput: the text is not a valid address.
    """
    uri = _uri(text)
    if model := _MODEL.fullmatch(uri):
        return ModelAddress(model["root"], model["name"], model["version"])
    if stage := _STAGE.fullmatch(uri):
        return StageAddress(stage["root"], Stage(stage["stage"]), stage["digest"], stage["artifact"])
    raise InvalidInput(
        f"{text!r} is not an address in a store: use a model's …/models/NAME/latest.json or …/versions/DIGEST.json, a "
        "stage's …/stages/STAGE/DIGEST/manifest.json, or the folder of one of its artifacts, as a path or an s3:// URI"
    )


def _uri(text: str) -> str:
    return text.rstrip("/") if "://" in text else Path(os.path.abspath(text)).as_uri()  # noqa: PTH100 - keeps links

"""Published versions of a model in a store, written by the real publisher without running a stage."""

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import safetensors.numpy

from edgetune_contract.digest import sha256_of
from edgetune_contract.request import Artifact, FileEntry, Manifest, Publication, Resolved, Result, Scores
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_contract.version import EdgeModel, Provenance, StageOrigin, StoredArtifact, VersionDocument
from edgetune_jobs.publishing.model_card.card import with_cards
from edgetune_jobs.publishing.publisher import StorePublisher
from edgetune_jobs.publishing.signing.signer import VersionSigner
from edgetune_jobs.store.files import file_list_digest
from edgetune_jobs.store.manifests import find_artifact, write_manifest_once
from edgetune_jobs.store.store import Store, files_below, upload_folder, uri_of

MODEL = "sensor-faults"
IMAGE = "registry.example/edgetune/jobs@sha256:" + "5" * 64
REVISION = "main@sha1:" + "7" * 40
ATTEMPT = "0011223344556677"
EDGE = "edge-bnb-int8"
OTHER_STAGES = (Stage.PREPARE, Stage.TRAIN, Stage.MERGE, Stage.EVALUATE)
"""The stages before publish besides quantize."""

RESOLVED = Resolved(base="a" * 64, train="b" * 64, eval="c" * 64)
LIBRARIES = {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"}
PARAMETERS = Parameters.model_validate(
    {
        "baseModel": {"uri": "hf://org/model", "revision": "0123456789" * 4},
        "dataset": {"train": {"uri": "s3://datasets/train.jsonl"}, "eval": {"uri": "s3://datasets/eval.jsonl"}},
    }
)


@dataclass
class PublishedModel:
    """A model in a store, and a function that publishes versions of it."""

    store: Store
    folder: Path
    """Folder for local files before they are uploaded."""

    name: str = MODEL
    has_cards: bool = field(default=False, kw_only=True)
    """Whether its versions have model cards; those of older releases have none."""

    made: int = field(default=0)
    signing_key: Path | None = None
    """PEM file of the private key that signs what is published; None if nothing is signed."""

    def publish(self, edge_score: float = 0.9, refusals: tuple[str, ...] = ()) -> VersionDocument:
        """Publish another version with its own edge model; the pointer moves to it unless there are refusals."""
        self.made += 1
        digest = sha256_of([self.name, self.made])
        manifest = self._quantized(digest)
        (edge,) = manifest.result.artifacts
        document = VersionDocument(
            model=self.name,
            namespace="team-a",
            version=digest,
            created_at=f"2026-11-24T08:{self.made:02d}:00+00:00",
            published=not refusals,
            refusals=refusals,
            edge=EdgeModel(artifact=StoredArtifact.of(edge), files=files_of(manifest, edge.name)),
            artifacts=(StoredArtifact.of(edge),),
            scores=Scores(base=0.05, tuned=0.95, edge=edge_score, drop=0.95 - edge_score, examples=64),
            provenance=Provenance(
                resolved=RESOLVED,
                parameters=PARAMETERS.model_dump(mode="json", exclude_none=True),
                stages={Stage.QUANTIZE: origin(manifest)},
            ),
        )
        return self._write(document)[0]

    def publish_run(self) -> VersionDocument:
        """Publish another version with the output of all stages of its run, one small file each."""
        document = self.publish()
        others = [self._made(stage, document.version) for stage in OTHER_STAGES]
        stages = {manifest.result.stage: origin(manifest) for manifest in others} | document.provenance.stages
        provenance = document.provenance.model_copy(update={"stages": stages})
        artifacts = [StoredArtifact.of(artifact) for manifest in others for artifact in manifest.result.artifacts]
        run = document.model_copy(update={"provenance": provenance, "artifacts": (*artifacts, *document.artifacts)})
        run, publication = self._write(run)
        result = Result(stage=Stage.PUBLISH, digest=run.version, publication=publication)
        manifest = Manifest(result=result, created_at=run.created_at)
        write_manifest_once(self.store, Stage.PUBLISH, run.version, manifest)
        return run

    def _write(self, document: VersionDocument) -> tuple[VersionDocument, Publication]:
        """Publish a version, with its cards if the model has them."""
        is_signed = self.signing_key is not None and document.published
        document, cards = with_cards(document, is_signed=is_signed) if self.has_cards else (document, {})
        return document, self.publisher.publish(document, cards)

    def _made(self, stage: Stage, seed: str) -> Manifest:
        """Write the output of a stage: an artifact of one file."""
        digest, name = sha256_of([stage, seed]), stage.value
        folder = f"stages/{stage}/{digest}"
        local = self.folder / digest / name
        local.mkdir(parents=True)
        (local / "data.json").write_text(json.dumps({"stage": stage, "seed": seed}))
        files = upload_folder(self.store, local, f"{folder}/{ATTEMPT}/{name}", relative_to=folder)
        entries = files_below(files, f"{ATTEMPT}/{name}")
        artifact = Artifact(
            name=name,
            uri=uri_of(self.store, f"{folder}/{ATTEMPT}/{name}"),
            bytes=sum(entry.bytes for entry in entries),
            sha256=file_list_digest(entries),
        )
        result = Result(stage=stage, digest=digest, artifacts=(artifact,))
        manifest = Manifest(result=result, files=files, created_at="2026-11-24T08:00:00+00:00")
        return write_manifest_once(self.store, stage, digest, manifest)

    @property
    def publisher(self) -> StorePublisher:
        """The publisher of the model, without stages to read."""
        signer = VersionSigner(self.store, self.signing_key, IMAGE, REVISION) if self.signing_key else None
        return StorePublisher(self.store, self.name, no_stage, signer)

    def _quantized(self, digest: str) -> Manifest:
        """Write the output of a quantize stage: an edge model of three files."""
        local = edge_folder(self.folder / digest / EDGE, self.made)
        folder = f"stages/quantize/{digest}"
        files = upload_folder(self.store, local, f"{folder}/{ATTEMPT}/{EDGE}", relative_to=folder)
        entries = files_below(files, f"{ATTEMPT}/{EDGE}")
        artifact = Artifact(
            name=EDGE,
            uri=uri_of(self.store, f"{folder}/{ATTEMPT}/{EDGE}"),
            bytes=sum(entry.bytes for entry in entries),
            sha256=file_list_digest(entries),
        )
        manifest = Manifest(
            result=Result(stage=Stage.QUANTIZE, digest=digest, artifacts=(artifact,), metrics={"quantizedLayers": 1}),
            files=files,
            created_at="2026-11-24T08:00:00+00:00",
            versions=LIBRARIES,
            image=IMAGE,
            resolved=RESOLVED,
            parameters=PARAMETERS.model_dump(mode="json", exclude_none=True),
        )
        write_manifest_once(self.store, Stage.QUANTIZE, digest, manifest)
        return manifest


def files_of(manifest: Manifest, name: str) -> tuple[FileEntry, ...]:
    """The files of an artifact in a manifest."""
    found = find_artifact(manifest, name)
    if found is None:
        raise AssertionError(f"the manifest has no {name}")
    return found.files


def edge_folder(folder: Path, seed: int) -> Path:
    """A folder with two small JSON files and a valid safetensors file."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "seed": seed}))
    (folder / "edgetune.json").write_text(json.dumps({"template": "{instruction}", "format": "Instruction"}))
    tensors: dict[str, Any] = {
        "weight": numpy.full((4, 4), seed, dtype=numpy.int8),
        "SCB": numpy.ones(4, dtype=numpy.float32),
    }
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


def origin(manifest: Manifest) -> StageOrigin:
    """The provenance of a stage in a version's document."""
    return StageOrigin(
        digest=manifest.result.digest,
        created_at=manifest.created_at,
        image=manifest.image,
        libraries=manifest.versions,
        metrics=manifest.result.metrics,
    )


def replaced(document: VersionDocument, **entry: Any) -> tuple[FileEntry, ...]:
    """The files of a version, with some fields of the first one changed."""
    first, *others = document.edge.files
    return (first.model_copy(update=entry), *others)


def no_stage(stage: Stage) -> Manifest:
    """Raise, because publishing a complete document must not read a stage."""
    raise AssertionError(f"{stage} was read")


def truncated_weights() -> bytes:
    """A safetensors file whose header has a tensor that ends beyond the file."""
    header = json.dumps({"weight": {"dtype": "I8", "shape": [9], "data_offsets": [0, 9]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"12345678"

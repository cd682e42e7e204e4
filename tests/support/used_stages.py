"""Stores with the outputs and marks of finished stages, written without running a stage."""

from edgetune_contract.digest import manifest_key, pointer_key, stage_key, version_key
from edgetune_contract.stages import Stage
from edgetune_jobs.store.artifact_uses import Use, Uses
from edgetune_jobs.store.store import Store

PREPARED, TRAINED, MERGED = "a" * 64, "b" * 64, "c" * 64
FIRST, SECOND = "1" * 64, "2" * 64
SHARED = ((Stage.PREPARE, PREPARED), (Stage.TRAIN, TRAINED), (Stage.MERGE, MERGED))


def make_stage(store: Store, stage: Stage, digest: str) -> None:
    """Write a stage's output: two files and a manifest; for train also a checkpoint."""
    folder = stage_key(stage, digest)
    for key in (f"{folder}/0123/adapter/weights.safetensors", f"{folder}/0123/adapter/config.json"):
        store.put(key, b"ten bytes.")
    store.put(manifest_key(stage, digest), b'{"result": {}}')
    if stage is Stage.TRAIN:
        store.put(f"checkpoints/{digest}/step-100/4567/state.txt", b"state")
        store.put(f"checkpoints/{digest}/step-100/manifest.json", b"{}")


def make_model(store: Store, name: str, *versions: str) -> None:
    """Write a model with the stages that all models of these tests share, and a publish stage for each version."""
    uses = Uses(store, name)
    for stage, digest in (*SHARED, *((Stage.PUBLISH, version) for version in versions)):
        uses.mark(Use(stage, digest))
        make_stage(store, stage, digest)
    for version in versions:
        store.put(version_key(name, version), b"{}")
    store.put(pointer_key(name), b"{}")


def keys(store: Store) -> set[str]:
    """Every key of the store."""
    folders = ("stages", "checkpoints", "models", "uses", "scores", "sources")
    return {found.key for folder in folders for found in store.list(folder)}

"""Runs over a local folder with stage_process.py, and functions that read their store."""

from pathlib import Path

from edgetune_contract.request import Manifest, StoreLocation
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.publishing.publisher import Pointer
from edgetune_jobs.runtime.inputs import digests_of_run
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.manifests import read_manifest
from support.stage_runs import Ended, StageRuns


def new_runs(folder: Path) -> StageRuns:
    """A run without any finished stage, with inputs and a store below `folder`."""
    (folder / "base").mkdir()
    (folder / "base" / "config.json").write_text("{}")
    (folder / "base" / "model.safetensors").write_bytes(b"weights")
    (folder / "train.jsonl").write_text('{"instruction": "a", "response": "b"}\n')
    store = StoreLocation(uri=(folder / "store" / "team-a").as_uri())
    return StageRuns(folder=folder, store=store, parameters=parameters(folder))


def parameters(folder: Path, **fields: object) -> Parameters:
    """Parameters over the inputs in `folder`; `fields` are further sections, by JSON name."""
    return Parameters.model_validate(
        {
            "baseModel": {"uri": (folder / "base").as_uri()},
            "dataset": {"train": {"uri": (folder / "train.jsonl").as_uri()}},
            **fields,
        }
    )


def store_of(runs: StageRuns) -> LocalFolderStore:
    """The run's store."""
    return LocalFolderStore(runs.store.uri)


def manifest_of(runs: StageRuns, stage: Stage) -> Manifest | None:
    """Manifest of a stage for the run's current parameters; None if there is none."""
    resolved = runs.resolved
    assert resolved is not None
    request = runs.request(stage)
    return read_manifest(store_of(runs), stage, digests_of_run(request, resolved)[stage])


def version_at_pointer(runs: StageRuns) -> str:
    """Version at the pointer, which must exist."""
    version = Pointer(store_of(runs), "sensor-faults").version
    assert version is not None
    return version


def keys(runs: StageRuns, folder: str) -> list[str]:
    """Keys below a folder of the store."""
    return [found.key for found in store_of(runs).list(folder)]


def failed(ended: Ended, exit_code: int, reason: str) -> str:
    """The failure's message, after a check of exit code and reason."""
    assert ended.exit_code == exit_code, ended.stderr
    assert ended.result.failure is not None
    assert (ended.result.failure.exit_code, ended.result.failure.reason) == (exit_code, reason)
    return ended.result.failure.message

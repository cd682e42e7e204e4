"""Runs of the stage train as processes, whose prepare is done by the test."""

import sys
from pathlib import Path
from typing import Any

from edgetune_contract.digest import prepared_digest
from edgetune_contract.pipeline import PREPARED
from edgetune_contract.request import Manifest, Resolved, Result, StoreLocation
from edgetune_contract.stages import Stage
from edgetune_jobs.runtime.outputs import StageUpload
from edgetune_jobs.stage import StageOutput
from edgetune_jobs.store.folder_store import LocalFolderStore
from edgetune_jobs.store.sources.source import FolderSource, SourceKind
from support.stage_runs import StageRuns
from support.tiny_runs import tiny_parameters


def prepared_runs(folder: Path, base: Path, prepared: Path, training: dict[str, Any]) -> StageRuns:
    """Runs with a store in `folder` that has these rows for this base."""
    uri = base.as_uri()
    runs = StageRuns(
        folder=folder,
        store=StoreLocation(uri=(folder / "store" / "team-a").as_uri()),
        parameters=tiny_parameters(baseModel={"uri": uri}, training=training),
        resolved=Resolved(base=FolderSource(uri, "spec.baseModel", SourceKind.MODEL).digest, train="1" * 64),
        command=(sys.executable, "-m", "edgetune_jobs"),
        environment={"PYTHONWARNINGS": "default", "OMP_NUM_THREADS": "2"},
    )
    store_prepared(runs, prepared)
    return runs


def store_prepared(runs: StageRuns, prepared: Path) -> None:
    """Store rows as what prepare has made for the parameters of these runs."""
    assert runs.resolved is not None
    digest = prepared_digest(runs.parameters, runs.resolved)
    attempt = StageUpload(LocalFolderStore(runs.store.uri), Stage.PREPARE, digest)
    (runs.folder / PREPARED).symlink_to(prepared)
    artifacts, files = attempt.add_artifacts(StageOutput((PREPARED,)), runs.folder)
    result = Result(stage=Stage.PREPARE, digest=digest, artifacts=artifacts, resolved=runs.resolved)
    attempt.commit(Manifest(result=result, files=files, created_at="2026-11-24T08:00:00Z", resolved=runs.resolved))

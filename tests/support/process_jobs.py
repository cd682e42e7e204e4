"""Jobs whose stage is a few lines of Python, for tests of what carries a stage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgetune_cli.local.cluster import local_profile
from edgetune_cli.local.processes import ProcessJob
from edgetune_contract.digest import prepare_digest
from edgetune_contract.request import Request
from edgetune_contract.stages import Stage
from edgetune_operator.api.spec_check import parse_spec
from edgetune_operator.decisions.manifests.job_manifests import render_job
from edgetune_operator.decisions.manifests.stage_resources import stage_resources

OWNER = {"name": "sensor-faults", "namespace": "team-a", "uid": "8b2c3f5e-0000-4000-8000-000000000001"}


def spec_of(**changes: Any) -> Any:
    """A valid spec with a few fields of its own."""
    return parse_spec(
        {
            "baseModel": {"uri": "s3://models/base"},
            "dataset": {"train": {"uri": "s3://datasets/train.jsonl"}},
            **changes,
        }
    )


def job_running(script: str, folder: Path, **spec_changes: Any) -> dict[str, Any]:
    """A rendered Job whose container runs `script` instead of a stage."""
    spec = spec_of(**spec_changes)
    profile = local_profile(folder)
    request = Request(
        namespace="team-a",
        name="sensor-faults",
        stage=Stage.PREPARE,
        digest=prepare_digest(spec.parameters),
        store=profile.store.for_namespace("team-a"),
        parameters=spec.parameters,
    )
    job = render_job(OWNER, spec, profile, request, "", stage_resources(profile, Stage.PREPARE))
    job["metadata"]["uid"] = "8b2c3f5e-0000-4000-8000-000000000002"
    job["spec"]["template"]["spec"]["containers"][0]["command"] = ["python", "-c", script]
    return job


def process_job(
    script: str,
    folder: Path,
    on_line: Callable[[dict[str, Any]], None] = lambda _: None,
    backoff_seconds: float = 0.01,
    **spec_changes: Any,
) -> ProcessJob:
    """A ProcessJob that runs `script`, and soon again if it fails."""
    return ProcessJob(
        manifest=job_running(script, folder, **spec_changes),
        folder=folder / "work",
        log=folder / "stage.log",
        on_line=on_line,
        on_change=lambda: None,
        backoff_seconds=backoff_seconds,
    )

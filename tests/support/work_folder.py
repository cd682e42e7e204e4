"""A work folder as an older release left it: an object with its status, and a store with its model."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from edgetune_cli.__main__ import app
from edgetune_cli.documents.single import load_object
from edgetune_cli.local.objects import ObjectFolder
from edgetune_contract.pipeline import outputs_of
from edgetune_contract.request import Manifest
from edgetune_contract.stages import Stage
from edgetune_operator.api.names import Key
from edgetune_operator.api.spec_check import parse_spec
from support.apiserver import REPOSITORY

OLDER = REPOSITORY / "tests" / "cli" / "data" / "store-0.1.0"


@dataclass(frozen=True)
class WorkFolder:
    """A work folder with one object, pumps of team-a, whose run is finished."""

    path: Path

    @property
    def store(self) -> Path:
        return self.path / "store" / "team-a"

    def edgetune(self, *arguments: str, given: str | None = None) -> Result:
        command, *options = arguments
        return CliRunner().invoke(
            app, [command, *options, "--workdir", str(self.path)], input=given, catch_exceptions=False
        )

    def document(self) -> dict[str, Any]:
        found = ObjectFolder(self.path / "objects").read(Key("team-a", "pumps"))
        assert found is not None
        return found

    def write(self, document: dict[str, Any]) -> None:
        ObjectFolder(self.path / "objects").write(Key("team-a", "pumps"), document)


def make_work_folder(path: Path) -> WorkFolder:
    """A copy of the older release's store in a new work folder, with the object's status."""
    folder = WorkFolder(path)
    shutil.copytree(OLDER / "store", folder.path / "store")
    for document in folder.path.rglob("*.json"):
        text = document.read_text(encoding="utf-8")
        document.write_text(text.replace("file:///STORE", (folder.path / "store").as_uri()), encoding="utf-8")
    folder.write(_finished(folder))
    return folder


def _finished(folder: WorkFolder) -> dict[str, Any]:
    """The object with the status that the manifests in the store show."""
    document = load_object(OLDER / "object.yaml")
    found = (path.read_text(encoding="utf-8") for path in folder.store.glob("stages/*/*/manifest.json"))
    manifests = {each.result.stage: each for each in map(Manifest.model_validate_json, found)}
    spec = parse_spec(document["spec"])
    rows: list[dict[str, Any]] = []
    artifacts: list[dict[str, Any]] = []
    for minute, stage in enumerate(Stage):
        row: dict[str, Any] = {"name": stage.value, "state": "Pending"}
        if (manifest := manifests.get(stage)) is not None:
            row |= {"state": "Succeeded", "digest": manifest.result.digest, "job": f"pumps-{stage.value}"}
            row["startedAt"] = f"2026-11-28T02:{minute:02d}:00Z"
            log = folder.path / "logs" / "team-a" / f"pumps-{stage.value}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(f"log of {stage.value}\n", encoding="utf-8")
            made = {each.name: each for each in manifest.result.artifacts}
            folders = {path.name: path for path in (folder.store / "stages" / stage.value).glob("*/*/*")}
            artifacts += [
                {**made[name].model_dump(mode="json"), "uri": folders[name].as_uri(), "stage": stage.value}
                for name in outputs_of(stage, spec.parameters)
                if name in made and name in folders
            ]
        rows.append(row)
    scores = manifests[Stage.EVALUATE].result.scores
    assert scores is not None
    status = {
        "phase": "Succeeded",
        "finishedAt": "2026-11-28T02:10:00Z",
        "stages": rows,
        "artifacts": artifacts,
        "scores": scores.model_dump(mode="json", exclude_none=True),
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Published",
                "message": "latest.json names version 85615a23beda",
                "lastTransitionTime": "2026-11-28T02:10:00Z",
            }
        ],
    }
    return {**document, "metadata": {**document["metadata"], "generation": 1}, "status": status}

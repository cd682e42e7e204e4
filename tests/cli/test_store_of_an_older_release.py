"""The store of an older release: its finished stages do not run again, and rebuilt artifacts have the same bytes."""

import shutil
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from edgetune_cli.__main__ import app
from edgetune_contract.pipeline import MERGED, PREPARED, outputs_of
from edgetune_contract.request import Manifest
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.stages import quantize
from edgetune_jobs.store.files import fingerprint
from edgetune_jobs.store.folder_store import path_of_uri
from support.apiserver import REPOSITORY
from support.stage_context import stage_context
from support.workplace import Workplace

OLDER = REPOSITORY / "tests" / "cli" / "data" / "store-0.1.0"
VERSION = "85615a23beda"
GGUF = "model-Q8_0.gguf"
STATE = ("current,", "gained", "nothing")


class OlderStore:
    """A copy of the older release's store, used as the store of local runs in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / ".edgetune"
        for name in ("base", "train.jsonl", "object.yaml"):
            copy = shutil.copytree if (OLDER / name).is_dir() else shutil.copy
            copy(OLDER / name, folder / name)
        shutil.copytree(OLDER / "store", self.work / "store")
        for path in (self.work / "store").rglob("*.json"):
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("file:///STORE", (self.work / "store").as_uri()), encoding="utf-8")

    @property
    def root(self) -> Path:
        return self.work / "store" / "team-a"

    def manifests(self) -> dict[Stage, Manifest]:
        found = (path.read_text(encoding="utf-8") for path in self.root.glob("stages/*/*/manifest.json"))
        manifests = [Manifest.model_validate_json(text) for text in found]
        return {manifest.result.stage: manifest for manifest in manifests}

    def edgetune(self, command: str, *options: str) -> str:
        """Output of a command on the object, with its progress; the command must succeed."""
        arguments = [command, "-f", str(self.folder / "object.yaml"), "--workdir", str(self.work), *options]
        done = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    def pin_inputs(self) -> None:
        """Pin base and data to what the older release trained on."""
        resolved = self.manifests()[Stage.TRAIN].resolved
        assert resolved is not None
        self.edit(baseModel={"revision": resolved.base})
        self.edit(dataset={"train": {"uri": "train.jsonl", "revision": resolved.train}})

    def planned(self, *options: str) -> list[str]:
        """Lines of the plan, one for each stage."""
        lines = self.edgetune("plan", *options).splitlines()
        return [line for line in lines if line.split()[0] in set(Stage)]

    def spec(self) -> dict[str, Any]:
        """The object's spec, in today's words."""
        spec: dict[str, Any] = yaml.safe_load((self.folder / "object.yaml").read_text(encoding="utf-8"))["spec"]
        return spec

    def edit(self, **sections: Any) -> None:
        path = self.folder / "object.yaml"
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, section in sections.items():
            document["spec"][name] |= section
        path.write_text(yaml.safe_dump(document), encoding="utf-8")


@pytest.fixture
def older(tmp_path: Path) -> OlderStore:
    return OlderStore(tmp_path)


def test_a_run_keeps_training_and_merge_and_quantizes_and_scores_again(older: OlderStore) -> None:
    before = {stage: manifest.result.digest for stage, manifest in older.manifests().items()}

    older.pin_inputs()
    planned = older.planned("--store")
    output = older.edgetune("run")

    assert [line.split()[:2] for line in planned] == [
        ["prepare", "run"],
        *([stage.value, "keep"] for stage in (Stage.TRAIN, Stage.MERGE)),
        *([stage.value, "run"] for stage in (Stage.QUANTIZE, Stage.EVALUATE, Stage.PUBLISH)),
    ]
    started = [line.split(":")[0] for line in output.splitlines() if line.endswith(": started")]
    assert started == [Stage.PREPARE, Stage.QUANTIZE, Stage.EVALUATE, Stage.PUBLISH]
    after = {stage: manifest.result.digest for stage, manifest in older.manifests().items()}
    assert {stage for stage in Stage if before[stage] != after[stage]} == {
        Stage.QUANTIZE,
        Stage.EVALUATE,
        Stage.PUBLISH,
    }


def test_a_plan_finds_the_stages_in_the_store_before_the_first_run(older: OlderStore) -> None:
    older.pin_inputs()

    without, found = older.planned(), older.planned("--store")

    assert {line.split()[1] for line in without} == {"run"}
    assert found[0].split(maxsplit=2) == ["prepare", "run", "never finished"]
    assert all("keep   its output is in the store, digest" in line for line in found[1:3])


def test_versions_and_scores_of_an_older_release_can_be_read(older: OlderStore) -> None:
    lines = older.edgetune("versions").splitlines()

    assert lines[1].split() == [VERSION, *lines[1].split()[1:2], "0.0%", "0.0%", "0.0%", "90.2", "kB", *STATE]


def test_a_share_that_was_written_in_percent_is_read_as_a_share(older: OlderStore) -> None:
    metrics = older.manifests()[Stage.TRAIN].result.metrics

    assert metrics["trainableShare"] == pytest.approx(3_584 / 54_400)


def test_every_file_is_verified(older: OlderStore) -> None:
    done = CliRunner().invoke(app, ["verify", str(older.root / "models" / "pumps" / "latest.json")])

    assert done.exit_code == 0, done.output


def test_prepare_makes_the_same_bytes_again(older: OlderStore) -> None:
    manifest = older.manifests()[Stage.PREPARE]
    if manifest.versions["pyarrow"] != metadata.version("pyarrow"):
        pytest.skip("pyarrow writes its version into its files, and the installed one is not the older release's")
    spec = {name: older.spec()[name] for name in ("lora", "training", "quantization", "evaluation")}

    _, folder = Workplace(older.folder).run(dataset={"evalSplitPercent": 20}, **spec)

    made, recorded = files_of(folder), recorded_files(manifest, PREPARED)
    assert made.pop("edgetune.json")  # which 0.1.0 did not write
    assert made.pop("report.json") != recorded.pop("report.json")  # it has a better estimate of the memory
    assert made == recorded


def test_quantize_makes_the_same_weights_again(older: OlderStore, tmp_path: Path) -> None:
    manifests = older.manifests()
    manifest = manifests[Stage.QUANTIZE]
    uri = next(each.uri for each in manifests[Stage.MERGE].result.artifacts if each.name == MERGED)
    sections = {name: older.spec()[name] for name in ("lora", "training", "quantization", "evaluation")}
    parameters = Parameters.model_validate({**manifest.parameters, **sections})
    context = stage_context(Stage.QUANTIZE, parameters, tmp_path / "quantize", {MERGED: path_of_uri(uri)})
    # GGUF files contain the model's name.
    context = replace(context, request=context.request.model_copy(update={"name": "pumps"}))

    quantize.run(context)

    for name in outputs_of(Stage.QUANTIZE, parameters):
        made, recorded = files_of(context.output / name), recorded_files(manifest, name)
        assert made.pop("chat_template.jinja")  # which 0.1.0 did not write
        if made.pop("Modelfile", None):
            assert made.pop(GGUF) != recorded.pop(GGUF)  # it has the same chat template
            (older_file,) = older.root.glob(f"stages/quantize/*/*/*/{GGUF}")
            assert tensors_of(context.output / name / GGUF) == tensors_of(older_file)
        assert made == recorded


def tensors_of(file: Path) -> dict[str, bytes]:
    """The data of each tensor of a GGUF file."""
    from gguf import GGUFReader

    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(file).tensors}


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder."""
    return {path.name: fingerprint(path).sha256 for path in folder.iterdir()}


def recorded_files(manifest: Manifest, artifact: str) -> dict[str, str]:
    """SHA-256 of each file of an artifact, from a manifest."""
    parts = ((entry.path.split("/"), entry.sha256) for entry in manifest.files)
    return {name: sha256 for (_, folder, name), sha256 in parts if folder == artifact}

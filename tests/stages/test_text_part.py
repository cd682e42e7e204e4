"""Runs on a multimodal model: every stage works on its text part."""

import io
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune_contract.request import Manifest, Result, StoreLocation
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.runtime.process import load_stage_code
from edgetune_jobs.runtime.settings import Settings
from edgetune_jobs.runtime.signals import StopSignals
from edgetune_jobs.runtime.stage_run import StageRun
from edgetune_jobs.store.folder_store import path_of_uri
from support.data_rows import instruction_rows, jsonl, write_file
from support.local_runs import manifest_of, store_of
from support.multimodal import make_multimodal, read_config
from support.stage_runs import StageRuns
from support.tiny_runs import tiny_parameters
from support.versitygw import S3Server, credentials_folder

pytestmark = pytest.mark.slow

TEXT_PART = (
    "the base model is multimodal: only the text part of Gemma3ForConditionalGeneration, Gemma3ForCausalLM, is used; "
    "50 tensors of multi_modal_projector, vision_tower, 32.5% of the weights' bytes, are left out, also of the edge "
    "model"
)


def new_runs(folder: Path, base: Path) -> StageRuns:
    parameters = tiny_parameters(
        baseModel={"uri": base.as_uri()},
        dataset={"train": {"uri": write_file(folder / "train.jsonl", jsonl(instruction_rows(24))).as_uri()}},
        evaluation={"maxExamples": 2, "maxNewTokens": 2},
    )
    return StageRuns(
        folder=folder,
        store=StoreLocation(uri=(folder / "store" / "team-a").as_uri()),
        parameters=parameters,
    )


def run(runs: StageRuns, stage: Stage) -> Result:
    """Run a stage with its real body in this process, which has the libraries already."""
    settings = Settings.from_environment({"EDGETUNE_METRICS_PORT": "0", **runs.environment})
    folder = Path(tempfile.mkdtemp(dir=runs.folder))
    request = runs.request(stage)
    result = StageRun(request, settings, StopSignals(), io.StringIO(), load_stage_code, folder).run()
    runs.resolved = result.resolved or runs.resolved
    return result


def run_up_to(last: Stage, runs: StageRuns) -> None:
    for stage in list(Stage)[: list(Stage).index(last) + 1]:
        run(runs, stage)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StageRuns:
    """A run up to evaluate on a random Gemma 3. Tests must not change it."""
    folder = tmp_path_factory.mktemp("run")
    runs = new_runs(folder, make_multimodal(folder / "base", "gemma3", dtype="bfloat16"))
    run_up_to(Stage.EVALUATE, runs)
    return runs


@pytest.fixture
def in_s3(s3_server: S3Server, s3_prefix: str, tmp_path: Path) -> StageRuns:
    """A run whose base, a random LLaVA, is in the bucket of its store."""
    local = new_runs(tmp_path, make_multimodal(tmp_path / "base", "llava", dtype="bfloat16"))
    inputs = f"{s3_prefix}-inputs/base"
    for path in sorted((tmp_path / "base").iterdir()):
        s3_server.client().put_object(Bucket=s3_server.bucket, Key=f"{inputs}/{path.name}", Body=path.read_bytes())
    base = local.parameters.base_model.model_copy(update={"uri": f"s3://{s3_server.bucket}/{inputs}"})
    return replace(
        local,
        parameters=local.parameters.model_copy(update={"base_model": base}),
        store=s3_server.location(f"{s3_prefix}/team-a"),
        environment={"EDGETUNE_CREDENTIALS_DIR": str(credentials_folder(tmp_path, s3_server.admin))},
    )


def result_of(runs: StageRuns, stage: Stage) -> Result:
    manifest = manifest_of(runs, stage)
    assert manifest is not None
    return manifest.result


def artifact(runs: StageRuns, stage: Stage, name: str) -> Path:
    manifest: Manifest | None = manifest_of(runs, stage)
    assert manifest is not None
    found = next(each for each in manifest.result.artifacts if each.name == name)
    return path_of_uri(found.uri)


def logits_of(model: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(torch.arange(5, 40)[None]).logits
    return logits.float()


def test_prepare_says_what_is_used_and_what_is_left_out(finished: StageRuns) -> None:
    result = result_of(finished, Stage.PREPARE)

    whole = {"architecture": "Gemma3ForCausalLM", "textPartOf": "Gemma3ForConditionalGeneration"}
    assert whole.items() <= result.facts.items()
    assert result.warnings[0] == TEXT_PART


def test_every_model_of_the_run_is_a_plain_text_model(finished: StageRuns) -> None:
    from transformers import AutoModelForCausalLM

    for stage, name in ((Stage.MERGE, "merged"), (Stage.QUANTIZE, "edge-bnb-int8")):
        folder = artifact(finished, stage, name)
        assert read_config(folder)["architectures"] == ["Gemma3ForCausalLM"]
        assert "vision_config" not in read_config(folder)
    merged = AutoModelForCausalLM.from_pretrained(artifact(finished, Stage.MERGE, "merged"))
    assert type(merged).__name__ == "Gemma3ForCausalLM"
    scores = result_of(finished, Stage.EVALUATE).scores
    assert scores is not None


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_adapter_loads_with_the_model_that_it_names(finished: StageRuns) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    tuned = AutoPeftModelForCausalLM.from_pretrained(artifact(finished, Stage.TRAIN, "adapter"))

    assert type(tuned.get_base_model()).__name__ == "Gemma3ForCausalLM"
    base = AutoModelForCausalLM.from_pretrained(tuned.peft_config["default"].base_model_name_or_path)
    assert not torch.allclose(logits_of(tuned), logits_of(base), atol=1e-2)


def test_a_deleted_copy_is_named_and_prepare_copies_the_text_part_again(finished: StageRuns, tmp_path: Path) -> None:
    runs = new_runs(tmp_path, path_of_uri(finished.parameters.base_model.uri))
    shutil.copytree(finished.folder / "store", tmp_path / "store")
    runs.resolved = finished.resolved
    assert runs.resolved is not None
    copy = f"sources/{runs.resolved.base}"
    store_of(runs).delete_tree(copy)
    store_of(runs).delete_tree("stages/merge")

    with pytest.raises(InvalidInput) as refusal:
        run(runs, Stage.MERGE)
    prepare = run(runs, Stage.PREPARE)

    missing = f"the copy of {runs.parameters.base_model.uri} is missing from {runs.store.uri}/{copy}"
    assert missing in str(refusal.value)
    assert prepare.cached
    assert not run(runs, Stage.MERGE).cached
    files = [found.key.rpartition("/")[2] for found in store_of(runs).list(copy)]
    assert sorted(files) == [
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_base_in_a_bucket_is_merged_from_the_copy_of_its_text_part(in_s3: StageRuns) -> None:
    run_up_to(Stage.TRAIN, in_s3)

    merge = run(in_s3, Stage.MERGE)

    assert merge.facts["path"] == "streaming"  # as any Llama
    assert merge.metrics["baseBytes"] < 0.9 * sum(path.stat().st_size for path in (in_s3.folder / "base").iterdir())

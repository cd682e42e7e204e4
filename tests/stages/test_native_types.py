"""A model whose config names custom code for a type that transformers supports, such as Phi-3: no stage runs it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.models import loading
from edgetune_jobs.models.saving import save_model
from edgetune_jobs.stage import StageContext, StageOutput
from edgetune_jobs.stages import evaluate, merge, prepare, quantize, train
from edgetune_jobs.store.sources.source import FolderSource, SourceKind
from support.data_rows import instruction_rows, jsonl, write_file
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters
from support.tiny_tokenizer import make_tokenizer

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
AUTO_MAP = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
EDGES = ("edge-bnb-int8", "edge-ct-w8a8")


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Phi-3 whose folder has code that fails if it is run."""
    from transformers import Phi3Config, Phi3ForCausalLM

    folder, tokenizer = tmp_path_factory.mktemp("phi3") / "base", make_tokenizer()
    config = Phi3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Phi3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "auto_map": AUTO_MAP}))
    for name in ("configuration_phi3.py", "modeling_phi3.py"):
        (folder / name).write_text("raise SystemExit('code of a model was run')\n")
    return folder


@pytest.fixture(scope="module")
def stages(phi3: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[StageContext, StageOutput]]:
    """Contexts and outputs of all stages on this model, by name."""
    folder = tmp_path_factory.mktemp("stages")
    write_file(folder / "train.jsonl", jsonl(instruction_rows(20)))
    parameters = tiny_parameters(
        dataset={"train": {"uri": f"file://{folder}/train.jsonl"}, "evalSplitPercent": 10},
        training={"maxSteps": 1, "warmupRatio": 0},
        quantization={"formats": ["BitsAndBytesInt8", "CompressedTensorsW8A8"]},
        evaluation={"maxNewTokens": 2},
    )
    preparing = _context(Stage.PREPARE, parameters, folder, {})
    sources = {
        "base": FolderSource(f"file://{phi3}", "spec.baseModel", SourceKind.MODEL),
        "train": FolderSource(parameters.dataset.train.uri, "spec.dataset.train", SourceKind.DATA),
    }
    preparing = dataclasses.replace(preparing, sources=sources)
    done = {"prepare": (preparing, prepare.run(preparing))}
    inputs = {"base": phi3, "prepared": preparing.output / "prepared"}
    for stage, run, artifacts in (
        (Stage.TRAIN, train.run, ("adapter",)),
        (Stage.MERGE, merge.run, ("merged",)),
        (Stage.QUANTIZE, quantize.run, EDGES),
        (Stage.EVALUATE, evaluate.run, ()),
    ):
        context = _context(stage, parameters, folder, inputs)
        done[stage.value] = context, run(context)
        inputs = {**inputs, **{name: context.output / name for name in artifacts}}
    return done


def _context(stage: Stage, parameters: Parameters, folder: Path, inputs: Mapping[str, Path]) -> StageContext:
    return stage_context(stage, parameters, folder / stage.value, inputs)


def test_all_stages_succeed_without_running_the_models_code(
    stages: Mapping[str, tuple[StageContext, StageOutput]],
) -> None:
    scores = stages["evaluate"][1].scores

    assert {stages[name][1].facts["path"] for name in ("merge", "quantize")} == {"streaming"}
    assert scores is not None
    assert set(scores.details) == {"base", "tuned", "merged", "edge", "edge-ct-w8a8"}


def test_merged_and_edge_models_name_no_code(stages: Mapping[str, tuple[StageContext, StageOutput]]) -> None:
    folders = [stages["merge"][0].output / "merged", *(stages["quantize"][0].output / edge for edge in EDGES)]

    for folder in folders:
        assert "auto_map" not in json.loads((folder / "config.json").read_text())
        assert not list(folder.glob("*.py"))


def test_a_model_that_the_library_saves_names_no_code_either(phi3: Path, tmp_path: Path) -> None:
    model = loading.load_base(phi3, torch.bfloat16, CPU)

    save_model(model, tmp_path / "saved", phi3, PromptFormat.of(tiny_parameters().dataset))

    assert "auto_map" not in json.loads((tmp_path / "saved" / "config.json").read_text())

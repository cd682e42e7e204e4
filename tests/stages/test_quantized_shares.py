"""What is quantized is said, and nothing is promised that the reading library does not read: mixtures, and Falcon."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.quantization.coverage import nf4_coverage
from edgetune_jobs.models.skeleton import build_skeleton
from edgetune_jobs.stage import StageContext
from edgetune_jobs.stages import prepare, quantize
from edgetune_jobs.store.sources.source import FolderSource, SourceKind
from support.data_rows import instruction_rows, jsonl, write_file
from support.edge_models import make_kind
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters

LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}


def preparing(folder: Path, base: Path, **sections: object) -> StageContext:
    data = write_file(folder / "train.jsonl", jsonl(instruction_rows(12))).as_uri()
    parameters = tiny_parameters(dataset={"train": {"uri": data}}, **sections)
    sources = {
        "base": FolderSource(f"file://{base}", "spec.baseModel", SourceKind.MODEL),
        "train": FolderSource(data, "spec.dataset.train", SourceKind.DATA),
    }
    return replace(stage_context(Stage.PREPARE, parameters, folder / "prepare", {}), sources=sources)


def test_a_format_that_would_quantize_nothing_is_refused_before_training(tmp_path: Path) -> None:
    context = preparing(tmp_path, make_kind(tmp_path / "base", "falcon"))

    with pytest.raises(InvalidInput, match=r"formats\[0\]: BitsAndBytesInt8 .* it would quantize none of its weights"):
        prepare.run(context)


def test_the_memory_of_training_counts_experts_in_4_bits(tmp_path: Path) -> None:
    base = make_kind(tmp_path / "base", "mixtral", num_local_experts=4, num_experts_per_tok=2)
    context = preparing(tmp_path, base)

    prepare.run(context)

    memory = json.loads((context.output / "prepared" / "report.json").read_text())["estimatedTrainingBytes"]
    numbers = nf4_coverage(build_skeleton(base))
    assert memory["base"] < 4 * (numbers.total - numbers.quantized) + 0.52 * numbers.quantized
    assert memory["dequantized"] == 4 * 2 * 4 * 3 * 64 * 128


def test_experts_that_stay_in_16_bits_are_said_with_the_share_of_the_rest(tmp_path: Path) -> None:
    base = make_kind(tmp_path / "base", "mixtral", num_local_experts=4, num_experts_per_tok=2)
    context = stage_context(Stage.QUANTIZE, tiny_parameters(), tmp_path / "quantize", {"merged": base})

    output = quantize.run(context)

    assert output.metrics["quantizedShare"] == pytest.approx(0.09, abs=0.01)
    assert output.facts["quantizedShares"] == "BitsAndBytesInt8 9.2%"
    assert output.warnings[-1] == (
        "BitsAndBytesInt8 has only 9% of the weights in 8 bits: MixtralExperts stay in 16 or 32 bits, because "
        "the libraries do not read or run them in INT8"
    )


@pytest.mark.parametrize("model_type", ["deepseek_v3", "minicpm3"])
def test_int8_leaves_out_the_layer_that_bitsandbytes_does_not_run(tmp_path: Path, model_type: str) -> None:
    base = make_kind(tmp_path / "base", model_type, **LATENT)
    context = stage_context(Stage.QUANTIZE, tiny_parameters(), tmp_path / "quantize", {"merged": base})

    output = quantize.run(context)

    model = AutoModelForCausalLM.from_pretrained(context.output / output.artifacts[0])
    assert model(input_ids=torch.arange(3, 12).unsqueeze(0)).logits.isfinite().all()
    attention = model.model.layers[0].self_attn
    assert type(attention.kv_b_proj) is torch.nn.Linear
    assert attention.o_proj.weight.dtype is torch.int8
    assert type(model.lm_head) is torch.nn.Linear

"""Models in GGUF compute nearly the same as the original model, in transformers and in llama.cpp."""

from pathlib import Path

import gguf
import numpy
import pytest
import torch

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models import loading
from edgetune_jobs.models.quantization import gguf_loading
from edgetune_jobs.tensors.formats.errors import Unsupported
from edgetune_jobs.tensors.formats.gguf_layout import lay_out
from edgetune_jobs.tensors.formats.int8_arithmetic import quantize_q8_0
from support.edge_models import FAMILIES, make_model, write_gguf
from support.llama_cpp import run_llama_cpp

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
# Root mean square of the difference, relative to that of the logits. In these random models, weights in Q8_0 cost 3 to
# 5 %, and the Q8_0 activations of llama.cpp as much again; a wrong order of a head's rows costs far more.
CLOSE = 0.09
# In logits. Those of the trained model have a standard deviation of 1.6 and differ by 0.03 between the runtimes. The
# digits of its log lines are random, so which of two tokens is first depends on the CPU that trained the model.
TIE = 0.1


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).pow(2).mean().sqrt() / expected.std())


def logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return loading.load_stored(folder, CPU)(ids[None]).logits[0].float()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_each_family_gives_the_same_logits_in_transformers_and_llama_cpp(
    family: str, tmp_path: Path
) -> None:
    model = make_model(tmp_path / "model", family)
    file = write_gguf(model, tmp_path / "edge")
    ids = torch.randint(4, 340, (60,), generator=torch.Generator().manual_seed(1))
    expected = logits(model, ids)

    assert difference(logits(file.parent, ids), expected) < CLOSE
    by_llama_cpp = torch.tensor(run_llama_cpp(file, prompts=[ids.tolist()], max_new_tokens=1)["logits"][0])
    assert difference(by_llama_cpp, expected) < CLOSE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blocks_are_bitwise_equal_to_those_of_the_gguf_library(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(48, 256, generator=generator) * torch.logspace(-9, 4, 48)[:, None]
    rows[0] = 0
    rows[1] = torch.arange(256) / 2  # halves, which are rounded away from zero
    rows[2] = -rows[1]
    rows = rows.to(dtype)

    packed = quantize_q8_0(rows)

    assert packed is not None
    expected = gguf.quants.quantize(rows.float().numpy(), gguf.GGMLQuantizationType.Q8_0)
    assert numpy.array_equal(packed.numpy(), expected)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (float("nan"), "contains NaN or infinity"),
        (float("inf"), "contains NaN or infinity"),
        (1e8, "has a value in rows 0 to 127 that is not finite or too large for Q8_0"),
    ],
)
def test_the_error_about_a_value_that_q8_0_cannot_represent_names_the_tensor(
    value: float, problem: str, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    model = make_model(tmp_path / "model", "llama")
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(InvalidInput, match=rf"model\.layers\.1\.mlp\.up_proj\.weight {problem}"):
        write_gguf(model, tmp_path / "edge")


def test_another_gguf_file_in_the_folder_is_not_the_model(tmp_path: Path) -> None:
    (tmp_path / "another.gguf").write_bytes(b"GGUF")
    assert gguf_loading.find_file(tmp_path) is None

    (tmp_path / gguf_loading.FILE).write_bytes(b"GGUF")
    assert gguf_loading.find_file(tmp_path) == tmp_path / gguf_loading.FILE


def test_the_trained_tiny_model_answers_the_same_in_llama_cpp(tiny_base: Path, tmp_path: Path) -> None:
    file = write_gguf(tiny_base, tmp_path / "edge")
    tokenizer = loading.load_tokenizer(tiny_base)
    prompts = tokenizer(["turbine 12 reports", "pump 7, dock,", "### Instruction:\n", "valve 3:"])["input_ids"]

    answers = run_llama_cpp(file, prompts=prompts, max_new_tokens=24)["answers"]

    decided = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        chosen = answer if len(answer) == 24 else [*answer, tokenizer.eos_token_id]
        # Not response against response: one tie that the two break differently would change all tokens after it.
        by_transformers = logits(file.parent, torch.tensor(prompt + chosen))[len(prompt) - 1 : -1]
        best, second = by_transformers.topk(2).values.unbind(1)
        behind = best - by_transformers.gather(1, torch.tensor(chosen)[:, None])[:, 0]
        assert (behind <= TIE).all(), f"llama.cpp answers with tokens that transformers finds less likely: {behind}"
        decided += int((best - second > 10 * TIE).sum())
    assert decided >= 24, "tokens without a close second, in four answers of 24 tokens"


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
def test_a_bias_that_llama_cpp_does_not_read_is_refused(family: str) -> None:
    from transformers import AutoConfig

    names = {"qwen3": "self_attn.q_proj", "qwen2": "self_attn.o_proj"}

    with pytest.raises(Unsupported, match=r"llama\.cpp reads no tensor model\.layers\.0\.self_attn\..*_proj\.bias"):
        lay_out(AutoConfig.for_model(family), {f"model.layers.0.{names[family]}.bias": (64,)})

"""Models in GGUF compute nearly the same as the original model, in transformers and in llama.cpp."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch

from edgetune_contract.spec import EdgeFormat
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models import loading
from edgetune_jobs.models.quantization import gguf_loading
from edgetune_jobs.tensors.formats.errors import Unsupported
from edgetune_jobs.tensors.formats.gguf.layout import Dtype, lay_out
from edgetune_jobs.tensors.formats.int8_arithmetic import quantize_q8_0
from support.edge_models import FAMILIES, make_model, write_gguf
from support.llama_cpp import run_llama_cpp

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
# Root mean square of the difference, relative to that of the logits. In these random models, weights in Q8_0 cost 3 to
# 5 %, and the Q8_0 activations of llama.cpp as much again; a wrong order of a head's rows costs far more.
CLOSE = 0.11
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 4096}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# Of the standard deviation of the logits, which differ by 0.02 to 0.03 of it between the runtimes.
TIE = 0.1
NEW_TOKENS = 24


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
    assert difference(by_llama_cpp(file, ids), expected) < CLOSE


@pytest.mark.parametrize("family", ["llama longrope", "phi3 longrope"])
def test_a_text_beyond_the_original_context_is_rotated_by_the_long_factors(family: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", family)
    file = write_gguf(model, tmp_path / "edge", EdgeFormat.GGUF_BF16)
    ids = torch.randint(4, 340, (300,), generator=torch.Generator().manual_seed(1))

    assert difference(by_llama_cpp(file, ids, context=512), logits(model, ids)) < CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_16_bits_gives_nearly_the_same_logits_and_answers(family: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", family, dtype="bfloat16")
    file = write_gguf(model, tmp_path / "edge", EdgeFormat.GGUF_BF16)
    ids = torch.randint(4, 340, (60,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = loading.load_base(model, torch.float32, CPU)(ids[None]).logits[0]

    assert difference(logits(file.parent, ids), expected) < 0.001
    assert difference(by_llama_cpp(file, ids), expected) < 0.03
    assert decided_tokens(file, [ids.tolist()]) >= 4


def by_llama_cpp(file: Path, ids: torch.Tensor, context: int = 256) -> torch.Tensor:
    answer = run_llama_cpp(file, prompts=[ids.tolist()], max_new_tokens=1, context=context)
    return torch.tensor(answer["logits"][0])


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

    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    assert gguf_loading.find_file(tmp_path) == tmp_path / "model-Q4_K_M.gguf"


def test_a_stage_that_loads_a_model_prints_no_bars_of_libraries(tmp_path: Path) -> None:
    folder = write_gguf(make_model(tmp_path / "model", "llama"), tmp_path / "edge").parent
    script = (
        "import sys, pathlib; from edgetune_jobs.models.libraries import prepare_libraries; prepare_libraries(); "
        "import torch; from edgetune_jobs.models import loading; "
        "loading.load_stored(pathlib.Path(sys.argv[1]), torch.device('cpu')); "
        "loading.load_stored(pathlib.Path(sys.argv[2]), torch.device('cpu')); print('loaded')"
    )
    command = [sys.executable, "-c", script, str(folder), str(tmp_path / "model")]
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    assert (done.stdout, done.stderr) == ("loaded\n", "")


def test_a_model_is_read_once_with_the_weights_that_the_library_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_gguf(make_model(tmp_path / "model", "llama"), tmp_path / "edge").parent
    with monkeypatch.context() as patch:
        patch.setattr(gguf_loading, "reading_once", nullcontext)
        expected = loading.load_stored(folder, CPU).state_dict()
    tables: list[int] = []
    build = gguf.TensorNameMap.__init__

    def counted(*args: Any) -> None:
        tables.append(len(tables))
        build(*args)

    monkeypatch.setattr(gguf.TensorNameMap, "__init__", counted)
    found = loading.load_stored(folder, CPU).state_dict()

    assert tables == [0]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_trained_tiny_model_answers_the_same_in_llama_cpp(tiny_base: Path, tmp_path: Path) -> None:
    file = write_gguf(tiny_base, tmp_path / "edge")
    tokenizer = loading.load_tokenizer(tiny_base)
    prompts = tokenizer(["turbine 12 reports", "pump 7, dock,", "### Instruction:\n", "valve 3:"])["input_ids"]

    assert decided_tokens(file, prompts) >= 24, "of four answers of 24 tokens"


def decided_tokens(file: Path, prompts: list[list[int]]) -> int:
    """How many tokens of llama.cpp's greedy answers have no close second, after all are found to be transformers' own.

    They are compared with transformers' logits after the same tokens, not with its answers: one tie that the two break
    differently would change all tokens after it.
    """
    answers = run_llama_cpp(file, prompts=prompts, max_new_tokens=NEW_TOKENS, context=256)["answers"]
    decided = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        ends = [] if len(answer) == NEW_TOKENS else [loading.load_tokenizer(file.parent).eos_token_id]
        chosen = answer + ends
        by_transformers = logits(file.parent, torch.tensor(prompt + chosen))[len(prompt) - 1 : -1]
        best, second = by_transformers.topk(2).values.unbind(1)
        behind = (best - by_transformers.gather(1, torch.tensor(chosen)[:, None])[:, 0]) / by_transformers.std()
        assert (behind <= TIE).all(), f"llama.cpp answers with tokens that transformers finds less likely: {behind}"
        decided += int((best - second > 2 * TIE * by_transformers.std()).sum())
    return decided


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
def test_a_bias_that_llama_cpp_does_not_read_is_refused(family: str) -> None:
    from transformers import AutoConfig

    names = {"qwen3": "self_attn.q_proj", "qwen2": "self_attn.o_proj"}

    with pytest.raises(Unsupported, match=r"llama\.cpp reads no tensor model\.layers\.0\.self_attn\..*_proj\.bias"):
        lay_out(AutoConfig.for_model(family), {f"model.layers.0.{names[family]}.bias": (64,)}, Dtype.Q8_0)


@pytest.mark.parametrize(
    ("family", "changes", "problem"),
    [
        ("gemma2", {"attn_logit_softcapping": None}, "it has no attn_logit_softcapping or final_logit_softcapping"),
        ("gemma2", {"final_logit_softcapping": None}, "it has no attn_logit_softcapping or final_logit_softcapping"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "it has an attn_logit_softcapping"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "it has use_bidirectional_attention"),
        ("gemma2", {"layer_types": ["full_attention"] * 26}, r"full attention in every layer no\. 2 only"),
        ("gemma3_text", {"layer_types": ["sliding_attention"] * 26}, r"full attention in every layer no\. 6 only"),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0}}},
            "it scales RoPE in layers with a sliding window",
        ),
        ("gemma2", {"query_pre_attn_scalar": 128}, "its query_pre_attn_scalar is 128, but llama.cpp uses 256"),
        ("gemma3_text", {"num_hidden_layers": 62}, "its query_pre_attn_scalar is 256, but llama.cpp uses 288"),
        ("gemma2", {"hidden_activation": "silu"}, "the activation function 'silu' is not gelu_pytorch_tanh"),
        ("gemma3_text", {"rope_parameters": {"full_attention": YARN}}, "the RoPE type 'yarn' is not one of default"),
        ("qwen3", {"rope_parameters": LLAMA3}, "the RoPE type 'llama3' is not one of default"),
        ("llama", {"rope_parameters": {**YARN, "beta_fast": 16}}, "its YaRN has beta_fast 16 and beta_slow 1, but"),
        ("qwen2", {"rope_parameters": {**YARN, "truncate": False}}, "its YaRN has truncate false"),
        ("llama", {"rope_parameters": {**YARN, "rope_type": "dynamic"}}, "the RoPE type 'dynamic' is not one of"),
        ("phi3", {"head_dim": 64}, "its heads are not as wide together as its layers"),
    ],
)
def test_a_model_that_llama_cpp_computes_otherwise_is_refused(
    family: str, changes: dict[str, Any], problem: str
) -> None:
    from transformers import AutoConfig

    with pytest.raises(Unsupported, match=problem):
        lay_out(AutoConfig.for_model(family, **changes), {}, Dtype.Q8_0)


def test_the_largest_gemmas_scale_queries_by_the_mean_size_of_a_head() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=62, query_pre_attn_scalar=288)

    assert lay_out(config, {}, Dtype.Q8_0).context_length == config.max_position_embeddings

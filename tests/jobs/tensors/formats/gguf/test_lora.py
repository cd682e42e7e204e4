"""Adapters in GGUF: llama.cpp and transformers add to the base's file what peft adds."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models import loading
from edgetune_jobs.models.quantization.gguf_adapter import BASE_SHA256, HEAD_BYTES, wrong_base
from edgetune_jobs.models.quantization.gguf_loading import ADAPTER_FILE, BASE_FILE
from edgetune_jobs.store.files import Fingerprint, fingerprint
from edgetune_jobs.tensors.formats.gguf.layout import Dtype, GgufLayout, GgufTensor, lay_out
from edgetune_jobs.tensors.formats.gguf.lora import write_adapter
from edgetune_jobs.tensors.merged_rows import LoraMatrices
from support.edge_models import FAMILIES, make_model, write_gguf
from support.gguf_adapters import make_adapter, write_pair
from support.llama_cpp import packages_of_llama_cpp, run_llama_cpp

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
# As in test_gguf.py: what the Q8_0 activations of llama.cpp cost in these random models.
CLOSE = 0.09
# The matrices are in float16.
ROUNDED = 0.01
FAR = 0.3


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).pow(2).mean().sqrt() / expected.std())


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return torch.as_tensor(model(ids[None]).logits[0]).float()


def by_peft(base: Path, adapter: Path) -> Any:
    """The base as its GGUF file has it, with the adapter by peft."""
    from peft import PeftModel

    return PeftModel.from_pretrained(loading.load_stored(base, CPU), adapter).eval()


OPTIONS: dict[str, dict[str, Any]] = {
    **{family: {} for family in FAMILIES},
    "llama rank-stabilized": {"use_rslora": True, "lora_alpha": 56},
    "llama patterns": {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"down_proj": 300, "k_proj": 20}},
    "llama some-layers": {"target_modules": ["q_proj", "k_proj"], "lora_alpha": 400},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_llama_cpp_adds_the_adapter_that_peft_adds(case: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", case if case in FAMILIES else "llama")
    adapter = make_adapter(tmp_path / "adapter", model, **OPTIONS[case])
    base = write_gguf(model, tmp_path / "base").parent
    pair = write_pair(model, adapter, tmp_path / "pair")
    ids = torch.randint(4, 340, (60,), generator=torch.Generator().manual_seed(1))
    expected = logits(by_peft(base, adapter), ids)
    assert difference(logits(loading.load_stored(base, CPU), ids), expected) > FAR

    assert difference(logits(loading.load_stored(pair, CPU), ids), expected) < ROUNDED
    found = run_llama_cpp(
        pair / BASE_FILE, lora=pair / ADAPTER_FILE, prompts=[ids.tolist()], max_new_tokens=1, context=256
    )
    assert difference(torch.tensor(found["logits"][0]), expected) < CLOSE


# Loads two adapters beside one base, and computes logits with the first, the second, and none of them.
_SWAP = """
import ctypes, json, sys
import llama_cpp
base, adapters, ids = json.load(sys.stdin)
model = llama_cpp.Llama(base, n_ctx=128, n_threads=1, logits_all=True, verbose=False)
loaded = [llama_cpp.llama_adapter_lora_init(model.model, each.encode()) for each in adapters]
pointers = (llama_cpp.llama_adapter_lora_p_ctypes * 2)(*loaded)
def logits(*scales):
    assert llama_cpp.llama_set_adapters_lora(model.ctx, pointers, 2, (ctypes.c_float * 2)(*scales)) == 0
    model.reset()
    model.eval(ids)
    return model.scores[: len(ids)].tolist()
json.dump([logits(1, 0), logits(0, 1), logits(0, 0)], sys.stdout)
"""


def test_adapters_are_swapped_while_the_base_stays_loaded(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama")
    pairs = [
        write_pair(
            model, make_adapter(tmp_path / f"adapter-{targets}", model, target_modules=[targets]), tmp_path / targets
        )
        for targets in ("q_proj", "down_proj")
    ]
    ids = list(range(5, 25))
    request = [str(pairs[0] / BASE_FILE), [str(pair / ADAPTER_FILE) for pair in pairs], ids]

    done = subprocess.run(
        [sys.executable, "-c", _SWAP],
        input=json.dumps(request),
        env={**os.environ, "PYTHONPATH": str(packages_of_llama_cpp())},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    base = run_llama_cpp(pairs[0] / BASE_FILE, prompts=[ids], max_new_tokens=1)
    alone = [
        run_llama_cpp(pair / BASE_FILE, lora=pair / ADAPTER_FILE, prompts=[ids], max_new_tokens=1) for pair in pairs
    ]
    assert json.loads(done.stdout) == [each["logits"][0] for each in (*alone, base)]
    assert alone[0]["logits"] != alone[1]["logits"] != base["logits"]


def test_an_adapter_of_zeros_changes_nothing(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama")
    adapter = make_adapter(tmp_path / "adapter", model, lora_alpha=0)
    ids = torch.arange(5, 25)

    pair = write_pair(model, adapter, tmp_path / "pair")

    base = write_gguf(model, tmp_path / "base").parent
    assert torch.equal(logits(loading.load_stored(pair, CPU), ids), logits(loading.load_stored(base, CPU), ids))


def layout_of(rows: int, columns: int) -> GgufLayout:
    tensor = GgufTensor("blk.0.attn_output.weight", (rows, columns), Dtype.Q8_0)
    return GgufLayout("llama", None, Dtype.Q8_0, {"o_proj.weight": tensor})


def test_the_file_names_its_base_and_is_the_same_for_the_same_adapter(tmp_path: Path) -> None:
    import gguf

    matrices = {"o_proj.weight": LoraMatrices(torch.ones(2, 32), torch.ones(64, 2), scale=1.5)}
    for name in ("one", "other"):
        write_adapter(tmp_path / name, layout_of(64, 32), matrices, "sensor-faults", "a" * 64)

    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "other")
    reader = gguf.GGUFReader(tmp_path / "one")
    values = {name: field.contents() for name, field in reader.fields.items()}
    assert values[BASE_SHA256] == "a" * 64
    assert (values["general.type"], values["adapter.type"], values["adapter.lora.alpha"]) == ("adapter", "lora", 3.0)
    assert values["general.name"] == "sensor-faults"
    first, second = reader.tensors
    assert (first.name, second.name) == ("blk.0.attn_output.weight.lora_a", "blk.0.attn_output.weight.lora_b")
    assert first.data.dtype == second.data.dtype == numpy.float16


def test_a_value_that_float16_does_not_have_is_refused_with_its_weight(tmp_path: Path) -> None:
    matrices = {"o_proj.weight": LoraMatrices(torch.ones(2, 32), torch.full((64, 2), 1e6), scale=1.0)}

    with pytest.raises(InvalidInput, match=r"the adapter of o_proj\.weight has a value that is too large for float16"):
        write_adapter(tmp_path / "file", layout_of(64, 32), matrices, "x", "a" * 64)


def test_an_adapter_fits_only_the_base_that_its_file_names(tmp_path: Path) -> None:
    matrices = {"o_proj.weight": LoraMatrices(torch.ones(2, 32), torch.ones(64, 2), scale=1.0)}
    write_adapter(tmp_path / ADAPTER_FILE, layout_of(64, 32), matrices, "x" * 63, "a" * 64)
    head = (tmp_path / ADAPTER_FILE).read_bytes()[:HEAD_BYTES]
    adapter = fingerprint(tmp_path / ADAPTER_FILE).entry(ADAPTER_FILE)
    own, other = (Fingerprint(9, digit * 64).entry(BASE_FILE) for digit in "ab")

    assert wrong_base(head, [adapter, own]) == ""
    assert wrong_base(head, [adapter, other]) == (
        f"adapter.gguf is for another base, with SHA-256 {'a' * 64}: base.gguf has {'b' * 64}"
    )
    assert wrong_base(head, [adapter]) == "adapter.gguf has no base.gguf beside it"
    assert "SHA-256 unknown" in wrong_base(b"GGUF", [adapter, own])


def test_an_adapter_of_rank_16_for_smollm2_is_at_most_3_percent_of_the_model(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49_152}
    config = LlamaConfig(**sizes, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)
    with torch.device("meta"):
        shapes = {name: tuple(each.shape) for name, each in LlamaForCausalLM(config).state_dict().items()}
    layout = lay_out(config, {name: shape for name, shape in shapes.items() if name != "lm_head.weight"})
    matrices = {
        name: LoraMatrices(torch.ones(16, shape[1]), torch.ones(shape[0], 16), scale=2.0)
        for name, shape in shapes.items()
        if ".self_attn." in name
    }
    assert len(matrices) == 4 * 30

    write_adapter(tmp_path / "adapter", layout, matrices, "sensor-faults", "a" * 64)

    whole = sum(tensor.bytes for tensor in layout.tensors.values())
    assert (tmp_path / "adapter").stat().st_size <= 0.03 * whole

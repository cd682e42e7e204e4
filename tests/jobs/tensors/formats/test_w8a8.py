"""W8A8 of compressed-tensors: the files, and the model that transformers loads from them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models import loading
from edgetune_jobs.tensors.formats import w8a8
from edgetune_jobs.tensors.formats.int8_arithmetic import quantize_w8a8
from support.edge_models import FAMILIES, make_model, write_w8a8

CPU = torch.device("cpu")
# Root mean square of the difference, relative to that of the logits: weights and activations have 8 bits.
CLOSE = 0.12
IDS = torch.arange(10, 70)[None]


def logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return loading.load_stored(folder, CPU)(IDS).logits[0].float()


@pytest.mark.parametrize("family", [family for family in FAMILIES if "rope" not in family])
def test_transformers_computes_nearly_the_same_logits(family: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", family)
    edge = write_w8a8(model, tmp_path / "edge")

    expected = logits(model)

    difference = (logits(edge) - expected).pow(2).mean().sqrt() / expected.std()
    assert 0.001 < difference < CLOSE


def test_a_model_in_float16_runs_in_float32_on_a_cpu(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama", dtype="float16")
    edge = write_w8a8(model, tmp_path / "edge")

    loaded = loading.load_stored(edge, CPU)
    with torch.inference_mode():
        computed = loaded(IDS).logits

    assert computed.dtype is torch.float32
    assert torch.float16 not in {tensor.dtype for tensor in loaded.state_dict().values()}
    expected = logits(model)
    assert (computed[0] - expected).pow(2).mean().sqrt() / expected.std() < CLOSE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_each_row_has_one_scale_and_int8_multiples_of_it(dtype: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "llama", dtype=dtype)
    stored = load_file(model / "model.safetensors")
    written = load_file(write_w8a8(model, tmp_path / "edge") / "model.safetensors")

    for name, weight in stored.items():
        if "proj" not in name:
            assert torch.equal(written[name], weight), name
            continue
        scales, numbers = written[f"{name}_scale"], written[name]
        assert (scales.shape, scales.dtype) == ((len(weight), 1), weight.dtype)
        assert torch.equal(scales, (weight.float().abs().amax(1, keepdim=True) / 127).to(weight.dtype))
        expected = torch.round(weight.float() / scales.float()).clamp(-127, 127)
        assert numbers.dtype == torch.int8
        assert torch.equal(numbers.float(), expected)
    assert len(written) == len(stored) + sum("proj" in name for name in stored)


def test_a_model_in_several_files_can_be_loaded(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", "qwen3")
    whole = write_w8a8(model, tmp_path / "whole")

    parts = write_w8a8(model, tmp_path / "parts", max_file_bytes=60_000)

    assert len(list(parts.glob("*.safetensors"))) > 2
    assert torch.equal(logits(parts), logits(whole))


def test_the_configuration_is_that_of_compressed_tensors() -> None:
    from compressed_tensors.quantization import QuantizationConfig

    written = w8a8.quantization_config()
    described = {name: value for name, value in written.items() if name != "version"}
    read = json.loads(QuantizationConfig.model_validate(described).model_dump_json())

    group = read["config_groups"]["group_0"]
    assert (group["weights"]["strategy"], group["input_activations"]["strategy"]) == ("channel", "token")
    assert (group["weights"]["num_bits"], group["input_activations"]["dynamic"]) == (8, True)
    assert (read["format"], read["quantization_status"], read["ignore"]) == ("int-quantized", "compressed", ["lm_head"])


def test_rows_of_zeros_stay_zeros() -> None:
    rows = torch.zeros(3, 8)
    rows[1] = 1e-45  # too small for a scale

    numbers = torch.empty(3, 8, dtype=torch.int8)
    scales = quantize_w8a8("weight", rows, numbers)

    assert torch.equal(numbers, torch.zeros(3, 8, dtype=torch.int8))
    assert scales.tolist() == [[1], [1], [1]]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(InvalidInput, match=r"mlp\.up_proj\.weight contains NaN or infinity"):
        quantize_w8a8("mlp.up_proj.weight", torch.tensor([[1.0, value]]), torch.empty(1, 2, dtype=torch.int8))

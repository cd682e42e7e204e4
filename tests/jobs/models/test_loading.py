"""Loading models and tokenizers: what is refused, and with which message."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgetune_contract.spec import MergeBase, Method
from edgetune_contract.training import Precision
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models import loading
from edgetune_jobs.models.tuned_model import load_tuned
from support.families import make_adapter

CPU = torch.device("cpu")


@pytest.fixture
def copy(random_base: Path, tmp_path: Path) -> Path:
    """A copy of the random base, to be damaged."""
    return Path(shutil.copytree(random_base, tmp_path / "copy"))


def _edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_pickled_weights_are_not_loaded(copy: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()

    with pytest.raises(InvalidInput, match=r"cannot load the model in copy: .*safetensors"):
        loading.load_base(copy, torch.float32, CPU)


def test_a_missing_weight_is_refused_instead_of_filled_with_random_numbers(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(InvalidInput, match=r"incomplete: 1 weight is missing \(first: model\.layers\.1\.mlp\.up_proj"):
        loading.load_base(copy, torch.float32, CPU)


def test_a_weight_of_another_shape_is_refused(copy: Path) -> None:
    _edit(copy / "config.json", lambda config: config.update(vocab_size=1024))

    with pytest.raises(InvalidInput, match=r"has shape \[774, 128\], expected \[1024, 128\]"):
        loading.load_base(copy, torch.float32, CPU)


def test_a_truncated_file_is_refused(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(InvalidInput, match="cannot load the model in copy"):
        loading.load_base(copy, torch.float32, CPU)


def test_code_of_a_model_folder_is_not_run(copy: Path) -> None:
    def ask_for_code(config: dict[str, object]) -> None:
        config.update(model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})

    _edit(copy / "config.json", ask_for_code)
    (copy / "own.py").write_text("raise SystemExit('the code was run')")

    with pytest.raises(InvalidInput, match="cannot load the model"):
        loading.load_base(copy, torch.float32, CPU)


def test_the_pad_token_is_the_tokenizers_own(random_base: Path) -> None:
    assert loading.load_tokenizer(random_base).pad_token == "<pad>"


def test_a_tokenizer_without_pad_token_gets_a_spare_token_if_it_has_one(copy: Path) -> None:
    _edit(copy / "tokenizer_config.json", lambda config: config.pop("pad_token"))

    assert loading.load_tokenizer(copy).pad_token == "<pad>"


def test_a_tokenizer_without_a_spare_token_pads_with_eos(copy: Path) -> None:
    _edit(copy / "tokenizer_config.json", lambda config: config.pop("pad_token"))
    tokenizer = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").write_text(tokenizer.replace('"<pad>"', '"<other>"'))

    assert loading.load_tokenizer(copy).pad_token == "</s>"


def test_a_spare_token_outside_the_embedding_is_not_used(copy: Path) -> None:
    _edit(copy / "tokenizer_config.json", lambda config: config.pop("pad_token"))
    _edit(copy / "config.json", lambda config: config.update(vocab_size=2, pad_token_id=None))

    assert loading.load_tokenizer(copy).pad_token == "</s>"


def test_a_tokenizer_without_eos_is_refused(copy: Path) -> None:
    _edit(copy / "tokenizer_config.json", lambda config: config.pop("eos_token"))

    with pytest.raises(InvalidInput, match="no eos_token"):
        loading.load_tokenizer(copy)


def test_auto_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_bf16, expected in ((True, Precision.BF16), (False, Precision.FP32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has_bf16: {"avx512_bf16": has})
        assert loading.resolve_precision(Precision.AUTO, CPU) is expected
    gpu = torch.device("cuda")
    for has_bf16, expected in ((True, Precision.BF16), (False, Precision.FP16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bf16, **_: has)
        assert loading.resolve_precision(Precision.AUTO, gpu) is expected
    with pytest.raises(InvalidInput, match="this GPU does not support BF16"):
        loading.resolve_precision(Precision.BF16, gpu)


def test_a_gpu_without_bf16_is_said() -> None:
    described = [
        loading.describe_precision(requested, resolved)
        for requested, resolved in (
            (Precision.AUTO, Precision.FP16),
            (Precision.FP16, Precision.FP16),
            (Precision.AUTO, Precision.BF16),
        )
    ]

    assert described == ["FP16: this GPU does not support BF16", "FP16", "BF16"]


def test_of_several_gpus_a_process_uses_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)

    assert loading.choose_device() == torch.device("cuda", 0)


IDS = torch.tensor([[5, 99, 300, 41]])


def _in_float16(base: Path, folder: Path) -> Path:
    """A copy of a model in float16, like a merged model that was trained on a GPU without bfloat16."""
    loading.load_base(base, torch.float16, CPU).save_pretrained(folder)
    return folder


def test_float16_becomes_float32_on_a_cpu(random_base: Path, tmp_path: Path) -> None:
    folder = _in_float16(random_base, tmp_path / "merged")

    stored, run = loading.load_merged(folder, CPU), loading.load_stored(folder, CPU)

    assert (stored.dtype, run.dtype) == (torch.float16, torch.float32)
    for name, weight in stored.state_dict().items():
        assert torch.equal(weight.float(), run.state_dict()[name]), name


def test_float16_tensors_of_an_int8_model_become_float32_on_a_cpu(random_base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    folder, config = _in_float16(random_base, tmp_path / "merged"), BitsAndBytesConfig(load_in_8bit=True)
    edge = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype="auto", device_map={"": "cpu"}
    )
    edge.save_pretrained(tmp_path / "edge")

    loaded = loading.load_stored(tmp_path / "edge", CPU)

    assert {weight.dtype for weight in loaded.parameters()} == {torch.int8, torch.float32}
    assert loaded(IDS).logits.dtype is torch.float32


def test_other_dtypes_are_kept(random_base: Path, tmp_path: Path) -> None:
    loading.load_base(random_base, torch.bfloat16, CPU).save_pretrained(tmp_path / "merged")

    assert loading.load_stored(tmp_path / "merged", CPU).dtype is torch.bfloat16
    assert loading.load_stored(random_base, CPU).dtype is torch.float32


@pytest.mark.parametrize("merge_base", MergeBase)
def test_an_adapter_trained_in_float16_runs_in_float32_on_a_cpu(
    random_base: Path, tmp_path: Path, merge_base: MergeBase
) -> None:
    adapter = make_adapter(
        tmp_path / "adapter",
        random_base,
        method=Method.QLORA,
        base_dtype="float16",
        dtype="float32",
        target_modules="all-linear",
    )

    tuned = load_tuned(random_base, adapter, merge_base, CPU)

    assert {weight.dtype for weight in tuned.parameters()} == {torch.float32}
    held = loading.load_base(random_base, torch.float16, CPU)
    if merge_base is MergeBase.AS_TRAINED:
        loading.round_to_nf4(held)
    name = "model.layers.0.self_attn.q_proj"
    assert torch.equal(
        tuned.get_base_model().get_submodule(f"{name}.base_layer").weight, held.get_submodule(name).weight.float()
    )

"""Loading models and tokenizers: what is refused, and with which words."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from edgetune_contract.spec import Precision
from edgetune_jobs import models
from edgetune_jobs.errors import InvalidInput

CPU = torch.device("cpu")


@pytest.fixture
def copy(random_base: Path, tmp_path: Path) -> Path:
    """A copy of the random base, to be damaged."""
    return Path(shutil.copytree(random_base, tmp_path / "copy"))


def _edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_weights_in_pickles_are_not_loaded(copy: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()

    with pytest.raises(InvalidInput, match=r"the model in copy does not load: .*safetensors"):
        models.load_base(copy, torch.float32, CPU)


def test_a_missing_weight_is_refused_instead_of_filled_with_random_numbers(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(InvalidInput, match=r"incomplete: 1 weights .* the first is model\.layers\.1\.mlp\.up_proj"):
        models.load_base(copy, torch.float32, CPU)


def test_a_weight_of_another_shape_is_refused(copy: Path) -> None:
    _edit(copy / "config.json", lambda config: config.update(vocab_size=1024))

    with pytest.raises(InvalidInput, match=r"is stored as \[774, 128\], and config.json asks for \[1024, 128\]"):
        models.load_base(copy, torch.float32, CPU)


def test_a_cut_file_is_refused(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(InvalidInput, match="the model in copy does not load"):
        models.load_base(copy, torch.float32, CPU)


def test_code_of_a_model_folder_is_not_run(copy: Path) -> None:
    def ask_for_code(config: dict[str, object]) -> None:
        config.update(model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})

    _edit(copy / "config.json", ask_for_code)
    (copy / "own.py").write_text("raise SystemExit('the code was run')")

    with pytest.raises(InvalidInput, match="does not load"):
        models.load_base(copy, torch.float32, CPU)


def test_the_pad_token_is_the_tokenizers_own(random_base: Path) -> None:
    assert models.load_tokenizer(random_base).pad_token == "<pad>"


def test_a_tokenizer_without_pad_token_gets_a_spare_one_before_eos(copy: Path) -> None:
    _edit(copy / "tokenizer_config.json", lambda config: config.pop("pad_token"))

    assert models.load_tokenizer(copy).pad_token == "<pad>"


def test_a_tokenizer_with_no_spare_token_pads_with_eos(copy: Path) -> None:
    _edit(copy / "tokenizer_config.json", lambda config: config.pop("pad_token"))
    tokenizer = (copy / "tokenizer.json").read_text()
    (copy / "tokenizer.json").write_text(tokenizer.replace('"<pad>"', '"<other>"'))

    assert models.load_tokenizer(copy).pad_token == "</s>"


def test_a_tokenizer_without_eos_is_refused(copy: Path) -> None:
    _edit(copy / "tokenizer_config.json", lambda config: config.pop("eos_token"))

    with pytest.raises(InvalidInput, match="no eos_token"):
        models.load_tokenizer(copy)


def test_auto_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_bf16, expected in ((True, Precision.BF16), (False, Precision.FP32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has_bf16: {"avx512_bf16": has})
        assert models.resolve_precision(Precision.AUTO, CPU) is expected
    gpu = torch.device("cuda")
    for has_bf16, expected in ((True, Precision.BF16), (False, Precision.FP16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has_bf16, **_: has)
        assert models.resolve_precision(Precision.AUTO, gpu) is expected
    with pytest.raises(InvalidInput, match="this GPU has no bfloat16"):
        models.resolve_precision(Precision.BF16, gpu)


def test_several_gpus_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)

    with pytest.raises(InvalidInput, match=r"4 are visible: .* CUDA_VISIBLE_DEVICES"):
        models.choose_device()

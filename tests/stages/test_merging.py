"""merge and quantize refuse adapters that do not fit and weights out of range before they write anything."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput, TrainingDiverged
from edgetune_jobs.models.adapters import adapter_layers
from edgetune_jobs.stages import merge, quantize
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters, train

pytestmark = pytest.mark.usefixtures("two_threads")

Tensors = dict[str, torch.Tensor]
LAYER = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def good_adapter(tmp_path_factory: pytest.TempPathFactory, random_base: Path, few_rows: Path) -> Path:
    parameters = tiny_parameters(lora={"targetModules": "Standard"}, training={"maxSteps": 1, "warmupRatio": 0})
    return train(tmp_path_factory.mktemp("train") / "run", parameters, random_base, few_rows).adapter


@pytest.fixture
def adapter(good_adapter: Path, tmp_path: Path) -> Path:
    """A copy of a good adapter, for the test to damage."""
    return Path(shutil.copytree(good_adapter, tmp_path / "adapter"))


def _edit_weights(adapter: Path, change: Callable[[Tensors], Any]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(adapter / "adapter_model.safetensors")
    change(weights)
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})


def _edit_config(adapter: Path, **fields: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def _assert_refused(base: Path, adapter: Path, folder: Path, message: str) -> None:
    context = stage_context(Stage.MERGE, tiny_parameters(), folder / "merge", {"base": base, "adapter": adapter})
    with pytest.raises(InvalidInput, match=message):
        merge.run(context)
    assert not list(context.output.iterdir()), "no partial output"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.update({f"{LAYER}.lora_A.weight": torch.zeros(16, 64)}),
            r"q_proj has 128 inputs and 128 outputs, .* matrices have the shapes \(16, 64\) and \(128, 16\)",
        ),
        (
            lambda w: w.update({f"{LAYER}.lora_B.weight": torch.zeros(128, 8)}),
            r"matrices have the shapes \(16, 128\) and \(128, 8\)",
        ),
        (lambda w: w.pop(f"{LAYER}.lora_B.weight"), "missing tensor .*q_proj.lora_B.weight"),
        (lambda w: w.update({"base_model.model.extra": torch.zeros(2)}), "unexpected tensor .*extra"),
        (
            lambda w: w.update({f"{LAYER.replace('.0.', '.9.')}.lora_{m}.weight": torch.zeros(16, 16) for m in "AB"}),
            r"the base model has no layer model\.layers\.9",
        ),
        (
            lambda w: w.update(
                {f"{LAYER.replace('self_attn.q', 'mlp.up')}.lora_{m}.weight": torch.zeros(16, 16) for m in "AB"}
            ),
            r"has weights for a layer that is not in its target_modules: model\.layers\.0\.mlp\.up_proj",
        ),
        (
            lambda w: [w.pop(f"{LAYER}.lora_{m}.weight") for m in "AB"],
            r"has no weights for the target layer model\.layers\.0\.self_attn\.q_proj",
        ),
        (lambda w: w[f"{LAYER}.lora_A.weight"].fill_(float("nan")), "not finite in model.layers.0.self_attn.q_proj"),
        (
            lambda w: [w[f"{LAYER}.lora_{m}.weight"].fill_(3e38) for m in "AB"],
            r"cannot merge the adapter: model\.layers\.0\.self_attn\.q_proj\.weight would not be finite",
        ),
    ],
    ids=["inputs", "rank", "half", "unused", "unknown layer", "unnamed layer", "missing layer", "nan", "overflow"],
)
def test_an_adapter_whose_weights_do_not_match_the_base_is_refused(
    random_base: Path, adapter: Path, tmp_path: Path, change: Callable[[Tensors], Any], message: str
) -> None:
    _edit_weights(adapter, change)

    _assert_refused(random_base, adapter, tmp_path, message)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_dora": True}, "missing tensor .*lora_magnitude_vector"),
        ({"modules_to_save": ["lm_head"]}, "missing tensor .*lm_head"),
        ({"peft_type": "IA3"}, "is not a LoRA adapter"),
        ({"target_modules": "all-linear"}, "is not a LoRA adapter with a list of target modules"),
        ({"r": 8}, "have rank 16, but the config says 8"),
    ],
)
def test_an_adapter_whose_config_does_not_match_its_weights_is_refused(
    random_base: Path, adapter: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    _edit_config(adapter, **fields)

    _assert_refused(random_base, adapter, tmp_path, message)


def test_an_adapter_without_its_training_record_is_refused(random_base: Path, adapter: Path, tmp_path: Path) -> None:
    (adapter / "training.json").unlink()

    _assert_refused(random_base, adapter, tmp_path, r"no training\.json")


def test_an_invalid_training_record_is_refused(random_base: Path, adapter: Path, tmp_path: Path) -> None:
    (adapter / "training.json").write_text("{}")

    _assert_refused(random_base, adapter, tmp_path, r"training\.json is invalid")


def test_a_truncated_adapter_is_refused(random_base: Path, adapter: Path, tmp_path: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])

    _assert_refused(random_base, adapter, tmp_path, "cannot load the adapter")


def test_merging_into_the_original_base_changes_only_layers_with_an_adapter(
    random_base: Path, good_adapter: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    context = stage_context(
        Stage.MERGE,
        tiny_parameters(merge={"base": "Original"}),
        tmp_path,
        {"base": random_base, "adapter": good_adapter},
    )
    merge.run(context)

    before, after = load_file(random_base / "model.safetensors"), load_file(context.output / "merged/model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "self_attn" in name}


def test_merging_as_trained_rounds_all_layers_that_were_quantized_in_training(
    random_base: Path, good_adapter: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    context = stage_context(Stage.MERGE, tiny_parameters(), tmp_path, {"base": random_base, "adapter": good_adapter})
    merge.run(context)

    before, after = load_file(random_base / "model.safetensors"), load_file(context.output / "merged/model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}, "layers without an adapter too, but not the head"


def test_weights_beyond_the_range_of_float16_are_refused_before_quantizing(random_base: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    merged = Path(shutil.copytree(random_base, tmp_path / "merged"))
    weights = load_file(merged / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 4] = -70_000.0
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    context = stage_context(Stage.QUANTIZE, tiny_parameters(), tmp_path / "quantize", {"merged": merged})

    with pytest.raises(
        InvalidInput, match=r"model\.layers\.1\.mlp\.down_proj\.weight has a value of magnitude 70000, .* float16"
    ):
        quantize.run(context)
    assert not list(context.output.iterdir())


def test_the_edge_model_has_the_outlier_threshold_of_the_spec(random_base: Path, tmp_path: Path) -> None:
    parameters = tiny_parameters(quantization={"outlierThreshold": 3.5})
    context = stage_context(Stage.QUANTIZE, parameters, tmp_path, {"merged": random_base})

    quantize.run(context)

    config = json.loads((context.output / "edge-bnb-int8/config.json").read_text())
    assert config["quantization_config"]["llm_int8_threshold"] == 3.5


def test_tied_embeddings_are_not_quantized(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from support.tiny_model import make_tiny_base

    tied = make_tiny_base(tmp_path / "tied", pretrain_steps=0, tied=True, dtype="bfloat16")
    context = stage_context(Stage.QUANTIZE, tiny_parameters(), tmp_path / "quantize", {"merged": tied})

    quantize.run(context)

    edge = context.output / "edge-bnb-int8"
    weights = load_file(edge / "model.safetensors")
    assert "lm_head.weight" not in weights, "the head is the embedding"
    assert weights["model.embed_tokens.weight"].dtype is torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(edge)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("path", ["streaming", "library"])
def test_a_merge_that_changes_nothing_is_refused(random_base: Path, adapter: Path, tmp_path: Path, path: str) -> None:
    _edit_weights(adapter, lambda weights: weights.update({name: 0 * each for name, each in weights.items()}))
    if path == "library":
        _edit_config(adapter, layers_to_transform=[0, 1])

    context = stage_context(
        Stage.MERGE, tiny_parameters(), tmp_path / "merge", {"base": random_base, "adapter": adapter}
    )
    with pytest.raises(InvalidInput, match="nothing was merged: the merged weights of all 8 layers"):
        merge.run(context)


def test_layers_that_a_merge_does_not_change_are_named(random_base: Path, adapter: Path, tmp_path: Path) -> None:
    _edit_weights(
        adapter, lambda weights: weights.update({f"{LAYER}.lora_B.weight": 0 * weights[f"{LAYER}.lora_B.weight"]})
    )
    context = stage_context(
        Stage.MERGE, tiny_parameters(), tmp_path / "merge", {"base": random_base, "adapter": adapter}
    )

    (warning,) = merge.run(context).warnings

    assert warning.startswith(
        "merging changed nothing in 1 of the 8 layers with an adapter: model.layers.0.self_attn.q"
    )


def test_an_adapter_that_learned_nothing_or_is_not_finite_is_refused(adapter: Path) -> None:
    weights = adapter_layers.read_adapter_weights(adapter)
    zeros = {name: 0 * each if "lora_B" in name else each for name, each in weights.items()}
    one = {**weights, f"{LAYER}.lora_B.weight": zeros[f"{LAYER}.lora_B.weight"]}

    assert adapter_layers.check_learned(weights, 1) == ()
    with pytest.raises(InvalidInput, match="the adapter is all zeros after 1 step, so training changed nothing"):
        adapter_layers.check_learned(zeros, 1)
    with pytest.raises(TrainingDiverged, match=r"not finite after training: .*q_proj\.lora_A"):
        adapter_layers.check_learned({**weights, f"{LAYER}.lora_A.weight": torch.tensor([[torch.nan]])}, 1)
    (warning,) = adapter_layers.check_learned(one, 1)
    assert (
        warning
        == f"1 of the 8 layers with an adapter learned nothing, such as {LAYER.removeprefix('base_model.model.')}"
    )

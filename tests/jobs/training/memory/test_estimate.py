"""The estimated memory of a training: its parts, and how they depend on the spec."""

from typing import Any

import pytest

from edgetune_contract.spec import LoraSpec, Parameters
from edgetune_jobs.models.inspection import BaseModel, inspect_base, targeted_layers
from edgetune_jobs.models.quantization.coverage import nf4_coverage
from edgetune_jobs.models.skeleton import build_skeleton
from edgetune_jobs.store.sources.source import FolderSource, SourceKind
from edgetune_jobs.training.memory.activations import Activations
from edgetune_jobs.training.memory.estimate import TrainingMemory, Workload, trainable_parameters
from support.base_folder import make_base

LINEAR = 2 * (64 + 32 + 32 + 64 + 3 * 128)
OTHER = 400 * 8 + 8 + 2 * 8
FEATURES = 2 * (16 + 12 + 12 + 16 + 3 * 24)
ACTIVATIONS = Activations(layers=(300.0, 400.0), layer_input=16.0, outside=32.0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = make_base(tmp_path_factory.mktemp("base") / "model")
    return inspect_base(FolderSource(f"file://{folder}", "spec.baseModel", SourceKind.MODEL))


def estimate(base: BaseModel, longest: int = 100, *, method: str = "QLoRA", **training: Any) -> TrainingMemory:
    parameters = Parameters.model_validate(
        {
            "baseModel": {"uri": "file:///base"},
            "dataset": {"train": {"uri": "file:///data"}},
            "method": method,
            "lora": {"rank": 16, "targetModules": "AllLinear"},
            "training": {"microBatchSize": 4, "batchSize": 16, "maxLength": 512, **training},
        }
    )
    coverage = nf4_coverage(build_skeleton(base.folder))
    targets = targeted_layers(base, parameters.lora)
    return Workload(base, coverage, targets, parameters, longest, ACTIVATIONS).least()


def test_the_base_takes_4_bits_per_linear_weight_and_16_bits_per_other_weight(base: BaseModel) -> None:
    assert estimate(base).base == round(LINEAR * (4 + 0.127) / 8 + OTHER * 2)
    assert estimate(base, precision="FP32").base == round(LINEAR * (4 + 0.127) / 8 + OTHER * 4)
    assert estimate(base, method="LoRA").base == (LINEAR + OTHER) * 2
    assert (estimate(base).dequantized, estimate(base, method="LoRA").dequantized) == (128 * 2, 0)


def test_adapter_gradients_and_optimizer_depend_on_the_trainable_parameters(base: BaseModel) -> None:
    trainable = 16 * FEATURES
    assert (
        trainable_parameters(targeted_layers(base, LoraSpec.model_validate({"targetModules": "AllLinear"})), 16)
        == trainable
    )
    assert estimate(base).adapter == 2 * 4 * trainable
    assert estimate(base, optimizer="paged_adamw_8bit").optimizer == 2 * trainable
    assert estimate(base, optimizer="adamw_torch").optimizer == 8 * trainable
    assert estimate(base, optimizer="adafactor").optimizer == 4 * (FEATURES + 2 * 16 * 14)


def test_activations_depend_on_the_tokens_of_a_micro_batch(base: BaseModel) -> None:
    plain = estimate(base, gradientCheckpointing="Never")
    assert plain.activations == 4 * 100 * (300 + 400 + 32)
    assert estimate(base, gradientCheckpointing="Always").activations == 4 * 100 * (2 * 16 + 400 + 32)
    assert estimate(base, 200, gradientCheckpointing="Never").activations == 2 * plain.activations
    assert estimate(base, microBatchSize=8, gradientCheckpointing="Never").activations == 2 * plain.activations


def test_auto_is_estimated_at_the_least_that_a_training_takes(base: BaseModel) -> None:
    least = estimate(base, microBatchSize=1, gradientCheckpointing="Always", optimizer="adamw_torch_fused")

    assert estimate(base, microBatchSize="Auto", gradientCheckpointing="Auto", optimizer="Auto") == least


def test_packing_fills_sequences_to_the_maximum_length(base: BaseModel) -> None:
    assert estimate(base, layout="Packed") == estimate(base, 512)


def test_the_total_is_the_sum_and_logits_are_one_tile(base: BaseModel) -> None:
    memory = estimate(base)
    assert memory.logits == 400 * 400 * 4
    assert estimate(base, 100_000).logits == 4096 * 400 * 4
    assert memory.total == (
        memory.base + memory.dequantized + memory.adapter + memory.optimizer + memory.activations + memory.logits
    )

"""Layout, attention, micro-batch size and gradient checkpointing change how a step is computed, not what is learned."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from support import tiny_data
from support.edge_models import make_kind
from support.tiny_runs import TrainingRun, tiny_parameters, train

pytestmark = pytest.mark.usefixtures("two_threads")

BATCH = 6
TRAINING = {"maxSteps": 4, "batchSize": BATCH, "microBatchSize": BATCH, "maxLength": 256}
# In float32, sums in another order differ by less than this.
TOLERANCE = 2e-5
Runner = Callable[..., TrainingRun]


@pytest.fixture(scope="module")
def uneven_rows(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 1 to 6 sentences, so that padded rows are mostly padding."""
    from edgetune_jobs.models.loading import load_tokenizer

    examples = [
        replace(each, response=" ".join([each.response] * (1 + index % 6)))
        for index, each in enumerate(tiny_data.training_examples(14))
    ]
    folder = tmp_path_factory.mktemp("uneven") / "prepared"
    return tiny_data.write_prepared(folder, load_tokenizer(random_base), examples, tiny_data.held_out_examples(2))


@pytest.fixture
def run(tmp_path: Path, random_base: Path, uneven_rows: Path) -> Runner:
    """Trains four steps, the third of which has the two examples that the epoch has left."""
    count = 0

    def runner(base: Path = random_base, **sections: Any) -> TrainingRun:
        nonlocal count
        count += 1
        sections["training"] = TRAINING | sections.get("training", {})
        return train(tmp_path / f"run-{count}", tiny_parameters(**sections), base, uneven_rows)

    return runner


def _steps(run: TrainingRun, name: str) -> list[float]:
    lines = (run.adapter / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)[name] for line in lines]


@pytest.fixture(scope="module")
def padded(random_base: Path, uneven_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    """QLoRA on padded rows, each step in one forward pass without checkpointing."""
    training = {"maxSteps": 4, "batchSize": BATCH, "microBatchSize": BATCH, "maxLength": 256, "layout": "Padded"}
    return train(
        tmp_path_factory.mktemp("padded") / "run", tiny_parameters(training=training), random_base, uneven_rows
    )


@pytest.mark.parametrize(
    "training",
    [
        {"layout": "PaddingFree"},
        {"layout": "PaddingFree", "attention": "Sdpa"},
        {"layout": "PaddingFree", "microBatchSize": 1},
        {"layout": "PaddingFree", "microBatchSize": 4, "gradientCheckpointing": "Always"},
        {"layout": "Packed", "microBatchSize": 1},
        {"layout": "Packed", "microBatchSize": 2, "attention": "Sdpa"},
        {"layout": "Padded", "microBatchSize": 4},
        {"layout": "Padded", "gradientCheckpointing": "Always"},
        {"microBatchSize": "Auto", "gradientCheckpointing": "Auto"},
    ],
    ids=lambda training: " ".join(str(value) for value in training.values()),
)
def test_losses_and_gradient_norms_of_each_step_are_equal(
    run: Runner, padded: TrainingRun, training: dict[str, Any]
) -> None:
    result = run(training=training)

    for figure in ("loss", "gradientNorm"):
        assert _steps(result, figure) == pytest.approx(_steps(padded, figure), rel=TOLERANCE), figure


def test_batch_size_counts_examples_in_every_layout(run: Runner) -> None:
    for layout in ("PaddingFree", "Padded", "Packed"):
        result = run(training={"maxSteps": None, "epochs": 1, "layout": layout, "microBatchSize": 1})
        assert result.output.metrics["steps"] == 3, layout


def test_padding_free_rows_have_no_padding(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensor
    from transformers import LlamaModel

    forward, computed = LlamaModel.forward, 0

    def counted(self: Any, input_ids: Any = None, **kwargs: Any) -> Any:
        nonlocal computed
        # The memory of a step is measured on fake tensors, in a forward pass of its own.
        computed += input_ids.numel() if self.training and not isinstance(input_ids, FakeTensor) else 0
        return forward(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", counted)
    tokens = {}
    for layout in ("PaddingFree", "Padded", "Packed"):
        computed = 0
        run(training={"layout": layout, "microBatchSize": 1 if layout == "Packed" else BATCH})
        tokens[layout] = computed

    assert tokens["Packed"] == tokens["PaddingFree"] < 0.75 * tokens["Padded"]


def test_the_result_says_what_was_chosen(run: Runner) -> None:
    chosen = run(training={"microBatchSize": "Auto", "gradientCheckpointing": "Auto", "optimizer": "Auto"})
    asked = run(
        training={"layout": "Padded", "microBatchSize": 2, "gradientCheckpointing": "Always", "precision": "BF16"}
    )

    facts = chosen.output.facts
    assert (facts["layout"], facts["attention"], facts["optimizer"]) == ("PaddingFree", "Varlen", "adamw_torch_fused")
    assert facts["microBatchSize"].startswith("6 x 1 accumulated, chosen for ")
    assert facts["gradientCheckpointing"] == "no layer is recomputed"
    assert facts["activations"] == "measured"
    assert (
        asked.output.facts.items()
        >= {
            "layout": "Padded",
            "attention": "Sdpa",
            "microBatchSize": "2 x 3 accumulated",
            "gradientCheckpointing": "all layers are recomputed",
        }.items()
    )
    assert chosen.output.metrics["estimatedPeakMemoryBytes"] > 100e6


def test_a_model_that_mixes_joined_examples_is_trained_on_padded_rows_and_says_so(run: Runner, tmp_path: Path) -> None:
    sizes = {"vocab_size": 2048, "n_layer": 2, "n_head": 2}
    result = run(base=make_kind(tmp_path / "bloom", "bloom", **sizes), lora={"targetModules": ["query_key_value"]})

    assert result.output.facts["layout"] == "Padded"
    (warning,) = result.output.warnings
    assert warning == (
        "spec.training.layout: BloomForCausalLM mixes examples that are joined, so that its examples were padded "
        "instead"
    )


def test_a_model_without_gradient_checkpointing_is_trained_without_it(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)

    result = run(training={"gradientCheckpointing": "Auto"})

    assert result.output.facts["gradientCheckpointing"] == "no layer is recomputed"


def test_activations_are_measured_on_a_model_without_kernels_that_need_a_gpu(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from liger_kernel.transformers import LigerRMSNorm
    from transformers.models.llama import modeling_llama

    from edgetune_contract.training import Kernels
    from edgetune_jobs.training.kernels import liger

    def use(*_: Any) -> tuple[Kernels, str]:
        """On a GPU, Liger gives its norms also to models that are built later."""
        monkeypatch.setattr(modeling_llama, "LlamaRMSNorm", LigerRMSNorm)
        return Kernels.LIGER, ""

    monkeypatch.setattr(liger, "use_liger", use)

    result = run(training={"maxSteps": 1, "kernels": "Liger"})

    assert result.output.facts["kernels"] == "Liger"
    assert result.output.facts["activations"] == "measured"


def test_under_autocast_adapters_do_not_copy_their_inputs_to_float32_but_for_validations(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import Linear

    cast, seen = Linear._cast_input_dtype, set()

    def watched(self: Any, x: Any, dtype: Any) -> Any:
        result = cast(self, x, dtype)
        seen.add((self.training, x.dtype, result.dtype))
        return result

    monkeypatch.setattr(Linear, "_cast_input_dtype", watched)
    run(method="LoRA", training={"maxSteps": 1, "precision": "BF16", "evaluation": {"everySteps": 1}})

    assert seen == {(True, torch.bfloat16, torch.bfloat16), (False, torch.bfloat16, torch.float32)}


@pytest.mark.parametrize("method", ["LoRA", "QLoRA"])
def test_the_validation_loss_is_that_of_padded_rows_in_every_layout(run: Runner, method: str) -> None:
    losses = []
    for layout in ("Padded", "PaddingFree"):
        result = run(
            method=method,
            training={"layout": layout, "precision": "BF16", "evaluation": {"everySteps": 1}, "learningRate": 1e-4},
        )
        losses.append(_steps(result, "validationLoss"))

    assert losses[1] == pytest.approx(losses[0], rel=1e-2)

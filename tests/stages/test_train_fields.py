"""Every field of spec.training and spec.lora has an effect on the progress or the output of a short run."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune_contract.spec import BaseModelSpec, MergeBase
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.adapters.adapter_files import library_name
from edgetune_jobs.training.recipe import find_targets
from support.tiny_runs import BASE_URI, TrainingRun, tiny_parameters, train

ROWS = 24  # of the fixture few_rows

Runner = Callable[..., TrainingRun]


@pytest.fixture
def run(tmp_path: Path, random_base: Path, few_rows: Path) -> Runner:
    """Trains on the random base with changed sections of the spec; each call is a run of its own."""
    count = 0

    def runner(prepared: Path = few_rows, **sections: Any) -> TrainingRun:
        nonlocal count
        count += 1
        return train(tmp_path / f"run-{count}", tiny_parameters(**sections), random_base, prepared)

    return runner


def _same(first: TrainingRun, second: TrainingRun) -> bool:
    ours, theirs = first.weights(), second.weights()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _optimizer_state(run: TrainingRun) -> dict[str, Any]:
    newest = run.checkpoints.root / f"step-{run.checkpoints.steps()[-1]}"
    return dict(torch.load(newest / "optimizer.pt", weights_only=True))


def test_epochs_set_the_number_of_steps(run: Runner) -> None:
    result = run(training={"maxSteps": None, "epochs": 1.5, "batchSize": 8})

    assert result.output.metrics["steps"] == math.ceil(1.5 * ROWS / 8)
    assert result.output.metrics["epochs"] == pytest.approx(5 / 3)


def test_max_steps_override_epochs(run: Runner) -> None:
    result = run(training={"maxSteps": 2, "epochs": 100})

    assert [update["done"] for update in result.progress.updates] == [1, 2]
    assert {update["total"] for update in result.progress.updates} == {2}


def test_accumulated_micro_batches_give_the_same_step_as_one_batch(run: Runner) -> None:
    whole = run(training={"batchSize": 8, "microBatchSize": 8})
    accumulated = run(training={"batchSize": 8, "microBatchSize": 3})

    assert accumulated.output.facts["microBatchSize"] == "3 x 3 accumulated"
    assert accumulated.figures("loss") == pytest.approx(whole.figures("loss"), rel=1e-3)
    for name, weight in whole.weights().items():
        difference = (accumulated.weights()[name] - weight).abs().max()
        assert difference < 2e-3, f"{name} differs by {difference}, more than rounding explains"


def test_the_batch_size_sets_the_rows_of_each_step(run: Runner) -> None:
    small = run(training={"maxSteps": None, "epochs": 1, "batchSize": 4})
    large = run(training={"maxSteps": None, "epochs": 1, "batchSize": 12})

    assert (small.output.metrics["steps"], large.output.metrics["steps"]) == (ROWS / 4, ROWS / 12)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("linear", [1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [1, 1, *((1 + math.cos(math.pi * step / 4)) / 2 for step in (1, 2, 3))]),
        ("cosine_with_restarts", [1, 1, *((1 + math.cos(math.pi * step / 4)) / 2 for step in (1, 2, 3))]),
        ("polynomial", [1, 1, 0.75, 0.5, 0.25]),
        ("constant_with_warmup", [1, 1, 1, 1, 1]),
        ("constant", [1, 1, 1, 1, 1]),
    ],
)
def test_learning_rate_warmup_and_scheduler_set_the_rate_of_each_step(
    run: Runner, scheduler: str, expected: list[float]
) -> None:
    result = run(training={"maxSteps": 5, "learningRate": 0.004, "warmupRatio": 0.2, "scheduler": scheduler})

    rates = [rate / 0.004 for rate in result.figures("learningRate")]
    assert rates == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("scheduler", ["cosine", "polynomial"])
def test_a_warm_up_rises_in_equal_steps_from_above_0_to_the_full_rate(run: Runner, scheduler: str) -> None:
    result = run(training={"maxSteps": 5, "learningRate": 0.004, "warmupRatio": 0.7, "scheduler": scheduler})

    rates = [rate / 0.004 for rate in result.figures("learningRate")]
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("warmup_ratio", [0.03, 0.99])
def test_a_training_of_one_step_learns(run: Runner, warmup_ratio: float) -> None:
    result = run(training={"maxSteps": 1, "warmupRatio": warmup_ratio})

    assert result.figures("learningRate") == [0.005]
    assert all(weight.abs().max() > 0 for name, weight in result.weights().items() if "lora_B" in name)


@pytest.mark.parametrize("learning_rate", [1e-7, 1e-12])
def test_a_polynomial_of_a_small_rate_falls_as_that_of_a_large_one(run: Runner, learning_rate: float) -> None:
    training = {"maxSteps": 4, "warmupRatio": 0, "scheduler": "polynomial", "learningRate": learning_rate}

    rates = [rate / learning_rate for rate in run(training=training).figures("learningRate")]

    assert rates == pytest.approx([1, 0.75, 0.5, 0.25], abs=0.01)


def test_without_warmup_the_first_step_has_the_full_learning_rate(run: Runner) -> None:
    result = run(training={"maxSteps": 2, "warmupRatio": 0, "scheduler": "linear"})

    assert result.figures("learningRate") == pytest.approx([0.005, 0.0025])


@pytest.mark.parametrize(
    ("optimizer", "state"),
    [
        ("adamw_torch", {"exp_avg": torch.float32, "exp_avg_sq": torch.float32}),
        ("adamw_torch_fused", {"exp_avg": torch.float32, "exp_avg_sq": torch.float32}),
        ("adafactor", {"exp_avg_sq_row": torch.float32, "exp_avg_sq_col": torch.float32}),
        ("paged_adamw_32bit", {"state1": torch.float32, "state2": torch.float32}),
        ("adamw_8bit", {"state1": torch.uint8, "state2": torch.uint8}),
        ("paged_adamw_8bit", {"state1": torch.uint8, "state2": torch.uint8}),
    ],
)
def test_the_optimizer_of_the_spec_is_used(run: Runner, optimizer: str, state: dict[str, torch.dtype]) -> None:
    # bitsandbytes keeps tensors below 4,096 numbers in 32 bits: rank 32 makes them larger.
    result = run(lora={"rank": 32}, training={"maxSteps": 2, "optimizer": optimizer})

    kept = dict(_optimizer_state(result)["state"][0])
    kept |= kept.pop("__bnb_optimizer_quant_state__", {})
    assert {name: kept[name].dtype for name in state} == state
    assert result.output.facts["optimizer"].startswith(optimizer)
    assert all(math.isfinite(loss) for loss in result.figures("loss"))


def test_weight_decay_reaches_the_optimizer_and_the_weights(run: Runner) -> None:
    plain = run(training={"weightDecay": 0})
    decayed = run(training={"weightDecay": 0.5})

    assert {group["weight_decay"] for group in _optimizer_state(plain)["param_groups"]} == {0.0}
    assert 0.5 in {group["weight_decay"] for group in _optimizer_state(decayed)["param_groups"]}
    assert not _same(plain, decayed)


def test_the_gradient_norm_is_clipped(run: Runner) -> None:
    # A norm far below Adam's epsilon leaves nearly nothing of an update.
    clipped = run(training={"warmupRatio": 0, "maxGradNorm": 1e-12})
    free = run(training={"warmupRatio": 0, "maxGradNorm": 0})

    largest = {
        name: max(w.abs().max() for key, w in result.weights().items() if "lora_B" in key).item()
        for name, result in (("clipped", clipped), ("free", free))
    }
    assert largest["clipped"] < 1e-4 < 1e-3 < largest["free"], largest


def test_gradient_checkpointing_recomputes_activations_and_changes_no_result(
    run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._subclasses.fake_tensor import FakeTensor
    from transformers import LlamaModel

    plain = run()
    flags: list[bool] = []
    forward = LlamaModel.forward

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        # The memory of a step is measured on fake tensors, in a forward pass of its own.
        if self.training and not isinstance(kwargs.get("input_ids"), FakeTensor):
            flags.append(self.layers[0].gradient_checkpointing)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", watched)
    recomputed = run(training={"gradientCheckpointing": "Always"})

    assert flags
    assert all(flags), "gradient checkpointing was enabled in the layers"
    assert recomputed.figures("loss") == pytest.approx(plain.figures("loss"), rel=1e-5)


@pytest.mark.parametrize(("precision", "dtype"), [("BF16", "bfloat16"), ("FP32", "float32")])
def test_precision_sets_the_dtype_of_base_and_computation(run: Runner, precision: str, dtype: str) -> None:
    from edgetune_jobs.models.adapters.adapter_files import read_record

    result = run(method="LoRA", training={"precision": precision})

    record = read_record(result.adapter)
    assert (record.precision, record.base_dtype) == (precision, dtype)
    assert result.output.facts["precision"] == precision
    assert {weight.dtype for weight in result.weights().values()} == {torch.float32}


def test_lower_precision_gives_another_loss(run: Runner) -> None:
    assert run(training={"precision": "BF16"}).figures("loss") != run().figures("loss")


def test_fp16_without_a_gpu_is_refused(run: Runner) -> None:
    with pytest.raises(InvalidInput, match=r"spec\.training\.precision: FP16 requires a GPU"):
        run(training={"precision": "FP16"})


def test_equal_seeds_give_equal_files_and_other_seeds_do_not(run: Runner) -> None:
    first, second, other = run(lora={"dropout": 0.1}), run(lora={"dropout": 0.1}), run(training={"seed": 7})

    for name in ("adapter_model.safetensors", "adapter_config.json", "training.json"):
        assert (first.adapter / name).read_bytes() == (second.adapter / name).read_bytes(), name
    assert not _same(first, other)


def test_checkpoints_are_saved_at_the_interval_of_the_spec_and_at_the_end(run: Runner) -> None:
    assert run(training={"maxSteps": 5, "checkpoint": {"everySteps": 2}}).checkpoints.steps() == [2, 4, 5]


def test_qlora_trains_on_the_quantized_base_and_lora_on_the_stored_one(run: Runner) -> None:
    qlora, lora = run(method="QLoRA"), run(method="LoRA")

    assert qlora.output.metrics["firstLoss"] != lora.output.metrics["firstLoss"]
    assert qlora.output.metrics["firstLoss"] == pytest.approx(lora.output.metrics["firstLoss"], rel=0.1)


def test_dropout_changes_the_adapter(run: Runner) -> None:
    assert not _same(run(), run(lora={"dropout": 0.5}))


@pytest.mark.parametrize(("rs_lora", "scale"), [(False, 64 / 4), (True, 64 / math.sqrt(4))])
def test_rank_alpha_and_rslora_set_shape_and_scale_of_the_adapter(
    run: Runner, random_base: Path, rs_lora: bool, scale: float
) -> None:
    from edgetune_contract.spec import MergeBase
    from edgetune_jobs.models.loading import choose_device
    from edgetune_jobs.models.tuned_model import load_tuned

    result = run(method="LoRA", lora={"rank": 4, "alpha": 64, "rsLora": rs_lora, "targetModules": ["q_proj"]})

    assert all(4 in weight.shape for weight in result.weights().values())
    tuned = load_tuned(random_base, result.adapter, MergeBase.AS_TRAINED, choose_device())
    scales = {module.scaling["default"] for name, module in tuned.named_modules() if name.endswith("q_proj")}
    assert scales == {scale}


@pytest.mark.parametrize(
    ("target_modules", "expected"),
    [
        ("Minimal", {"q_proj", "v_proj"}),
        ("Standard", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("Aggressive", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("AllLinear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (["down_proj", "self_attn.q_proj"], {"down_proj", "q_proj"}),
    ],
)
def test_exactly_the_target_modules_get_an_adapter(run: Runner, target_modules: Any, expected: set[str]) -> None:
    result = run(method="LoRA", lora={"targetModules": target_modules}, training={"maxSteps": 1, "warmupRatio": 0})

    names = {name.split(".lora_")[0] for name in result.weights()}
    assert {name.rsplit(".", 1)[-1] for name in names} == expected
    assert len(names) == 2 * len(expected), "in each of the two layers"


@pytest.mark.parametrize("method", ["QLoRA", "LoRA"])
def test_packed_4_bit_weights_count_as_full_parameters(run: Runner, random_base: Path, method: str) -> None:
    from safetensors import safe_open

    result = run(method=method, training={"maxSteps": 1, "warmupRatio": 0})

    with safe_open(random_base / "model.safetensors", "pt") as weights:
        base = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    adapter = sum(weight.numel() for weight in result.weights().values())
    metrics = result.output.metrics
    assert (metrics["trainableParameters"], metrics["totalParameters"]) == (adapter, base + adapter)
    assert metrics["trainableShare"] == pytest.approx(adapter / (base + adapter))


@pytest.mark.parametrize(
    ("target_modules", "message"),
    [
        (["q_proj", "c_attn"], "no module 'c_attn'; use some of its linear layers: down_proj, gate_proj, k_proj"),
        (["q_proj", "lm_head"], "'lm_head' is the output head"),
        (["mlp"], r"'mlp' matches model\.layers\.0\.mlp of the base model, which is not a linear layer"),
        (["embed_tokens"], "'embed_tokens' matches model.embed_tokens of the base model, which is not a linear layer"),
    ],
)
def test_target_modules_that_cannot_have_an_adapter_are_refused(
    run: Runner, target_modules: list[str], message: str
) -> None:
    with pytest.raises(InvalidInput, match=rf"spec\.lora\.targetModules: .*{message}"):
        run(lora={"targetModules": target_modules})


def test_the_adapter_is_portable_and_has_a_card_of_its_own_and_no_pickles(run: Runner, tmp_path: Path) -> None:
    import json

    result = run()

    assert sorted(path.name for path in result.adapter.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "edgetune.json",
        "events.out.tfevents.edgetune",
        "generation_config.json",
        "metrics.jsonl",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    ]
    config = json.loads((result.adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == BASE_URI
    assert config["target_modules"] == sorted(config["target_modules"]), "the order of a set would change the bytes"
    assert str(tmp_path) not in (result.adapter / "adapter_config.json").read_text()
    assert "### Response" in (result.adapter / "chat_template.jinja").read_text()


def test_the_adapter_folder_loads_by_plain_peft_with_the_base_and_the_tokenizer(run: Runner, random_base: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    from edgetune_jobs.models.loading import choose_device
    from edgetune_jobs.models.tuned_model import load_tuned

    result = run(baseModel={"uri": random_base.as_uri()}, method="LoRA")

    theirs = AutoPeftModelForCausalLM.from_pretrained(result.adapter)
    ours = load_tuned(random_base, result.adapter, MergeBase.AS_TRAINED, choose_device())
    ids = torch.tensor([AutoTokenizer.from_pretrained(result.adapter)("pump 12 reports")["input_ids"]])
    with torch.inference_mode():
        assert torch.equal(theirs(ids).logits, ours(ids).logits)
        with theirs.disable_adapter():
            assert not torch.equal(theirs(ids).logits, ours(ids).logits), "the adapter is in use"


@pytest.mark.parametrize(
    ("base", "name", "revision"),
    [
        ({"uri": "hf://org/model", "revision": "0" * 40}, "org/model", "0" * 40),
        ({"uri": "file:///models/a%20b"}, "/models/a b", None),
        ({"uri": "s3://models/tiny"}, "s3://models/tiny", None),
    ],
)
def test_the_adapter_names_its_base_as_from_pretrained_takes_it(
    base: dict[str, str], name: str, revision: str | None
) -> None:
    spec = BaseModelSpec.model_validate(base)

    assert (library_name(spec), spec.revision or None) == (name, revision)


def test_progress_and_metrics_report_loss_and_speed(run: Runner) -> None:
    result = run(training={"maxSteps": 12})

    losses = result.figures("loss")
    metrics = result.output.metrics
    assert metrics["firstLoss"] == losses[0]
    assert metrics["loss"] == pytest.approx(sum(losses[-10:]) / 10)
    assert all(speed > 0 for speed in result.figures("tokensPerSecond"))
    assert metrics["tokensPerSecond"] > 0
    assert metrics["trainSeconds"] > 0
    assert metrics["peakMemoryBytes"] > 100e6


def test_a_base_without_linear_layers_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=64, n_layer=1, n_head=2))

    with pytest.raises(
        InvalidInput, match=r"^spec\.baseModel: GPT2LMHeadModel has no linear layers except its output head"
    ):
        find_targets(model, tiny_parameters().lora)

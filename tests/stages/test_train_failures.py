"""Training that fails: a loss or gradient that is not finite, out of GPU memory, unusable inputs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgetune_jobs.errors import InvalidInput, OutOfGpuMemory, TrainingDiverged
from edgetune_jobs.stage import StepSize
from edgetune_jobs.stages import train as stage
from support.edge_models import make_kind
from support.stage_context import FolderCheckpoints
from support.tiny_runs import new_run, tiny_parameters, train


def _with_infinite_weight(base: Path, folder: Path) -> Path:
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("inf")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_loss_that_is_not_finite_ends_training_with_its_step_and_saves_nothing(
    tmp_path: Path, random_base: Path, few_rows: Path
) -> None:
    base = _with_infinite_weight(random_base, tmp_path / "broken")
    run = new_run(tmp_path / "run", tiny_parameters(method="LoRA"), base, few_rows)

    with pytest.raises(
        TrainingDiverged, match=r"the loss is (nan|inf) at step 1 of 3 .*check the base model's weights"
    ):
        stage.run(run.context)

    assert run.checkpoints.steps() == []
    assert not list(run.context.output.iterdir())


def test_a_gradient_that_is_not_finite_ends_training_with_its_step(
    tmp_path: Path, random_base: Path, few_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import SFTTrainer

    step = SFTTrainer.training_step

    def overflowing(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = step(self, *args, **kwargs)
        if self.state.global_step == 1:
            next(p for p in self.model.parameters() if p.requires_grad).grad[0, 0] = float("inf")
        return loss

    monkeypatch.setattr(SFTTrainer, "training_step", overflowing)
    run = new_run(tmp_path / "run", tiny_parameters(method="LoRA"), random_base, few_rows)

    with pytest.raises(TrainingDiverged, match=r"gradient norm is (nan|inf) at step 2 of 3 .*lower spec\.training"):
        stage.run(run.context)


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)


def _out_of_memory_at(monkeypatch: pytest.MonkeyPatch, too_many: int, error: RuntimeError = OUT_OF_MEMORY[0]) -> None:
    """Simulate a GPU that runs out of memory in the backward pass with `too_many` examples; the tests need no GPU."""
    from trl import SFTTrainer

    step = SFTTrainer.training_step

    def limited(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        examples = len(inputs["cu_seq_lens_q"]) - 1
        loss = step(self, model, inputs, *args, **kwargs)
        if examples >= too_many:
            raise error
        return loss

    monkeypatch.setattr(SFTTrainer, "training_step", limited)


def _trained_tokens(checkpoints: FolderCheckpoints) -> float:
    state = json.loads((checkpoints.root / "step-3" / "trainer_state.json").read_text(encoding="utf-8"))
    return float(state["log_history"][-1]["num_tokens"])


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["torch", "cuBLAS"])
def test_a_step_that_runs_out_of_memory_is_computed_again_in_the_same_process(
    tmp_path: Path, random_base: Path, few_rows: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    small = tiny_parameters(method="LoRA", training={"batchSize": 12, "microBatchSize": 3})
    expected = train(tmp_path / "small", small, random_base, few_rows)
    _out_of_memory_at(monkeypatch, 5, error)
    parameters = tiny_parameters(method="LoRA", training={"batchSize": 12, "microBatchSize": 12})
    checkpoints = FolderCheckpoints(tmp_path / "checkpoints")

    result = train(tmp_path / "run", parameters, random_base, few_rows, checkpoints=checkpoints)

    assert result.output.facts["microBatchSize"] == (
        "3 x 4 accumulated, instead of 12 because the GPU ran out of memory with more"
    )
    assert [said for said in result.progress.said if "out of GPU memory" in said] == [
        f"out of GPU memory: the step is computed again with a micro-batch of {size}" for size in (6, 3)
    ]
    assert checkpoints.step_size == StepSize(micro_batch_size=3, recompute=0), "a later attempt begins with what fits"
    assert result.figures("loss") == expected.figures("loss")
    assert _trained_tokens(checkpoints) == _trained_tokens(expected.checkpoints), "no token counts twice"
    assert all(torch.equal(weight, expected.weights()[name]) for name, weight in result.weights().items())


def test_a_later_attempt_begins_with_the_micro_batch_that_fitted(
    tmp_path: Path, random_base: Path, few_rows: Path
) -> None:
    parameters = tiny_parameters(method="LoRA", training={"batchSize": 12, "microBatchSize": 12})
    checkpoints = FolderCheckpoints(tmp_path / "checkpoints", StepSize(micro_batch_size=3, recompute=0))

    result = train(tmp_path / "run", parameters, random_base, few_rows, checkpoints=checkpoints)

    assert result.output.facts["microBatchSize"].startswith("3 x 4 accumulated, instead of 12")


def test_with_auto_layers_are_recomputed_when_a_single_example_does_not_fit(
    tmp_path: Path, random_base: Path, few_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import SFTTrainer

    step = SFTTrainer.training_step

    def limited(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        if not model.get_base_model().model.layers[0].gradient_checkpointing:
            raise OUT_OF_MEMORY[0]
        return step(self, model, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "training_step", limited)
    parameters = tiny_parameters(method="LoRA", training={"microBatchSize": 1, "gradientCheckpointing": "Auto"})

    result = train(tmp_path / "run", parameters, random_base, few_rows)

    assert "recomputed" in result.output.facts["gradientCheckpointing"]
    assert result.output.facts["gradientCheckpointing"] != "no layer is recomputed"


def test_out_of_memory_outside_of_the_forward_passes_is_left_to_the_next_attempt(
    tmp_path: Path, random_base: Path, few_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_args: Any, **_kwargs: Any) -> None:
        raise OUT_OF_MEMORY[0]

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    checkpoints = FolderCheckpoints(tmp_path / "checkpoints")
    run = new_run(tmp_path / "run", tiny_parameters(method="LoRA"), random_base, few_rows, checkpoints=checkpoints)

    with pytest.raises(
        OutOfGpuMemory, match=r"of 4 examples of up to 128 tokens: the next attempt uses a micro-batch of 2"
    ):
        stage.run(run.context)

    assert checkpoints.step_size == StepSize(micro_batch_size=2, recompute=0)


def test_an_attempt_that_ran_out_of_memory_leaves_the_next_one_what_it_recomputes(
    tmp_path: Path, random_base: Path, few_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_args: Any, **_kwargs: Any) -> None:
        raise OUT_OF_MEMORY[0]

    parameters = tiny_parameters(method="LoRA", training={"microBatchSize": 1, "gradientCheckpointing": "Auto"})
    checkpoints = FolderCheckpoints(tmp_path / "checkpoints")
    first = new_run(tmp_path / "first", parameters, random_base, few_rows, checkpoints=checkpoints)
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(OutOfGpuMemory, match=r"the next attempt uses a micro-batch of 1 with .* recomputed"):
            stage.run(first.context)

    second = train(tmp_path / "second", parameters, random_base, few_rows, checkpoints=checkpoints)

    assert second.output.facts["gradientCheckpointing"].endswith("chosen after the GPU ran out of memory")
    assert not second.output.facts["gradientCheckpointing"].startswith("no layer")


def test_a_base_that_does_not_fit_is_invalid_with_advice(
    tmp_path: Path, random_base: Path, few_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgetune_jobs.models import loading

    def load(*_args: Any) -> None:
        raise OUT_OF_MEMORY[0]

    monkeypatch.setattr(loading, "load_base", load)
    run = new_run(tmp_path / "run", tiny_parameters(method="LoRA"), random_base, few_rows)

    with pytest.raises(InvalidInput, match=r"out of memory while the base model was loaded: use method: QLoRA"):
        stage.run(run.context)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["torch", "cuBLAS"])
def test_a_single_example_that_does_not_fit_is_invalid_with_advice(
    tmp_path: Path, random_base: Path, few_rows: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError
) -> None:
    _out_of_memory_at(monkeypatch, 1, error)
    checkpoints = FolderCheckpoints(tmp_path / "checkpoints")
    parameters = tiny_parameters(method="LoRA", training={"microBatchSize": 1})
    run = new_run(tmp_path / "run", parameters, random_base, few_rows, checkpoints=checkpoints)

    with pytest.raises(
        InvalidInput,
        match=r"micro-batch of 1 example .*, and there is no smaller one: lower spec\.training\.maxLength or "
        r"spec\.lora\.rank, "
        r"set spec\.training\.gradientCheckpointing: Auto, use method: QLoRA",
    ):
        stage.run(run.context)

    assert checkpoints.step_size is None


def test_a_single_example_that_no_longer_fits_is_retried_from_the_checkpoint(
    tmp_path: Path, random_base: Path, few_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl import SFTTrainer

    step = SFTTrainer.training_step

    def out_of_memory_at_step_2(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            raise OUT_OF_MEMORY[0]
        return step(self, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "training_step", out_of_memory_at_step_2)
    checkpoints = FolderCheckpoints(tmp_path / "checkpoints")
    parameters = tiny_parameters(method="LoRA", training={"microBatchSize": 1})
    run = new_run(tmp_path / "run", parameters, random_base, few_rows, checkpoints=checkpoints)

    with pytest.raises(
        OutOfGpuMemory, match=r"micro-batch of 1 example .*, although earlier steps fitted: the next attempt"
    ):
        stage.run(run.context)


def test_training_that_ends_after_its_deadline_by_its_pace_says_so_once_and_continues(
    tmp_path: Path, random_base: Path, few_rows: Path
) -> None:
    run = new_run(tmp_path / "run", tiny_parameters(method="LoRA", training={"maxSteps": 4}), random_base, few_rows)

    stage.run(replace(run.context, deadline=0.0))

    (late,) = [said for said in run.progress.said if "activeDeadlineSeconds" in said]
    assert late.startswith("training takes about ")
    assert late.endswith(
        " s more at the pace of its first steps, but spec.activeDeadlineSeconds ends the stage in at most 0 s; raise "
        "it for the next retry, which resumes from the newest checkpoint"
    )
    assert len(run.progress.updates) == 4


def test_an_unexpected_number_of_trainable_parameters_is_refused(
    tmp_path: Path, random_base: Path, few_rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulates a library that also trains a module which the spec does not name."""
    from edgetune_jobs.training import recipe

    def with_bias(*args: Any) -> Any:
        config = lora_config(*args)
        config.modules_to_save = ["norm"]
        return config

    lora_config = recipe.lora_config
    monkeypatch.setattr(recipe, "lora_config", with_bias)
    run = new_run(tmp_path / "run", tiny_parameters(method="LoRA"), random_base, few_rows)

    with pytest.raises(InvalidInput, match=r"parameters are trainable, but rank 16 on 14 layers requires"):
        stage.run(run.context)


def test_prepared_data_without_rows_is_refused(tmp_path: Path, random_base: Path) -> None:
    from edgetune_jobs.models.loading import load_tokenizer
    from support import tiny_data

    empty = tiny_data.write_prepared(tmp_path / "empty", load_tokenizer(random_base), [], [])

    with pytest.raises(InvalidInput, match=r"spec\.dataset\.train: there are no rows"):
        stage.run(new_run(tmp_path / "run", tiny_parameters(), random_base, empty).context)


def test_a_model_that_the_libraries_do_not_train_is_refused_with_their_reason(tmp_path: Path, few_rows: Path) -> None:
    base = make_kind(tmp_path / "base", "mamba", vocab_size=2048, state_size=16)

    with pytest.raises(InvalidInput, match=r"the libraries cannot train this model.*out_proj.*use another base model"):
        train(tmp_path / "run", tiny_parameters(), base, few_rows)

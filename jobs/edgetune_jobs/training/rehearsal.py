"""Rehearses in seconds what the libraries check at the start of training, on a model without weights.

The model is built on torch's meta device at its full size, gets the adapter, and goes through the trainer's
constructor. What a library refuses is then known before a GPU is requested. Only refusals of the libraries count:
anything else that fails may be due to the meta device, and is only said.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_contract.spec import Parameters
from edgetune_contract.training import GradientCheckpointing, Layout, Precision
from edgetune_jobs.errors import BASE_FIELD, InvalidInput
from edgetune_jobs.models.inspection import BaseModel
from edgetune_jobs.models.libraries import prepare_libraries
from edgetune_jobs.models.skeleton import build_skeleton
from edgetune_jobs.stage import OneRank
from edgetune_jobs.training import recipe
from edgetune_jobs.training.memory.step_fit import Lengths, StepFit
from edgetune_jobs.wording import some

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TARGETS_FIELD = "spec.lora.targetModules"
# The field that a message of peft, trl or transformers is about, by a word of the message.
_FIELDS = (
    ("target", _TARGETS_FIELD),
    ("checkpointing", "spec.training.gradientCheckpointing"),
    ("padding", "spec.training.layout"),
)
_ADVICE = {"spec.training.gradientCheckpointing": "set it to Never"}
_PEFT_PREFIX = re.compile(r"^\[PEFT:[^\]]*\]\s*")
_LONGEST_REASON = 300
_MOST_NAMES = 24


def rehearse_training(
    base: BaseModel, tokenizer: "PreTrainedTokenizerBase", parameters: Parameters, scratch: Path
) -> tuple[str, ...]:
    """Check that transformers, peft and trl accept the base model with this spec.

    Args:
        base: the model, whose configuration fits its tensors.
        tokenizer: the base's.
        parameters: of the run.
        scratch: folder for the trainer's files.

    Returns:
        Warnings: the libraries could not be asked, or AllLinear leaves out linear layers.

    Raises:
        InvalidInput: a library refuses; the message names the field of the spec and has the library's reason.
    """
    prepare_libraries()
    try:
        return _rehearse(base, tokenizer, parameters, scratch)
    except InvalidInput:
        raise
    except Exception as error:  # noqa: BLE001 - the meta device can fail in any way where a real one does not
        return (
            f"{BASE_FIELD}: whether training accepts this model could not be checked before it starts: "
            f"{_reason(error)}",
        )


def _rehearse(
    base: BaseModel, tokenizer: "PreTrainedTokenizerBase", parameters: Parameters, scratch: Path
) -> tuple[str, ...]:
    model = _build(base)
    targets = recipe.find_targets(model, parameters.lora)
    left_out = recipe.layers_left_out(model, targets) if parameters.lora.target_modules == "AllLinear" else ()
    try:
        trainer = _make_trainer(model, tokenizer, parameters, targets, scratch)
        if parameters.training.gradient_checkpointing is GradientCheckpointing.ALWAYS:
            trainer.model.activation_checkpointing_enable()
    except ValueError as error:
        reason = _reason(error)
        field = next((field for word, field in _FIELDS if word in reason.lower()), BASE_FIELD)
        advice = _other_targets(base, parameters, targets.requested) if field == _TARGETS_FIELD else _ADVICE.get(field)
        raise InvalidInput(
            f"{field}: the libraries do not train {type(model).__name__} like this: {reason}"
            f"{f'; {advice}' if advice else ''}"
        ) from error
    recipe.check_trainable(trainer.model, targets, parameters.lora)
    if not left_out:
        return ()
    return (
        f"{_TARGETS_FIELD}: AllLinear leaves out the linear layers {some(left_out, _MOST_NAMES)}, because peft takes "
        f"their names for those of the experts of {type(model).__name__}",
    )


def _build(base: BaseModel) -> "PreTrainedModel":
    import torch

    return build_skeleton(base.folder, torch.float32)


def _make_trainer(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    parameters: Parameters,
    targets: recipe.Targets,
    scratch: Path,
) -> Any:
    from datasets import Dataset

    from edgetune_jobs.training.loop import AdapterTrainer

    class MetaTrainer(AdapterTrainer):
        def _move_model_to_device(self, model: Any, device: Any) -> Any:  # noqa: ARG002 - there is nothing to move
            return model

    ids = [tokenizer.eos_token_id] * 2
    return MetaTrainer(
        model=model,
        args=recipe.sft_config(
            parameters.training, Layout.PADDED, Precision.FP32, on_gpu=False, folder=scratch / "rehearsal"
        ),
        train_dataset=Dataset.from_dict({"input_ids": [ids], "labels": [ids]}),
        processing_class=tokenizer,
        peft_config=recipe.lora_config(parameters.lora, targets),
        base=parameters.base_model,
        checkpoints=None,
        parts=(),
        layout=Layout.PADDED,
        max_length=parameters.training.max_length,
        ranks=OneRank(),
        fit=StepFit(parameters.training, Layout.PADDED, Lengths.of([len(ids)]), 1, lambda *_: 0, 0),
    )


def _other_targets(base: BaseModel, parameters: Parameters, requested: Sequence[str]) -> str:
    """Advice with the target modules that peft does not refuse, each tried alone."""
    from peft import get_peft_model

    accepted = []
    for target in requested:
        alone = recipe.Targets((target,), (), 0)
        try:
            get_peft_model(_build(base), recipe.lora_config(parameters.lora, alone))
        except ValueError:
            continue
        accepted.append(target)
    return f"list the others: [{some(accepted, _MOST_NAMES)}]" if accepted else "use another base model"


def _reason(error: Exception) -> str:
    """A library's message in one line."""
    message = " ".join(str(error).split()) or type(error).__name__
    return _PEFT_PREFIX.sub("", message)[:_LONGEST_REASON].rstrip(". ")

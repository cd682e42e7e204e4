"""The adapter artifact: weights, config, tokenizer and edgetune.json, training.json, metrics.jsonl."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from edgetune_contract.schema import Model
from edgetune_contract.spec import HUB_SCHEME, BaseModelSpec, MergeBase, Method
from edgetune_contract.training import Precision
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.folder import write_json
from edgetune_jobs.store.folder_store import path_of_uri

if TYPE_CHECKING:
    from peft import PeftModel

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
RECORD = "training.json"
ADAPTER_NAME = "default"


class TrainingRecord(Model):
    """How an adapter was trained: merge and evaluate need it to use the same base weights as training."""

    method: Method
    precision: Precision
    """Resolved: BF16, FP16 or FP32."""

    base_dtype: str
    """The base model's dtype in training, by torch's name."""

    base: BaseModelSpec
    steps: int
    epochs: float
    loss: float
    """Mean over the last steps."""

    trainable_parameters: int
    total_parameters: int
    seed: int

    def through_nf4(self, merge_base: MergeBase) -> bool:
        """Whether the base weights are quantized to NF4 and dequantized before merging, as in training."""
        return self.method is Method.QLORA and merge_base is MergeBase.AS_TRAINED


def save_adapter(model: "PeftModel", folder: Path, base: BaseModelSpec) -> None:
    """Write only the weights and the config of the adapter into `folder`.

    The config names the base model as the spec does, in the words of the Hugging Face libraries. Equal adapters give
    equal bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder)
    config: dict[str, Any] = model.peft_config[ADAPTER_NAME].to_dict()
    config |= {
        "base_model_name_or_path": library_name(base),
        "revision": base.revision or None,
        "inference_mode": True,
    }
    write_json(
        folder / CONFIG, {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    )


def library_name(base: BaseModelSpec) -> str:
    """The base model's name for from_pretrained: organization/name of the hub, or the folder's path.

    A model in a bucket has no such name: it keeps its URI, and whoever loads the adapter passes a local copy.
    """
    if base.is_on_hub:
        return base.uri.removeprefix(HUB_SCHEME)
    return str(path_of_uri(base.uri)) if base.uri.startswith("file://") else base.uri


def save_weights(model: "PeftModel", folder: Path) -> None:
    """Write the adapter's weights into an existing folder."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    weights = get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
    save_file(
        {name: weights[name].contiguous() for name in sorted(weights)}, folder / WEIGHTS, metadata={"format": "pt"}
    )


def restore_adapter(model: "PeftModel", folder: Path) -> None:
    """Copy saved adapter weights into `model` in place, in the dtype of the model's adapter.

    peft's load_adapter would convert them to float32, so that a resumed run would differ from an uninterrupted one.

    Raises:
        InvalidInput: the saved tensors are not those of this adapter.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    outcome = set_peft_model_state_dict(model, load_file(folder / WEIGHTS), adapter_name=ADAPTER_NAME)
    missing = [key for key in outcome.missing_keys if "lora_" in key]
    if missing or outcome.unexpected_keys:
        raise InvalidInput(
            f"the checkpoint in {folder.name} does not match the adapter: "
            f"missing tensors {missing[:1]}, unexpected tensors {list(outcome.unexpected_keys)[:1]}"
        )


def read_record(folder: Path) -> TrainingRecord:
    """Read training.json of an adapter folder.

    Raises:
        InvalidInput: the file is missing or invalid.
    """
    path = folder / RECORD
    try:
        return TrainingRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise InvalidInput(f"the adapter has no {RECORD}; use an adapter that the train stage wrote") from error
    except ValidationError as error:
        raise InvalidInput(f"the adapter's {RECORD} is invalid: {error.errors()[0]['msg']}") from error

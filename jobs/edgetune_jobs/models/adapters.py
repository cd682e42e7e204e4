"""The adapter as an artifact: adapter_model.safetensors, adapter_config.json, training.json."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from edgetune_contract.model import Model
from edgetune_contract.spec import BaseModelSpec, MergeBase, Method, Precision
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.folder import write_json

if TYPE_CHECKING:
    from peft import PeftModel

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
RECORD = "training.json"
ADAPTER_NAME = "default"


class TrainingRecord(Model):
    """How an adapter was trained: what merging and evaluation must know to see the base as training saw it."""

    method: Method
    precision: Precision
    """Resolved: BF16, FP16 or FP32."""

    base_dtype: str
    """torch's name of the dtype that the base was loaded in: the merged model's format."""

    base: BaseModelSpec
    steps: int
    epochs: float
    loss: float
    """Mean of the last steps."""

    trainable_parameters: int
    total_parameters: int
    seed: int

    def through_nf4(self, merge_base: MergeBase) -> bool:
        """Whether the base that the adapter is added to is rounded to NF4 and back, as training saw it."""
        return self.method is Method.QLORA and merge_base is MergeBase.AS_TRAINED


def save_adapter(model: "PeftModel", folder: Path, base: BaseModelSpec) -> None:
    """Write weights and config of the adapter, and nothing else, into `folder`.

    The config names the base by its URI and revision, so that the adapter means the same on every machine. Equal
    adapters give equal bytes.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
    save_file(
        {name: weights[name].contiguous() for name in sorted(weights)}, folder / WEIGHTS, metadata={"format": "pt"}
    )
    config: dict[str, Any] = model.peft_config[ADAPTER_NAME].to_dict()
    config |= {"base_model_name_or_path": base.uri, "revision": base.revision or None, "inference_mode": True}
    write_json(
        folder / CONFIG, {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    )


def restore_adapter(model: "PeftModel", folder: Path) -> None:
    """Copy saved adapter weights into `model`, in place and in the dtype that they have there.

    peft's load_adapter would turn them into float32, so that a resumed run would differ from an uninterrupted one.

    Raises:
        InvalidInput: the weights are not those of this adapter.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    outcome = set_peft_model_state_dict(model, load_file(folder / WEIGHTS), adapter_name=ADAPTER_NAME)
    missing = [key for key in outcome.missing_keys if "lora_" in key]
    if missing or outcome.unexpected_keys:
        raise InvalidInput(
            f"the checkpoint in {folder.name} is not one of this adapter: "
            f"missing {missing[:1]}, not known {list(outcome.unexpected_keys)[:1]}"
        )


def read_record(folder: Path) -> TrainingRecord:
    """training.json of an adapter folder.

    Raises:
        InvalidInput: it is missing or not what the train stage writes.
    """
    path = folder / RECORD
    try:
        return TrainingRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise InvalidInput(f"the adapter has no {RECORD}: only adapters of the train stage can be used") from error
    except ValidationError as error:
        raise InvalidInput(
            f"the adapter's {RECORD} is not what the train stage writes: {error.errors()[0]['msg']}"
        ) from error

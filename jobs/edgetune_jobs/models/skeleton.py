"""Models without weights, on torch's meta device: all modules and shapes of a config.json, whatever their size."""

from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_jobs.errors import BASE_FIELD, InvalidInput
from edgetune_jobs.models.folder import CONFIG
from edgetune_jobs.models.libraries import load_config, prepare_libraries

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_LONGEST_REASON = 300


def build_skeleton(folder: Path, dtype: "torch.dtype | None" = None) -> "PreTrainedModel":
    """The model of a folder's config.json without weights.

    It takes neither memory for weights nor time to initialize them, but both for each module. `prepare` therefore
    builds it first in the trial's child process, whose limits end a configuration that takes too much; in its own
    process it builds only what has passed there.

    Args:
        folder: has config.json.
        dtype: of the weights; by default that of config.json.

    Raises:
        InvalidInput: transformers cannot build it.
    """
    prepare_libraries()
    import torch
    from transformers import AutoModelForCausalLM, initialization

    options = {} if dtype is None else {"dtype": dtype}
    config = load_config(folder)
    try:
        # As from_pretrained does.
        with initialization.no_init_weights(), torch.device("meta"), initialization.meta_device_safe_creation_ops():
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
    except MemoryError:
        raise
    except Exception as error:  # a configuration is checked by the code that computes with it
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        raise InvalidInput(
            f"{BASE_FIELD}: transformers cannot build a model from its {CONFIG}: {reason}; save or copy the model "
            "again, or use one that this version of transformers supports"
        ) from error
    model.tie_weights()  # is left out without initialization
    return model

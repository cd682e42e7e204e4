"""Checks before training that the edge formats of the spec support the model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgetune_contract.spec import EdgeFormat, Parameters
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.inspection import BaseModel
from edgetune_jobs.models.libraries import load_config
from edgetune_jobs.models.quantization.coverage import int8_coverage
from edgetune_jobs.tensors.families import KNOWN_TYPES, is_ignored
from edgetune_jobs.tensors.formats.errors import Unsupported
from edgetune_jobs.tensors.formats.gguf_layout import lay_out
from edgetune_jobs.tensors.formats.gguf_vocabulary import describe_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def check_formats(
    base: BaseModel,
    skeleton: "PreTrainedModel",
    load_tokenizer: "Callable[[], PreTrainedTokenizerBase]",
    parameters: Parameters,
) -> None:
    """Check that all formats of the spec support a base model.

    Args:
        base: the model.
        skeleton: the same without weights.
        load_tokenizer: loads its tokenizer; called only if a format needs it.
        parameters: of the run.

    Raises:
        InvalidInput: a format does not support the model; the message has the reason.
    """
    formats = parameters.quantization.formats
    config = load_config(base.folder)
    is_tied = bool(config.tie_word_embeddings)
    shapes = {name: tensor.shape for name, tensor in base.tensors.items() if not is_ignored(name, is_tied)}
    for edge_format in formats:
        with refusing(edge_format, parameters):
            if edge_format is EdgeFormat.GGUF_Q8_0:
                lay_out(config, shapes)
                describe_vocabulary(load_tokenizer(), config.vocab_size, ())
            elif edge_format is EdgeFormat.COMPRESSED_TENSORS_W8A8:
                _check_known(config)
            else:
                check_some(int8_coverage(skeleton).share)


@contextmanager
def refusing(edge_format: EdgeFormat, parameters: Parameters) -> Iterator[None]:
    """Convert Unsupported into an error about the spec."""
    try:
        yield
    except Unsupported as reason:
        index = parameters.quantization.formats.index(edge_format)
        raise InvalidInput(
            f"spec.quantization.formats[{index}]: {edge_format} does not support this model: {reason}; "
            "remove the format, or use another base model"
        ) from reason


def check_some(share: float) -> None:
    """Check that a share of a model's weights is quantized.

    Raises:
        Unsupported: nothing is.
    """
    if share == 0:
        raise Unsupported("it would quantize none of its weights, because it has no nn.Linear in its blocks")


def _check_known(config: "PreTrainedConfig") -> None:
    if config.model_type not in KNOWN_TYPES:
        known = ", ".join(sorted(KNOWN_TYPES))
        raise Unsupported(f"the model type {config.model_type!r} is not one of {known}")

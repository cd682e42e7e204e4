"""Whether a model can be written in the edge formats that a spec asks for: said before anything is trained."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgetune_contract.spec import EdgeFormat, Parameters
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.inspection import BaseModel
from edgetune_jobs.models.libraries import load_config
from edgetune_jobs.tensors.families import KNOWN_TYPES, is_left_out
from edgetune_jobs.tensors.formats.errors import Unsupported
from edgetune_jobs.tensors.formats.gguf_layout import lay_out
from edgetune_jobs.tensors.formats.gguf_vocabulary import describe_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def check_formats(
    base: BaseModel, load_tokenizer: "Callable[[], PreTrainedTokenizerBase]", parameters: Parameters
) -> None:
    """Check a base model for all formats of the spec.

    Args:
        base: the model.
        load_tokenizer: gives its tokenizer; only called when a format asks for it.
        parameters: of the run.

    Raises:
        InvalidInput: names the format that the model cannot be written in, and why.
    """
    wanted = parameters.quantization.formats
    if wanted == (EdgeFormat.BITSANDBYTES_INT8,):
        return
    config = load_config(base.folder)
    is_tied = bool(config.tie_word_embeddings)
    shapes = {name: tensor.shape for name, tensor in base.tensors.items() if not is_left_out(name, is_tied)}
    for edge_format in wanted:
        with refusing(edge_format, parameters):
            if edge_format is EdgeFormat.GGUF_Q8_0:
                lay_out(config, shapes)
                describe_vocabulary(load_tokenizer(), config.vocab_size, ())
            elif edge_format is EdgeFormat.COMPRESSED_TENSORS_W8A8:
                _check_known(config)


@contextmanager
def refusing(edge_format: EdgeFormat, parameters: Parameters) -> Iterator[None]:
    """Turn a format's reasons against a model into an error for whoever wrote the spec."""
    try:
        yield
    except Unsupported as reason:
        place = parameters.quantization.formats.index(edge_format)
        raise InvalidInput(
            f"spec.quantization.formats[{place}]: the model cannot be written as {edge_format}: {reason}. "
            "Take the format away, or choose another base"
        ) from reason


def _check_known(config: "PreTrainedConfig") -> None:
    if config.model_type not in KNOWN_TYPES:
        known = ", ".join(sorted(KNOWN_TYPES))
        raise Unsupported(f"models of the type {config.model_type} cannot be; possible are {known}")

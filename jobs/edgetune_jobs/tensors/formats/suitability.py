"""Checks before training that the edge formats of the spec support the model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from edgetune_contract.spec import EdgeFormat, Parameters
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.inspection import BaseModel
from edgetune_jobs.models.libraries import load_config
from edgetune_jobs.models.quantization import llama_cpp
from edgetune_jobs.models.quantization.coverage import int8_coverage
from edgetune_jobs.tensors.families import KNOWN_TYPES, is_ignored
from edgetune_jobs.tensors.formats.errors import Unsupported
from edgetune_jobs.tensors.formats.gguf.layout import lay_out, matrices_of
from edgetune_jobs.tensors.formats.gguf.vocabulary import describe_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Suitability:
    """Which formats support a base model."""

    base: BaseModel
    skeleton: "PreTrainedModel"
    """The same without weights."""

    load_tokenizer: "Callable[[], PreTrainedTokenizerBase]"
    """Loads its tokenizer; called only if a format needs it."""

    def check(self, edge_format: EdgeFormat) -> None:
        """Check that a format supports the model.

        Raises:
            Unsupported: it does not.
        """
        if edge_format.file_type is not None or edge_format is EdgeFormat.GGUF_LORA:
            lay_out(self._config, self.shapes, *matrices_of(edge_format, "bfloat16"))
            describe_vocabulary(self.load_tokenizer(), self._config.vocab_size, ())
        elif edge_format is EdgeFormat.COMPRESSED_TENSORS_W8A8:
            _check_known(self._config)
        else:
            check_some(int8_coverage(self.skeleton).share)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the tensors that an edge model has, by name."""
        is_tied = bool(self._config.tie_word_embeddings)
        return {name: tensor.shape for name, tensor in self.base.tensors.items() if not is_ignored(name, is_tied)}

    @cached_property
    def _config(self) -> "PreTrainedConfig":
        return load_config(self.base.folder)


def check_quantizer(parameters: Parameters) -> None:
    """Check, before hours of work, that llama.cpp is here if it has to write a format of the spec.

    Raises:
        InvalidInput: it is not.
    """
    for edge_format in parameters.quantization.formats:
        if edge_format.is_k_quant and not llama_cpp.is_installed():
            raise InvalidInput(
                f"{format_field(edge_format, parameters)}: {edge_format} is written by llama.cpp, which is not "
                f"installed: {llama_cpp.HOW_TO_INSTALL}; or use {EdgeFormat.GGUF_Q8_0}"
            )


def check_formats(suitability: Suitability, parameters: Parameters) -> None:
    """Check that all formats of the spec support a base model.

    Raises:
        InvalidInput: a format does not support the model; the message has the reason.
    """
    for edge_format in parameters.quantization.formats:
        with refusing(edge_format, parameters):
            suitability.check(edge_format)


@contextmanager
def refusing(edge_format: EdgeFormat, parameters: Parameters) -> Iterator[None]:
    """Convert Unsupported into an error about the spec."""
    try:
        yield
    except Unsupported as reason:
        remedy = "list other formats" if parameters.quantization.is_auto else "remove the format"
        raise InvalidInput(
            f"{format_field(edge_format, parameters)}: {edge_format} does not support this model: {reason}; "
            f"{remedy}, or use another base model"
        ) from reason


def format_field(edge_format: EdgeFormat, parameters: Parameters) -> str:
    """Path in the spec of a format."""
    formats = parameters.quantization.formats
    return f"spec.quantization.formats[{formats.index(edge_format)}]" if formats else "spec.quantization.formats"


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

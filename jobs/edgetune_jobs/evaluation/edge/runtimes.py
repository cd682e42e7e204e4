"""Runtimes that run a model on a CPU, token by token: transformers, or llama.cpp for GGUF."""

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgetune_contract.spec import EdgeFormat
from edgetune_jobs.models.quantization import llama_cpp

if TYPE_CHECKING:
    import numpy as np

AS_STORED = "auto"
# ggml_log_level of an error, and of the rest of a line.
_ERROR, _CONTINUED = 4, 5


class Runtime(StrEnum):
    """A library that runs models."""

    TRANSFORMERS = "transformers"
    LLAMA_CPP = "llama.cpp"


# transformers also reads GGUF and W8A8, but dequantizes them: its figures would not be those of the format.
RUNTIMES: Mapping[EdgeFormat, Runtime] = {
    EdgeFormat.BITSANDBYTES_INT8: Runtime.TRANSFORMERS,
    **{each: Runtime.LLAMA_CPP for each in EdgeFormat if each.file_type is not None},
    EdgeFormat.GGUF_LORA: Runtime.LLAMA_CPP,
}
"""The runtime of each format that runs on a CPU."""


def missing_runtime(edge_format: EdgeFormat) -> str | None:
    """Why the runtime that a format is for cannot load a model here, and what to do; None if it can."""
    if edge_format not in RUNTIMES:
        return "vLLM is not in this image"
    if RUNTIMES[edge_format] is Runtime.LLAMA_CPP and not llama_cpp.is_installed():
        return f"{Runtime.LLAMA_CPP} is not installed: {llama_cpp.HOW_TO_INSTALL}"
    return None


def missing_runtimes(formats: Sequence[EdgeFormat]) -> tuple[str, ...] | None:
    """Names of the runtimes of formats that could be installed here and are not; None if there are none."""
    missing = {RUNTIMES[each].value for each in formats if each in RUNTIMES and missing_runtime(each) is not None}
    return tuple(sorted(missing)) or None


def why_not_runnable(edge_format: EdgeFormat) -> str | None:
    """Why this image cannot measure a format, and what to do; None if it can."""
    if edge_format not in RUNTIMES:
        return f"{edge_format} needs vLLM, which is not in this image; measure BitsAndBytesInt8 or GGUF-Q8_0 instead"
    if RUNTIMES[edge_format] is Runtime.LLAMA_CPP and not llama_cpp.is_installed():
        return f"{edge_format} needs llama.cpp, which is not installed: {llama_cpp.HOW_TO_INSTALL}"
    return None


class CannotLoad(Exception):
    """A runtime does not load a model. The message is the runtime's."""


class Runner(Protocol):
    """Runs one model. The constructor loads the libraries, `load` the model."""

    name: str
    """The runtime with its version."""

    def load(self, folder: Path, longest: int) -> None:
        """Load the model in a folder, for prompts with answers of at most `longest` tokens."""
        ...

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        """Greedy tokens after a prompt of token ids, endless: end tokens do not stop it.

        Nothing is cached between prompts. The first token includes the processing of the whole prompt.
        """
        ...


class TransformersRunner:
    """A model in safetensors, one forward pass a token."""

    def __init__(self, dtype: str) -> None:
        """Import the libraries.

        Args:
            dtype: torch's name for the dtype of the weights, or AS_STORED.
        """
        from edgetune_jobs.models.libraries import prepare_libraries

        prepare_libraries()
        import bitsandbytes  # noqa: F401 - else loading the model would import it and count its memory as the model's
        import transformers

        self.name = f"transformers {transformers.__version__}"
        self._dtype = dtype

    def load(self, folder: Path, longest: int) -> None:  # noqa: ARG002 - memory for keys and values grows as needed
        import torch

        from edgetune_jobs.models import loading

        device = torch.device("cpu")
        if self._dtype == AS_STORED:
            self._model = loading.load_stored(folder, device)
        else:
            self._model = loading.load_base(folder, getattr(torch, self._dtype), device)

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        import torch

        ids, past = torch.tensor([list(prompt)]), None
        while True:
            with torch.inference_mode():
                output = self._model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
            past, ids = output.past_key_values, output.logits[:, -1:].argmax(dim=-1)
            yield int(ids)


class LlamaCppRunner:
    """A GGUF file in llama.cpp."""

    def __init__(self, threads: int, *, all_logits: bool = False) -> None:
        """Import the library.

        Args:
            threads: number of threads.
            all_logits: whether `feed` is used.
        """
        from llama_cpp import llama_log_callback, llama_log_set

        self._errors: list[str] = []
        self._log = llama_log_callback(self._keep_error)  # llama.cpp keeps no reference
        llama_log_set(self._log, None)
        self.name = llama_cpp.version_name()
        self._threads, self._all_logits = threads, all_logits

    def load(self, folder: Path, longest: int) -> None:
        from llama_cpp import Llama

        from edgetune_jobs.models.quantization import gguf_loading

        file, adapter = gguf_loading.find_file(folder), gguf_loading.find_adapter(folder)
        try:
            self._model = Llama(
                str(file),
                n_ctx=longest,
                n_threads=self._threads,
                n_threads_batch=self._threads,
                logits_all=self._all_logits,
                verbose=False,
            )
            if adapter is not None:
                self._add(adapter)
        except Exception as error:  # the library raises ValueError without the reason, which llama.cpp only logs
            raise CannotLoad("".join(self._errors).strip() or str(error)) from error

    def _add(self, adapter: Path) -> None:
        """Add an adapter to the loaded model. The library's `lora_path` crashes if llama.cpp refuses it."""
        from llama_cpp import llama_adapter_lora_init, llama_adapter_lora_p_ctypes, llama_set_adapters_lora

        loaded = llama_adapter_lora_init(self._model.model, str(adapter).encode())
        if not loaded:
            raise RuntimeError(f"llama.cpp does not load {adapter.name}")
        pointers, scales = (llama_adapter_lora_p_ctypes * 1)(loaded), (ctypes.c_float * 1)(1.0)
        if llama_set_adapters_lora(self._model.ctx, pointers, 1, scales):
            raise RuntimeError(f"llama.cpp does not add {adapter.name} to its base")

    def _keep_error(self, level: int, text: bytes, _data: object) -> None:
        if level == _ERROR or (level == _CONTINUED and self._errors):
            self._errors.append(text.decode(errors="replace"))

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        self._model.reset()  # else it would reuse the cache of the common prefix with the previous prompt
        yield from self._model.generate(list(prompt), temp=0.0, repeat_penalty=1.0)

    def feed(self, kept: int, tokens: Sequence[int]) -> "np.ndarray":
        """Logits after each of `tokens`, which follow the first `kept` of all tokens fed so far.

        float32 [tokens, vocabulary]; the next call overwrites them.
        """
        self._model.n_tokens = kept
        self._model.eval(list(tokens))
        logits: np.ndarray = self._model.scores[kept : kept + len(tokens)]
        return logits

"""What runs a model on a CPU, token by token: transformers, or llama.cpp for GGUF."""

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from edgetune_contract.spec import EdgeFormat

AS_STORED = "auto"


class Runtime(StrEnum):
    """A runtime."""

    TRANSFORMERS = "transformers"
    LLAMA_CPP = "llama.cpp"


# transformers reads the other formats too, but unpacks their weights: its figures would not be theirs.
RUNTIMES: Mapping[EdgeFormat, Runtime] = {
    EdgeFormat.BITSANDBYTES_INT8: Runtime.TRANSFORMERS,
    EdgeFormat.GGUF_Q8_0: Runtime.LLAMA_CPP,
}
"""The runtime for which a format is made, of those formats that run on a CPU."""


def why_not_runnable(edge_format: EdgeFormat) -> str | None:
    """Why this image cannot measure a format, and what would help; None if it can."""
    if edge_format not in RUNTIMES:
        return f"{edge_format} is made for vLLM, which this image has not; measure BitsAndBytesInt8 or GGUF-Q8_0"
    if RUNTIMES[edge_format] is Runtime.LLAMA_CPP and importlib.util.find_spec("llama_cpp") is None:
        return (
            f"{edge_format} is measured with llama.cpp, which is not here: build the image with the argument "
            'EXTRAS="jobs llama-cpp", or for a local run install the extra llama-cpp'
        )
    return None


class Runner(Protocol):
    """Runs one model. Its libraries are loaded when it is made, the model by `load`."""

    name: str
    """The runtime with its version."""

    def load(self, folder: Path, longest: int) -> None:
        """Load the model of a folder, for prompts and answers of `longest` tokens together."""
        ...

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        """The most likely tokens after a prompt of token ids, without end: end tokens are tokens like any other.

        Nothing of an earlier prompt is used again. The first token takes the reading of the whole prompt.
        """
        ...


class TransformersRunner:
    """A model in safetensors, one forward pass a token."""

    def __init__(self, dtype: str) -> None:
        """Import the libraries.

        Args:
            dtype: torch's name of the dtype of the weights, or AS_STORED.
        """
        from edgetune_jobs.models.libraries import prepare_libraries

        prepare_libraries()
        import bitsandbytes  # noqa: F401 - transformers would import it with the model, which is to be told apart
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

    def __init__(self, threads: int) -> None:
        import llama_cpp  # noqa: F401 - importing it loads the library

        self.name = f"llama.cpp (llama-cpp-python {importlib.metadata.version('llama-cpp-python')})"
        self._threads = threads

    def load(self, folder: Path, longest: int) -> None:
        from llama_cpp import Llama

        from edgetune_jobs.models import gguf_loading

        file = gguf_loading.find_file(folder)
        self._model = Llama(
            str(file), n_ctx=longest, n_threads=self._threads, n_threads_batch=self._threads, verbose=False
        )

    def tokens(self, prompt: Sequence[int]) -> Iterator[int]:
        self._model.reset()  # else it would keep what the prompt has in common with the one before
        yield from self._model.generate(list(prompt), temp=0.0, repeat_penalty=1.0)

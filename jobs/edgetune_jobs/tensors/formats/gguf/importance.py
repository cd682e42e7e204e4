"""The importance matrix: for each matrix, the mean square of each of its inputs on training rows.

K-quants then round the weights of inputs that are large more exactly. llama.cpp's own tool computes it with llama.cpp;
here the decoder runs in torch, with each weight read from the file that llama.cpp quantizes when it is needed: memory
holds one weight and the activations of one batch, whatever the size of the model.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_jobs.errors import Interrupted
from edgetune_jobs.models.libraries import load_config, prepare_libraries
from edgetune_jobs.stage import Progress
from edgetune_jobs.tensors.formats.gguf.encoder import tensor_offsets
from edgetune_jobs.tensors.formats.gguf.layout import GgufLayout, GgufTensor

if TYPE_CHECKING:
    import torch

MOST_TOKENS = 2**14
"""Tokens of training rows that are used at most."""

_BATCH_TOKENS = 2**11
# Of the mean of a matrix: an input that is always 0 still has some weight.
_LEAST_SHARE = 1e-6


def choose_rows(rows: Sequence[Sequence[int]], most_tokens: int = MOST_TOKENS) -> list[Sequence[int]]:
    """Rows of token IDs from all parts of the data, with at most `most_tokens` tokens together, the longest cut."""
    total = sum(map(len, rows))
    step = max(1, math.ceil(total / most_tokens))
    chosen: list[Sequence[int]] = []
    left = most_tokens
    for row in rows[::step]:
        cut = row[: min(_BATCH_TOKENS, left)]
        left -= len(cut)
        if cut:
            chosen.append(cut)
    return chosen


def importance_matrix(
    layout: GgufLayout,
    source: Path,
    header_bytes: int,
    folder: Path,
    rows: Sequence[Sequence[int]],
    progress: Progress,
    stop: threading.Event,
) -> Mapping[str, "torch.Tensor"]:
    """Mean squares of the inputs of all matrices but the embedding and the output head.

    Args:
        layout: of the file.
        source: the file.
        header_bytes: of the file before its first tensor.
        folder: with the model's config.json.
        rows: token IDs of each row.
        progress: receives the tokens that were read.
        stop: ends it when set.

    Returns:
        float32 [inputs] by the name of the matrix in the file.

    Raises:
        Interrupted: `stop` was set.
    """
    prepare_libraries()
    import torch
    from accelerate import init_empty_weights
    from accelerate.hooks import attach_align_device_hook
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(load_config(folder), dtype=torch.bfloat16).eval()
    weights = _SourceWeights(layout, source, header_bytes, torch.bfloat16)
    attach_align_device_hook(model, execution_device=torch.device("cpu"), offload=True, weights_map=weights)
    squares = _Squares(layout, model)
    done, total = 0, sum(map(len, rows))
    for batch in _batches(rows):
        ids, mask = _padded(batch)
        squares.mask = mask.flatten()
        with torch.inference_mode():
            model.get_decoder()(input_ids=ids, attention_mask=mask.long(), use_cache=False)
        done += sum(map(len, batch))
        progress.update(done, total, "tokens")
        if stop.is_set():
            raise Interrupted("stopped by SIGTERM before the model was written; the next attempt starts over")
    return {name: _means(values, done) for name, values in squares.sums.items()}


class _Squares:
    """Sums of the squares of the inputs, which hooks of the linear layers fill."""

    mask: "torch.Tensor"
    """Which tokens of the batch are not padding: bool [rows · tokens]."""

    def __init__(self, layout: GgufLayout, model: Any) -> None:
        import torch

        self.sums: dict[str, torch.Tensor] = {}
        head = model.get_output_embeddings()
        for name, module in model.named_modules():
            tensor = layout.tensors.get(f"{name}.weight")
            if isinstance(module, torch.nn.Linear) and module is not head and tensor is not None:
                self.sums[tensor.name] = torch.zeros(module.in_features)
                module.register_forward_pre_hook(self._hook(tensor.name))

    def _hook(self, name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def add(_module: Any, arguments: tuple[Any, ...]) -> None:
            inputs = arguments[0].reshape(-1, arguments[0].shape[-1])[self.mask]
            self.sums[name] += inputs.float().square_().sum(0)

        return add


class _SourceWeights(Mapping[str, "torch.Tensor"]):
    """The model's tensors by name, read from the file when they are needed."""

    def __init__(self, layout: GgufLayout, source: Path, header_bytes: int, dtype: "torch.dtype") -> None:
        self._layout, self._source, self._dtype = layout, source, dtype
        self._offsets = tensor_offsets(layout, header_bytes)

    def __getitem__(self, name: str) -> "torch.Tensor":
        import torch

        tensor: GgufTensor = self._layout.tensors[name]
        with self._source.open("rb") as file:
            file.seek(self._offsets[tensor.name])
            data = bytearray(file.read(tensor.bytes))
        values = torch.frombuffer(data, dtype=tensor.torch_dtype).view(tensor.shape)
        return tensor.decode(values).to(self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout.tensors)

    def __len__(self) -> int:
        return len(self._layout.tensors)


def _batches(rows: Sequence[Sequence[int]]) -> Iterator[list[Sequence[int]]]:
    """Rows of similar length together: at most _BATCH_TOKENS tokens with their padding."""
    batch: list[Sequence[int]] = []
    for row in sorted(rows, key=len):
        if batch and len(row) * (len(batch) + 1) > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _padded(batch: Sequence[Sequence[int]]) -> "tuple[torch.Tensor, torch.Tensor]":
    """Token IDs, int64 [rows, tokens], and which of them are not padding, bool."""
    import torch

    longest = max(map(len, batch))
    ids = torch.zeros((len(batch), longest), dtype=torch.int64)
    mask = torch.zeros((len(batch), longest), dtype=torch.bool)
    for at, row in enumerate(batch):
        ids[at, : len(row)] = torch.tensor(row)
        mask[at, : len(row)] = True
    return ids, mask


def _means(sums: "torch.Tensor", tokens: int) -> "torch.Tensor":
    import torch

    means = sums / tokens
    least = float(means.mean()) * _LEAST_SHARE
    return means.clamp_(min=least) if least > 0 else torch.ones_like(means)

"""Plans safetensors files before any weight is read: tensors, offsets, shards, file sizes."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from edgetune_jobs.models.safetensors_header import DTYPE_BITS, LENGTH_BYTES, METADATA
from edgetune_jobs.models.weights import WEIGHTS

# The default of save_pretrained.
MAX_FILE_BYTES = 50 * 10**9
_FORMAT = {"format": "pt"}
_HEADER_ALIGNMENT = 8


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written."""

    name: str
    dtype: str
    """safetensors' name of the dtype, such as BF16."""

    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of the tensor in bytes."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True)
class TensorGroup:
    """The output tensors of one source tensor, all in one file."""

    body: PlannedTensor
    """Written row by row, in the order of the groups."""

    tail: tuple[PlannedTensor, ...] = ()
    """Small tensors that are complete only after the body; they follow all bodies of the file."""

    @property
    def bytes(self) -> int:
        """Total size of its tensors in bytes."""
        return self.body.bytes + sum(tensor.bytes for tensor in self.tail)


@dataclass(frozen=True)
class PlannedFile:
    """A safetensors file to be written."""

    name: str
    groups: tuple[TensorGroup, ...]

    @property
    def tensors(self) -> Iterator[PlannedTensor]:
        """Tensors in the order of their bytes: bodies, then tails."""
        yield from (group.body for group in self.groups)
        for group in self.groups:
            yield from group.tail

    @property
    def header(self) -> bytes:
        """The bytes of the file before the first tensor."""
        entries: dict[str, object] = {METADATA: _FORMAT}
        position = 0
        for tensor in self.tensors:
            end = position + tensor.bytes
            entries[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [position, end],
            }
            position = end
        header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        header += b" " * (-len(header) % _HEADER_ALIGNMENT)
        return len(header).to_bytes(LENGTH_BYTES, "little") + header

    @property
    def bytes(self) -> int:
        """Size of the file in bytes."""
        return len(self.header) + sum(group.bytes for group in self.groups)


def plan_files(groups: Sequence[TensorGroup], max_file_bytes: int = MAX_FILE_BYTES) -> tuple[PlannedFile, ...]:
    """Files for these groups, in their order; each has at most `max_file_bytes` of tensors, or a single group."""
    shards: list[list[TensorGroup]] = [[]]
    filled = 0
    for group in groups:
        if shards[-1] and filled + group.bytes > max_file_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(group)
        filled += group.bytes
    if len(shards) == 1:
        return (PlannedFile(WEIGHTS, tuple(shards[0])),)
    names = (f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1))
    return tuple(PlannedFile(name, tuple(shard)) for name, shard in zip(names, shards, strict=True))


def weights_index(files: Sequence[PlannedFile]) -> Mapping[str, object]:
    """Content of model.safetensors.index.json: the file of each tensor."""
    return {
        "metadata": {"total_size": sum(group.bytes for file in files for group in file.groups)},
        "weight_map": {tensor.name: file.name for file in files for tensor in file.tensors},
    }

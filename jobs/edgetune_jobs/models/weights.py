"""The tensors of a model folder: index, shards and headers, validated without reading tensor data."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.adapters.adapter_files import WEIGHTS as ADAPTER_WEIGHTS
from edgetune_jobs.models.folder import ModelFolder
from edgetune_jobs.models.safetensors_header import read_header
from edgetune_jobs.store.strict_json import InvalidJson, parse_json
from edgetune_jobs.wording import count, some

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

OUTPUT_HEAD = "lm_head"
"""Name of the layer that maps the last hidden state to logits."""

TORCH_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
"""Dtypes of weights: torch's names by safetensors' names."""

SAFETENSORS_DTYPES = {torch_name: name for name, torch_name in TORCH_DTYPES.items()}

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_JSON_BYTES = 25_000_000


@dataclass(frozen=True)
class StoredTensor:
    """A tensor and its byte range in a file: C order, little-endian."""

    name: str
    file: str
    dtype: str
    """safetensors' name of the dtype, such as BF16."""

    shape: tuple[int, ...]
    begin: int
    """Offset of the first byte from the start of the file."""

    end: int
    """Offset after the last byte."""

    @property
    def bytes(self) -> int:
        """Size of the tensor in bytes."""
        return self.end - self.begin

    @property
    def rows(self) -> int:
        """Size of the first dimension; 1 for a scalar."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        """Size of one row in bytes; 0 if there are no rows."""
        return self.bytes // self.rows if self.rows else 0


def weight_files(folder: ModelFolder) -> list[str]:
    """The safetensors files that from_pretrained reads, sorted by name.

    Raises:
        InvalidInput: the folder has no such files.
    """
    if WEIGHTS in folder.sizes:
        return [WEIGHTS]
    if WEIGHTS_INDEX in folder.sizes:
        return sorted(set(_weight_map(folder).values()))
    if ADAPTER_WEIGHTS in folder.sizes:
        raise InvalidInput(f"{folder.label} is a LoRA adapter, not a model; merge it into its base model first")
    pickles = [name for name in folder.ignored if PurePosixPath(name).suffix in _PICKLES]
    if pickles:
        raise InvalidInput(
            f"{folder.label} has only pickled weights ({some(sorted(pickles))}), which Edgetune never loads because a "
            "pickle can run code; if you trust the files, convert them to safetensors with "
            "AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW), and copy the tokenizer"
        )
    raise InvalidInput(
        f"{folder.label} has neither {WEIGHTS} nor {WEIGHTS_INDEX} (found: "
        f"{some(sorted([*folder.sizes, *folder.ignored]))}); save the model with save_pretrained, which writes them"
    )


def used_files(folder: ModelFolder) -> list[str]:
    """Files of a model without unused weights, such as copies of the weights in another layout.

    Raises:
        InvalidInput: the folder has no weights.
    """
    weights = weight_files(folder)
    return [path for path in folder.sizes if path in weights or not path.endswith(".safetensors")]


def read_tensors(folder: ModelFolder) -> tuple[StoredTensor, ...]:
    """Tensors of all shards, in the order of shards and of their bytes.

    Raises:
        InvalidInput: a header is invalid, a tensor is in two shards, or a tensor is not in the shard that the index
            names.
    """
    shards = weight_files(folder)
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        for tensor in _read_shard(folder, shard):
            if tensor.name in tensors:
                other = tensors[tensor.name].file
                raise InvalidInput(
                    f"{folder.label}: tensor {tensor.name!r} is in both {other} and {shard}; "
                    "save or copy the model again"
                )
            tensors[tensor.name] = tensor
    if shards != [WEIGHTS]:
        for name, shard in _weight_map(folder).items():
            if name not in tensors or tensors[name].file != shard:
                raise InvalidInput(
                    f"{folder.label}: {WEIGHTS_INDEX} maps tensor {name[:128]!r} to {shard}, which does not contain "
                    "it; save or copy the model again"
                )
    return tuple(tensors.values())


def fill(folder: ModelFolder, file: str, start: int, buffer: memoryview) -> int:
    """Read a file from offset `start` into `buffer`, continuing after short reads; the number of bytes read."""
    filled = 0
    while filled < len(buffer) and (arrived := folder.read_into(file, start + filled, buffer[filled:])):
        filled += arrived
    return filled


def read_json(folder: ModelFolder, name: str) -> dict[str, Any]:
    """Read a JSON object from a model folder.

    Raises:
        InvalidInput: the file is too large or is not a JSON object.
    """
    if folder.sizes[name] > _MAX_JSON_BYTES:
        raise InvalidInput(
            f"{folder.label}: {name} has {folder.sizes[name]:,} bytes, but the limit is {_MAX_JSON_BYTES:,}; "
            "save or copy the model again"
        )
    try:
        value = parse_json((folder.fetch([name]) / name).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{folder.label}: {name} is not valid UTF-8; save or copy the model again") from error
    except InvalidJson as error:
        place = "" if error.line is None else f" (line {error.line}, column {error.column})"
        raise InvalidInput(f"{folder.label}: {name} is {error.reason}{place}; save or copy the model again") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{folder.label}: {name} is not a JSON object; save or copy the model again")
    return value


def _read_shard(folder: ModelFolder, shard: str) -> list[StoredTensor]:
    def read_range(start: int, length: int) -> bytes:
        buffer = bytearray(length)
        return bytes(buffer[: fill(folder, shard, start, memoryview(buffer))])

    size = folder.sizes[shard]
    tensors = read_header(read_range, size, f"{folder.label}: {shard}")
    # read_header has checked that the tensors fill the file after the header.
    start = size - max((tensor.end for tensor in tensors.values()), default=0)
    stored = [
        StoredTensor(name, shard, tensor.dtype, tensor.shape, start + tensor.begin, start + tensor.end)
        for name, tensor in tensors.items()
    ]
    return sorted(stored, key=lambda tensor: (tensor.begin, tensor.end))


def _weight_map(folder: ModelFolder) -> dict[str, str]:
    """The file of each tensor, from the index.

    Raises:
        InvalidInput: the index is invalid or lists missing files.
    """
    weight_map = read_json(folder, WEIGHTS_INDEX).get("weight_map")
    label = folder.label
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidInput(f"{label}: {WEIGHTS_INDEX} has no weight_map; save or copy the model again")
    files = folder.sizes
    missing = sorted({str(file) for file in weight_map.values() if not isinstance(file, str) or file not in files})
    if missing:
        raise InvalidInput(
            f"{label}: {WEIGHTS_INDEX} lists {count(len(missing), 'missing file')} ({some(missing)}); "
            "copy all shards into the model's folder"
        )
    others = sorted(file for file in set(weight_map.values()) if not file.endswith(".safetensors"))
    if others:
        raise InvalidInput(
            f"{label}: {WEIGHTS_INDEX} lists files that are not safetensors ({some(others)}); "
            "save or copy the model again"
        )
    return weight_map

"""W8A8 in the layout of compressed-tensors, which vLLM and transformers read: weight int8, weight_scale.

Each row of a linear layer's weight has one scale; activations get one for each token while the model runs.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.weights import OUTPUT_HEAD, SAFETENSORS_DTYPES, StoredTensor
from edgetune_jobs.tensors.safetensors_plan import PlannedTensor, TensorGroup
from edgetune_jobs.tensors.safetensors_writer import SafetensorsWriter
from edgetune_jobs.tensors.stored import StoredEncoder, bytes_of

if TYPE_CHECKING:
    import torch

_LEVELS = 127
# The release of compressed-tensors whose layout this is.
_LAYOUT_VERSION = "0.20.0"


def quantization_config() -> dict[str, Any]:
    """What compressed-tensors writes into config.json for int8 weights by row and int8 activations by token."""
    eight_bits = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None}
    group = {
        "targets": ["Linear"],
        "weights": {**eight_bits, "strategy": "channel", "dynamic": False},
        "input_activations": {**eight_bits, "strategy": "token", "dynamic": True},
        "output_activations": None,
        "format": "int-quantized",
    }
    return {
        "quant_method": "compressed-tensors",
        "version": _LAYOUT_VERSION,
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": [OUTPUT_HEAD],
        "kv_cache_scheme": None,
    }


def plan_w8a8(tensors: Sequence[StoredTensor], linears: Collection[str], dtype: str) -> tuple[TensorGroup, ...]:
    """What is written of each tensor.

    Args:
        tensors: of the model.
        linears: weights that become int8.
        dtype: torch's name of the number format of all others, and of the scales.
    """
    kept = SAFETENSORS_DTYPES[dtype]
    groups = []
    for tensor in tensors:
        if tensor.name not in linears:
            groups.append(TensorGroup(PlannedTensor(tensor.name, kept, tensor.shape)))
            continue
        scales = PlannedTensor(_scales_of(tensor.name), kept, (tensor.rows, 1))
        groups.append(TensorGroup(PlannedTensor(tensor.name, "I8", tensor.shape), (scales,)))
    return tuple(groups)


class W8A8Encoder:
    """Writes a model whose linear layers are in W8A8; all other tensors stay as they come."""

    def __init__(self, writer: SafetensorsWriter, linears: Collection[str]) -> None:
        self._writer = writer
        self._linears = linears
        self._others = StoredEncoder(writer)
        self._scales = bytearray()

    def row_multiple(self, tensor: StoredTensor) -> int:  # noqa: ARG002 - rows are independent
        return 1

    def encode(self, tensor: StoredTensor, first: int, rows: "torch.Tensor") -> Any:
        """Weight int8 [rows, inputs] and scales [rows, 1]; the rows themselves where nothing is quantized.

        Raises:
            InvalidInput: a scale is beyond the model's number format.
        """
        if tensor.name not in self._linears:
            return self._others.encode(tensor, first, rows)
        return quantize_rows(tensor.name, rows)

    def write(self, tensor: StoredTensor, first: int, encoded: Any) -> None:
        if tensor.name not in self._linears:
            self._others.write(tensor, first, encoded)
            return
        weight, scales = encoded
        self._scales += bytes_of(scales)
        if first + len(weight) == tensor.rows:
            self._writer.set_tail(_scales_of(tensor.name), bytes(self._scales))
            self._scales.clear()
        self._writer.write(bytes_of(weight))


def quantize_rows(name: str, rows: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """Each row in steps of its largest magnitude / 127, rounded to the number format that the scale is kept in.

    Args:
        name: what messages call the weight.
        rows: [rows, inputs] in float32, float16 or bfloat16; they are left as they are.

    Returns:
        int8 [rows, inputs], and scales [rows, 1] in the rows' number format.

    Raises:
        InvalidInput: a weight is not finite.
    """
    import torch

    values = rows.float()
    scales = (values.abs().amax(dim=1, keepdim=True) / _LEVELS).to(rows.dtype)
    if not scales.isfinite().all():
        raise InvalidInput(f"{name} holds NaN or infinity: the model is damaged; save or copy it again")
    # Of zeros, or of numbers too small for a scale, nothing is left: any scale will do, but for zero.
    scales[scales == 0] = 1
    return (values / scales.float()).round_().clamp_(-_LEVELS, _LEVELS).to(torch.int8), scales


def _scales_of(weight: str) -> str:
    return f"{weight}_scale"

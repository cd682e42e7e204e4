"""INT8 by bitsandbytes (LLM.int8), as from_pretrained reads it: weight int8, SCB float32, weight_format uint8."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.models.weights import SAFETENSORS_DTYPES, StoredTensor
from edgetune_jobs.tensors.merged_rows import PIECE_BYTES
from edgetune_jobs.tensors.reader import Buffers
from edgetune_jobs.tensors.safetensors_plan import PlannedTensor, TensorGroup
from edgetune_jobs.tensors.safetensors_writer import SafetensorsWriter
from edgetune_jobs.tensors.scratch import cached_rows, scratch
from edgetune_jobs.tensors.stored import StoredEncoder, bytes_of

if TYPE_CHECKING:
    import torch

FLOAT16_MAX = 65504.0
_LEVELS = 127.0
# weight_format 0: rows as they are, in no order that a GPU would want.
_ROW_MAJOR = b"\0"


def quantization_config(outlier_threshold: float) -> dict[str, Any]:
    """What transformers' BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=…) writes into config.json."""
    return {
        "_load_in_4bit": False,
        "_load_in_8bit": True,
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_use_double_quant": False,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": None,
        "llm_int8_threshold": outlier_threshold,
        "load_in_4bit": False,
        "load_in_8bit": True,
        "quant_method": "bitsandbytes",
    }


def plan_int8(tensors: Sequence[StoredTensor], linears: Collection[str], dtype: str) -> tuple[TensorGroup, ...]:
    """What is written of each tensor.

    Args:
        tensors: of the model.
        linears: weights that become INT8.
        dtype: torch's name of the number format of all others.
    """
    groups = []
    for tensor in tensors:
        if tensor.name not in linears:
            groups.append(TensorGroup(PlannedTensor(tensor.name, SAFETENSORS_DTYPES[dtype], tensor.shape)))
            continue
        scales = PlannedTensor(_beside(tensor.name, "SCB"), "F32", tensor.shape[:1])
        layout = PlannedTensor(_beside(tensor.name, "weight_format"), "U8", ())
        groups.append(TensorGroup(PlannedTensor(tensor.name, "I8", tensor.shape), (scales, layout)))
    return tuple(groups)


class Int8Encoder:
    """Writes a model whose linear layers are in INT8; all other tensors stay as they come."""

    def __init__(self, writer: SafetensorsWriter, linears: Collection[str]) -> None:
        self._writer = writer
        self._linears = linears
        self._others = StoredEncoder(writer)
        self._scales = bytearray()
        self._buffers = Buffers(PIECE_BYTES // 2)

    def row_multiple(self, tensor: StoredTensor) -> int:  # noqa: ARG002 - rows are independent
        return 1

    def encode(self, tensor: StoredTensor, first: int, rows: "torch.Tensor") -> Any:
        """Weight int8 [rows, inputs] and scales float32 [rows]; the rows themselves where nothing is quantized.

        Raises:
            InvalidInput: a weight is beyond float16, from which LLM.int8 starts.
        """
        import torch

        if tensor.name not in self._linears:
            return self._others.encode(tensor, first, rows)
        quantized = self._buffers.take(rows.numel()).view(torch.int8).view(rows.shape)
        return quantized, quantize_rows(tensor.name, rows, quantized)

    def write(self, tensor: StoredTensor, first: int, encoded: Any) -> None:
        if tensor.name not in self._linears:
            self._others.write(tensor, first, encoded)
            return
        weight, scales = encoded
        self._scales += bytes_of(scales)
        if first + len(weight) == tensor.rows:
            self._writer.set_tail(_beside(tensor.name, "SCB"), bytes(self._scales))
            self._writer.set_tail(_beside(tensor.name, "weight_format"), _ROW_MAJOR)
            self._scales.clear()
        self._writer.write(bytes_of(weight))
        self._buffers.give_back(weight)


def quantize_rows(name: str, rows: "torch.Tensor", out: "torch.Tensor") -> "torch.Tensor":
    """Each row in steps of its largest magnitude / 127, as bitsandbytes' int8_vectorwise_quant does it, bit for bit.

    Args:
        name: what messages call the weight.
        rows: [rows, inputs] in float32, float16 or bfloat16; they are left as they are.
        out: int8 [rows, inputs].

    Returns:
        The largest magnitudes, float32 [rows].

    Raises:
        InvalidInput: a weight is not finite or beyond float16, from which LLM.int8 starts.
    """
    import torch

    scales = torch.empty(len(rows), dtype=torch.float32)
    for part in cached_rows(rows):
        shape = tuple(rows[part].shape)
        # By way of float32: torch turns bfloat16 into float16 one by one.
        values = scratch("values", shape, torch.float32).copy_(rows[part])
        values.copy_(scratch("half", shape, torch.float16).copy_(values))
        magnitudes = torch.abs(values, out=scratch("magnitudes", shape, torch.float32))
        torch.amax(magnitudes, 1, out=scales[part])
        if not scales[part].max().item() <= FLOAT16_MAX:  # comparisons with NaN are false
            raise _out_of_range(name, rows[part])
        out[part] = values.mul_((_LEVELS / scales[part]).unsqueeze(1)).round_()
    return scales


def _out_of_range(name: str, rows: "torch.Tensor") -> InvalidInput:
    largest = rows.abs().max().item()
    return InvalidInput(
        f"{name} holds {largest:g}, beyond the largest float16 ({FLOAT16_MAX:g}), from which LLM.int8 "
        "starts: train with a lower spec.training.learningRate or spec.lora.alpha"
    )


def _beside(weight: str, name: str) -> str:
    """Name of a tensor of the same layer."""
    return f"{weight.removesuffix('weight')}{name}"

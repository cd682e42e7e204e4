"""Loads models and tokenizers: device, precision, dtype, NF4; and checks that models are complete.

Weights are loaded only from safetensors or GGUF, offline, and without code of the model folder.
"""

import gc
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgetune_contract.training import Precision
from edgetune_jobs.errors import BASE_FIELD, InvalidInput
from edgetune_jobs.models.libraries import load_config, prepare_libraries, read_proc_bytes
from edgetune_jobs.models.quantization import gguf_loading
from edgetune_jobs.models.quantization.coverage import nf4_weights
from edgetune_jobs.models.quantization.gguf_adapter import add_adapter
from edgetune_jobs.models.quantization.nf4_loading import quantizing_all
from edgetune_jobs.wording import count, first_line

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

_PROCESS_STATUS = Path("/proc/self/status")
_MEMORY = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
# On systems that do not say what is free, such as macOS.
_UNKNOWN_MEMORY = 8 * 2**30
_PAD_TOKENS = ("<pad>", "<|pad|>", "[PAD]", "<|finetune_right_pad_id|>", "<|endoftext|>")
_DTYPES = {Precision.BF16: "bfloat16", Precision.FP16: "float16", Precision.FP32: "float32"}


def choose_device() -> "torch.device":
    """The first visible GPU, of which a process uses one, or the CPU without any."""
    prepare_libraries()
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def device_names() -> list[str]:
    """Names for torch.device of all visible GPUs, or of the CPU without any."""
    prepare_libraries()
    import torch

    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else ["cpu"]


def resolve_precision(requested: Precision, device: "torch.device") -> Precision:
    """The requested precision, or for Auto the best one that the hardware supports: BF16, FP16 or FP32.

    Raises:
        InvalidInput: the hardware does not support the requested precision.
    """
    has_bf16 = _has_bf16(device)
    if requested is Precision.AUTO:
        if has_bf16:
            return Precision.BF16
        return Precision.FP16 if device.type == "cuda" else Precision.FP32
    if requested is Precision.FP16 and device.type == "cpu":
        raise InvalidInput("spec.training.precision: FP16 requires a GPU, but none is visible; use Auto, BF16 or FP32")
    if requested is Precision.BF16 and device.type == "cuda" and not has_bf16:
        raise InvalidInput("spec.training.precision: this GPU does not support BF16; use Auto, FP16 or FP32")
    return requested


def describe_precision(requested: Precision, resolved: Precision) -> str:
    """The precision in use, and why it is FP16 although nobody asked for it: loss scaling skips steps."""
    if requested is Precision.AUTO and resolved is Precision.FP16:
        return f"{resolved}: this GPU does not support BF16"
    return resolved.value


def dtype_of(precision: Precision) -> "torch.dtype":
    """torch's dtype of a resolved precision (not Auto)."""
    import torch

    return getattr(torch, _DTYPES[precision])


def dtype_name(dtype: "torch.dtype") -> str:
    """torch's name of a dtype, such as bfloat16."""
    return str(dtype).removeprefix("torch.")


def load_tokenizer(folder: Path, label: str = BASE_FIELD) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder, with a pad token.

    A tokenizer without a pad token gets a token such as <pad> if it is within the model's vocabulary, otherwise EOS.

    Args:
        folder: the model folder.
        label: the model's name in messages.

    Raises:
        InvalidInput: the tokenizer cannot be loaded, or has no EOS token.
    """
    prepare_libraries()
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config = load_config(folder)
    except (OSError, ValueError, KeyError) as error:
        raise InvalidInput(f"{label}: cannot load the tokenizer: {first_line(error)}") from error
    if tokenizer.eos_token is None:
        raise InvalidInput(
            f"{label}: the tokenizer has no eos_token, so the model cannot learn where a response ends; "
            "set eos_token in tokenizer_config.json"
        )
    if tokenizer.pad_token is None:
        vocabulary, rows = tokenizer.get_vocab(), config.get_text_config().vocab_size
        spare = (token for token in _PAD_TOKENS if vocabulary.get(token, rows) < rows and token != tokenizer.eos_token)
        tokenizer.pad_token = next(spare, tokenizer.eos_token)
    return tokenizer


def load_generation_settings(folder: Path) -> "GenerationConfig":
    """Generation settings of a model folder; those of its config.json if it has no generation_config.json."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        return GenerationConfig.from_model_config(load_config(folder))


def load_base(folder: Path, dtype: "torch.dtype", device: "torch.device") -> "PreTrainedModel":
    """A base or merged model in `dtype` on `device`, in eval mode.

    Raises:
        InvalidInput: the folder has no model that can be loaded from safetensors.
    """
    return _load(folder, device, dtype=dtype)


def load_quantized_base(folder: Path, dtype: "torch.dtype", device: "torch.device") -> "PreTrainedModel":
    """A base model with linear layers and experts in NF4 with double quantization; the rest and computation in `dtype`.

    Raises:
        InvalidInput: the folder has no model that can be loaded from safetensors.
    """
    prepare_libraries()
    import torch
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=torch.uint8,
    )
    with quantizing_all():
        model = _load(folder, device, dtype=dtype, quantization_config=config)
    _keep_training_layout(model)
    return model


def load_merged(folder: Path, device: "torch.device") -> "PreTrainedModel":
    """A merged model in its stored dtype, in eval mode, to read its weights; to run it, use load_stored.

    Raises:
        InvalidInput: the folder has no model that can be loaded from safetensors.
    """
    return _load(folder, device, dtype="auto")


def load_stored(folder: Path, device: "torch.device") -> "PreTrainedModel":
    """A merged or edge model for inference, in eval mode and in its stored dtypes.

    On a CPU, float16 becomes float32: see `widen_float16`.

    Raises:
        InvalidInput: the folder has no model that can be loaded from safetensors or GGUF.
    """
    file = gguf_loading.find_file(folder)
    if file is not None:
        with gguf_loading.reading_once():
            model = _load(folder, device, **gguf_loading.options(file, device))
        adapter = gguf_loading.find_adapter(folder)
        if adapter is not None:
            add_adapter(model, adapter)
        return model
    model = _load(folder, device, is_whole=True, dtype="auto")
    widen_float16(model)
    return model


def widen_float16(model: "PreTrainedModel") -> None:
    """Convert the float16 tensors of a model on a CPU to float32 in place: the same values, 100 times faster.

    Training on a GPU without bfloat16 gives float16 models, and evaluation may run without a GPU.
    """
    import torch

    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype is torch.float16 and tensor.device.type == "cpu":
            tensor.data = tensor.data.float()


def round_to_nf4(model: "PreTrainedModel") -> int:
    """Quantize and dequantize every weight that QLoRA keeps in NF4, in place: the base weights of training.

    This includes layers without an adapter: the adapter was trained to compensate the rounding of all layers.
    The values are bitwise those of `load_quantized_base(…)` after dequantization. Returns the number of layers.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Params4bit

    layers = 0
    with torch.no_grad():
        for each in nf4_weights(model):
            weight = each.tensor
            packed = Params4bit(
                weight.detach().clone(),
                requires_grad=False,
                quant_type="nf4",
                compress_statistics=True,
                quant_storage=torch.uint8,
            ).to(weight.device)
            weight.copy_(dequantize_4bit(packed.data, packed.quant_state))
            layers += 1
    return layers


def peak_memory_bytes(device: "torch.device") -> int:
    """Peak memory so far in bytes: allocated on the GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """Peak resident set size of this process so far, in bytes."""
    if _PROCESS_STATUS.exists():
        # Unlike the value of getrusage, VmHWM does not include the peak of the parent process.
        peak = read_proc_bytes(_PROCESS_STATUS, "VmHWM")
        if peak is not None:
            return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def used_memory_bytes(device: "torch.device") -> int:
    """Memory in use now, in bytes: allocated on the GPU, or resident in this process on a CPU."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.memory_allocated(device))
    return (read_proc_bytes(_PROCESS_STATUS, "VmRSS") if _PROCESS_STATUS.exists() else None) or peak_resident_bytes()


def free_memory_bytes(device: "torch.device") -> int:
    """Memory that this process can still take, in bytes: of the GPU, or on a CPU of the container and the machine."""
    if device.type == "cuda":
        import torch

        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    of_machine = read_proc_bytes(_MEMORY, "MemAvailable") if _MEMORY.exists() else None
    return min((free for free in (of_machine, _free_of_container()) if free is not None), default=_UNKNOWN_MEMORY)


def _free_of_container() -> int | None:
    """The container's memory limit without what its processes hold; None if there is no limit, or no cgroup v2."""
    try:
        limit, statistics = (_CGROUP / "memory.max").read_text(), (_CGROUP / "memory.stat").read_text()
    except OSError:
        return None
    held = next((int(line.split()[1]) for line in statistics.splitlines() if line.startswith("anon ")), 0)
    return None if limit.strip() == "max" else int(limit) - held


def free_memory() -> None:
    """Free the memory of models that are no longer referenced, also on the GPU."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe_device(device: "torch.device") -> str:
    """The GPU's name, or the CPU with the number of threads."""
    import torch

    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"CPU, {torch.get_num_threads()} threads"


def _load(folder: Path, device: "torch.device", *, is_whole: bool = False, **options: Any) -> "PreTrainedModel":
    prepare_libraries()
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    try:
        if "gguf_file" not in options:
            options["config"] = load_config(folder)
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            device_map={"": device},
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with both shapes
            **options,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InvalidInput(
            f"cannot load the model in {folder.name}: {first_line(error)} "
            "(required: config.json of a causal language model, and weights in safetensors)"
        ) from error
    _check_complete(folder, loading)
    if is_whole and loading["unexpected_keys"]:
        ignored = sorted(loading["unexpected_keys"])
        raise InvalidInput(
            f"transformers does not read {count(len(ignored), 'tensor')} of the model in {folder.name}, so it would "
            f"answer as another model (first: {ignored[0]}); use another format or base model"
        )
    return model.eval()


def _check_complete(folder: Path, loading: Mapping[str, Any]) -> None:
    """Refuse missing and mismatched weights: transformers would only log a warning and initialize them randomly."""
    missing = sorted(loading["missing_keys"])
    if missing:
        raise InvalidInput(
            f"the model in {folder.name} is incomplete: "
            f"{count(len(missing), 'weight is', 'weights are')} missing (first: {missing[0]})"
        )
    for name, stored, expected in sorted(loading["mismatched_keys"]):
        raise InvalidInput(
            f"the model in {folder.name} does not match its config.json: {name} has shape {list(stored)}, "
            f"expected {list(expected)}"
        )


def _keep_training_layout(model: "PreTrainedModel") -> None:
    """Prevent bitsandbytes from repacking NF4 weights for inference on CPUs with AVX512-BF16.

    The repacked layout has no backward pass: after one forward pass in eval mode, gradients would stop at the base
    layers, and training would continue with a falling loss and wrong updates.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _has_bf16(device: "torch.device") -> bool:
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))

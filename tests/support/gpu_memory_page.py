"""docs/gpu-memory.md: which models fit which GPU with the defaults of QLoRA, by the estimate that prepare makes.

`PYTHONPATH=tests python -m support.gpu_memory_page` writes its table, with --check it compares. No weights are needed.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgetune_contract.spec import Parameters
from edgetune_jobs.models.inspection import BaseModel, targeted_layers
from edgetune_jobs.models.quantization.coverage import nf4_coverage
from edgetune_jobs.models.safetensors_header import Tensor
from edgetune_jobs.models.skeleton import build_skeleton
from edgetune_jobs.training.memory.activations import measure_activations
from edgetune_jobs.training.memory.estimate import Workload, number_bytes_of
from edgetune_jobs.training.memory.gpu_fit import GIB, fit_gpu
from support.apiserver import REPOSITORY
from support.generated_section import GeneratedSection

SECTION = GeneratedSection(
    REPOSITORY / "docs" / "gpu-memory.md", "<!-- table: make generate -->\n", "<!-- end of the table -->\n"
)

TOKENS = 512
# Memory in GiB that nvidia-smi reports for the whole card.
GPUS = {"T4": 15.0, "L4": 22.5, "A10": 22.5, "RTX 4090": 24.0, "A100 80 GB": 80.0, "H100 80 GB": 79.6}


def _config(kind: str, hidden: int, inner: int, layers: int, heads: int, keys: int, *, tied: bool) -> dict[str, Any]:
    vocabularies = {"llama": 128_256, "qwen2": 151_936}
    return {
        "model_type": kind,
        "architectures": [{"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[kind]],
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": 152_064 if kind == "qwen2" and hidden > 4096 else vocabularies[kind],
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }


# Shapes from the config.json of each model on the hub.
MODELS: Mapping[str, dict[str, Any]] = {
    "Qwen2.5 0.5B": _config("qwen2", 896, 4864, 24, 14, 2, tied=True),
    "Llama 3.2 1B": _config("llama", 2048, 8192, 16, 32, 8, tied=True),
    "Llama 3.2 3B": _config("llama", 3072, 8192, 28, 24, 8, tied=True),
    "Llama 3.1 8B": _config("llama", 4096, 14_336, 32, 32, 8, tied=False),
    "Qwen2.5 14B": _config("qwen2", 5120, 13_824, 48, 40, 8, tied=False),
    "Llama 3.1 70B": _config("llama", 8192, 28_672, 80, 64, 8, tied=False),
}


def workload_of(config: Mapping[str, Any], folder: Path) -> Workload:
    """QLoRA with its defaults on a model of this configuration, with examples of TOKENS tokens.

    Args:
        config: content of config.json.
        folder: an empty folder for it.
    """
    (folder / "config.json").write_text(json.dumps(config))
    parameters = Parameters.model_validate(
        {"baseModel": {"uri": "file:///base"}, "dataset": {"train": {"uri": "file:///data"}}}
    )
    skeleton = build_skeleton(folder)
    tensors = {
        name: Tensor("BF16", tuple(each.shape), 0, 2 * each.numel()) for name, each in skeleton.named_parameters()
    }
    base = BaseModel(folder, config, config["architectures"][0], 0, tensors)
    activations = measure_activations(folder, parameters.lora, number_bytes_of(parameters.training))
    targets = targeted_layers(base, parameters.lora)
    return Workload(base, nf4_coverage(skeleton), targets, parameters, TOKENS, activations)


def table() -> str:
    """The table as Markdown."""
    head = "".join(f" {name} |" for name in GPUS)
    return "".join([f"| model | least |{head}\n", f"|---|---|{'---|' * len(GPUS)}\n", *_rows()])


def _rows() -> Iterator[str]:
    for name, config in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            workload = workload_of(config, Path(folder))
        cells = [_cell(workload, round(size * GIB)) for size in GPUS.values()]
        yield f"| {name} | {workload.least().total / GIB:.1f} | {' | '.join(cells)} |\n"


def _cell(workload: Workload, gpu_bytes: int) -> str:
    fit = fit_gpu(workload, TOKENS, gpu_bytes)
    if not fit.is_possible:
        return "no"
    recomputed = {0: "", 1: ", all"}.get(fit.choice.recompute, f", 1 of {fit.choice.recompute}")
    tight = "" if fit.largest else ", tight"
    return f"{fit.choice.micro_batch_size}: {fit.total / GIB:.1f}{recomputed}{tight}"


if __name__ == "__main__":
    SECTION.write_or_check(table())

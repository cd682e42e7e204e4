"""README.md of an adapter's folder: its base, and how peft, vLLM and text-generation-inference load it."""

from pathlib import Path

from edgetune_contract.spec import BaseModelSpec
from edgetune_jobs.models.adapters.adapter_files import library_name

FILE = "README.md"
_HUB = "https://huggingface.co"
# The values of vLLM's --max-lora-rank.
_RANKS_OF_VLLM = (8, 16, 32, 64, 128, 256, 320, 512)


def write_card(folder: Path, base: BaseModelSpec, rank: int) -> None:
    """Write README.md. Equal adapters have equal cards, whatever the name of their object.

    Args:
        folder: of the adapter.
        base: the model that it fits.
        rank: of its matrices.
    """
    name = library_name(base)
    is_in_bucket = name.startswith("s3://")
    metadata = ([f"base_model: {name}"] if base.is_on_hub else []) + [
        "library_name: peft",
        "pipeline_tag: text-generation",
    ]
    place = f"[{name}]({_HUB}/{name}) at commit `{base.revision}`" if base.is_on_hub else f"`{name}`"
    load = ["from peft import AutoPeftModelForCausalLM", 'model = AutoPeftModelForCausalLM.from_pretrained("adapter")']
    if is_in_bucket:
        load = [
            f"# aws s3 cp --recursive {name} base",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM",
            'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "adapter")',
        ]
    model = "base" if is_in_bucket else name
    revision = f" --revision {base.revision}" if base.is_on_hub else ""
    longest = next((each for each in _RANKS_OF_VLLM if each >= rank), rank)
    serve = (
        f"vllm serve {model}{revision} --enable-lora --max-lora-rank {longest} --lora-modules tuned=/path/of/adapter"
    )
    launch = f"LORA_ADAPTERS=tuned=/path/of/adapter text-generation-launcher --model-id {model}{revision}"
    lines = [
        *("---", *metadata, "---", ""),
        *(f"# LoRA adapter for {name}", ""),
        *(f"It has rank {rank}, was trained by Edgetune, and fits only its base, {place}.", ""),
        *("```python", *load, "```", ""),
        *("```", serve, launch, "```", ""),
        "Prompts must be wrapped as in training. The chat template of the tokenizer in this folder does that for a "
        "user's message; a server that reads the base's tokenizer must be given it: `vllm serve --chat-template "
        "/path/of/adapter/chat_template.jinja`.",
    ]
    (folder / FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")

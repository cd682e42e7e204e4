"""Writes model folders for from_pretrained: weights, tokenizer, generation settings, prompt format."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_jobs.data.chat.trained_template import TrainedTemplate, trained_template
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.models.folder import (
    CHAT_TEMPLATE_FILE,
    CODE_FIELD,
    COMPANION_FILES,
    TOKENIZER_CONFIG,
    LocalModelFolder,
    ModelFolder,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TEMPLATE_FIELD = "chat_template"


def save_model(model: "PreTrainedModel", folder: Path, companions: Path, prompt_format: PromptFormat) -> None:
    """Write a model folder for from_pretrained: safetensors, tokenizer, generation settings, edgetune.json.

    Args:
        model: the model.
        folder: the folder to write, which is created if needed.
        companions: model folder whose tokenizer and generation settings are copied.
        prompt_format: how prompts were wrapped in training.
    """
    from transformers import GenerationConfig

    # transformers refuses to save the generation settings of some older models; the file itself is copied below.
    model.generation_config = GenerationConfig.from_model_config(model.config)
    if hasattr(model.config, CODE_FIELD):
        delattr(model.config, CODE_FIELD)
    model.save_pretrained(folder)
    copy_companions(LocalModelFolder(companions, f"the model in {companions.name}"), folder, prompt_format)


def copy_companions(model: ModelFolder, folder: Path, prompt_format: PromptFormat) -> None:
    """Copy tokenizer and generation settings unchanged into a model folder, and write edgetune.json.

    Args:
        model: the model to copy from.
        folder: the model folder to write to.
        prompt_format: how prompts were wrapped in training.
    """
    names = [name for name in COMPANION_FILES if name in model.sizes]
    source = model.fetch(names)
    for name in names:
        shutil.copyfile(source / name, folder / name)
    prompt_format.write(folder)


def write_chat_template(
    folder: Path, prompt_format: PromptFormat, tokenizer: "PreTrainedTokenizerBase"
) -> TrainedTemplate | None:
    """Give the tokenizer of a model folder the chat template of training; None if it has that already.

    Args:
        folder: a folder with the files of `tokenizer`.
        prompt_format: how prompts were wrapped in training.
        tokenizer: the base's.
    """
    template = trained_template(prompt_format, tokenizer)
    if template is None:
        return None
    (folder / CHAT_TEMPLATE_FILE).write_text(template.text, encoding="utf-8", newline="")
    (folder / "chat_template.json").unlink(missing_ok=True)
    path = folder / TOKENIZER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if _TEMPLATE_FIELD in config:  # older libraries read only this one
        config[_TEMPLATE_FIELD] = template.text
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return template


def folder_bytes(folder: Path) -> int:
    """Total size of all files in a folder and its subfolders."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

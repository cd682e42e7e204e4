"""Model folders as from_pretrained reads them: weights, tokenizer, generation settings, prompt format."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_contract.spec import DatasetSpec
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.models.folder import CODE_FIELD, COMPANION_FILES, LocalModelFolder, ModelFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_model(model: "PreTrainedModel", folder: Path, companions: Path, dataset: DatasetSpec) -> None:
    """Write a model folder that from_pretrained reads: safetensors, tokenizer, generation settings, edgetune.json.

    Args:
        model: the model.
        folder: where to; made if needed.
        companions: model folder whose tokenizer and generation settings are copied.
        dataset: the spec's section, for the prompt format.
    """
    from transformers import GenerationConfig

    # Older models come with settings that transformers refuses to write again; the file itself is copied below.
    model.generation_config = GenerationConfig.from_model_config(model.config)
    if hasattr(model.config, CODE_FIELD):
        delattr(model.config, CODE_FIELD)
    model.save_pretrained(folder)
    copy_companions(LocalModelFolder(companions, f"the model in {companions.name}"), folder, dataset)


def copy_companions(model: ModelFolder, folder: Path, dataset: DatasetSpec) -> None:
    """Give a model folder the tokenizer and generation settings of another, as they are, and edgetune.json.

    Args:
        model: has the files.
        folder: gets them.
        dataset: the spec's section, for the prompt format.
    """
    names = [name for name in COMPANION_FILES if name in model.sizes]
    source = model.fetch(names)
    for name in names:
        shutil.copyfile(source / name, folder / name)
    PromptFormat.of(dataset).write(folder)


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

"""The artifact of train: an adapter that peft loads, with tokenizer, prompt format and record beside its weights."""

from typing import TYPE_CHECKING

from edgetune_contract.pipeline import ADAPTER, BASE, PREPARED
from edgetune_contract.spec import BaseModelSpec
from edgetune_jobs.data import prompt_format as prompt_formats
from edgetune_jobs.data.prepared_data import is_text_part
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.errors import BASE_FIELD
from edgetune_jobs.models import loading
from edgetune_jobs.models.adapters.adapter_card import write_card
from edgetune_jobs.models.adapters.adapter_files import RECORD, TrainingRecord, save_adapter
from edgetune_jobs.models.folder import LocalModelFolder, write_json
from edgetune_jobs.models.saving import copy_companions, write_chat_template
from edgetune_jobs.stage import StageContext

if TYPE_CHECKING:
    from peft import PeftModel


def write_adapter_folder(context: StageContext, model: "PeftModel", record: TrainingRecord) -> None:
    """Write the artifact `adapter`."""
    folder, base = context.output / ADAPTER, context.inputs[BASE]
    save_adapter(model, folder, adapted_base(context))
    write_card(folder, adapted_base(context), context.request.parameters.lora.rank)
    prompt_format = _prompt_format(context)
    copy_companions(LocalModelFolder(base, BASE_FIELD), folder, prompt_format)
    write_chat_template(folder, prompt_format, loading.load_tokenizer(base))
    write_json(folder / RECORD, record.model_dump(mode="json"))


def adapted_base(context: StageContext) -> BaseModelSpec:
    """The model that the adapter fits, by the name that its config gets.

    The layers of a multimodal model have other names than those of its text part, and peft would leave an adapter for
    them out without an error: so the adapter names the copy of the text part.
    """
    base = context.request.parameters.base_model
    if context.base_copy_uri is None or not is_text_part(context.inputs[PREPARED]):
        return base
    return base.model_copy(update={"uri": context.base_copy_uri, "revision": ""})


def _prompt_format(context: StageContext) -> PromptFormat:
    """The prompt format that prepare wrote beside the rows, with what all conversations share."""
    prepared = context.inputs[PREPARED]
    if (prepared / prompt_formats.FILE).is_file():
        return PromptFormat.read(prepared)
    return PromptFormat.of(context.request.parameters.dataset)

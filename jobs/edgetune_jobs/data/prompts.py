"""edgetune.json of a model folder: how prompts were wrapped in training, so that they are again."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from edgetune_contract.model import Model
from edgetune_contract.spec import CHAT_TEMPLATE, DatasetSpec, RowFormat
from edgetune_jobs.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "edgetune.json"


class PromptFormat(Model):
    """How a prompt is wrapped for a model."""

    template: str
    """Text with {instruction} in it, or ChatTemplate for the tokenizer's own."""

    format: RowFormat

    @classmethod
    def of(cls, dataset: DatasetSpec) -> "PromptFormat":
        """The format in which a data set's rows were learned."""
        return cls(template=dataset.template, format=dataset.format)

    @classmethod
    def read(cls, folder: Path) -> "PromptFormat":
        """edgetune.json of a model folder.

        Raises:
            InvalidInput: the folder has none, or it is not what the merge and quantize stages write.
        """
        try:
            return cls.model_validate_json((folder / FILE).read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InvalidInput(f"{folder} has no {FILE}: it is no model folder of edgetune") from error
        except ValidationError as error:
            raise InvalidInput(f"{folder / FILE} cannot be read: {error.errors()[0]['msg']}") from error

    def write(self, folder: Path) -> None:
        """Write edgetune.json into a model folder."""
        (folder / FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def token_ids(self, tokenizer: "PreTrainedTokenizerBase", prompt: str) -> list[int]:
        """Token ids of a prompt, wrapped, up to where the answer begins."""
        if self.format is RowFormat.CHAT or (self.format is RowFormat.INSTRUCTION and self.template == CHAT_TEMPLATE):
            messages = [{"role": "user", "content": prompt}]
            encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
            return list(encoded["input_ids"])
        text = prompt if self.format is RowFormat.TEXT else self.template.replace("{instruction}", prompt)
        ids = list(tokenizer(text)["input_ids"])
        # Some tokenizers end every text with EOS; the model has yet to answer.
        return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids

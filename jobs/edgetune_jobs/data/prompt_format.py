"""edgetune.json of a model folder: how training wrapped prompts, so that whoever asks the model does the same."""

from pathlib import Path

from pydantic import ValidationError

from edgetune_contract.model import Model
from edgetune_contract.spec import DatasetSpec, RowFormat
from edgetune_jobs.errors import InvalidInput

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

"""edgetune.json of a model folder: the prompt template of training, which inference must also use."""

from pathlib import Path

from pydantic import ValidationError

from edgetune_contract.schema import Model
from edgetune_contract.spec import DatasetSpec, RowFormat
from edgetune_jobs.errors import InvalidInput

FILE = "edgetune.json"


class PromptFormat(Model):
    """The template that wraps prompts for a model."""

    template: str
    """A text that contains {instruction}, or ChatTemplate for the tokenizer's chat template."""

    format: RowFormat

    @classmethod
    def of(cls, dataset: DatasetSpec) -> "PromptFormat":
        """The format of a data set's rows."""
        return cls(template=dataset.template, format=dataset.format)

    @classmethod
    def read(cls, folder: Path) -> "PromptFormat":
        """Read edgetune.json of a model folder.

        Raises:
            InvalidInput: the file is missing or invalid.
        """
        try:
            return cls.model_validate_json((folder / FILE).read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InvalidInput(f"{folder} has no {FILE}, so Edgetune did not write this model") from error
        except ValidationError as error:
            raise InvalidInput(f"{folder / FILE} is invalid: {error.errors()[0]['msg']}") from error

    def write(self, folder: Path) -> None:
        """Write edgetune.json into a model folder."""
        (folder / FILE).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

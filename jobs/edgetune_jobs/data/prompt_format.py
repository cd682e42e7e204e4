"""edgetune.json of a model folder: the prompt template of training, which inference must also use."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from edgetune_contract.schema import Model
from edgetune_contract.spec import CHAT_TEMPLATE, DatasetSpec, RowFormat
from edgetune_jobs.errors import InvalidInput

FILE = "edgetune.json"
INSTRUCTION = "instruction"

# Braces around a name are a column; all other braces, such as those of JSON, are text.
_COLUMN = re.compile(r"\{(\w(?:[\w .-]*\w)?)\}")


class PromptFormat(Model):
    """The template that wraps prompts for a model."""

    template: str
    """A text that contains {instruction} and may contain other columns, or ChatTemplate for the tokenizer's chat
    template."""

    format: RowFormat

    system: str = ""
    """The system message that all conversations of the training data share (format Chat)."""

    tools: tuple[dict[str, Any], ...] = ()
    """The functions that all conversations of the training data may call (format Chat)."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the template's columns besides the instruction, in order of first appearance."""
        if self.format is not RowFormat.INSTRUCTION or self.template == CHAT_TEMPLATE:
            return ()
        return tuple(name for name in dict.fromkeys(_COLUMN.findall(self.template)) if name != INSTRUCTION)

    def pieces(self) -> Iterator[tuple[str, bool]]:
        """The template's texts and names of columns in order, each with whether it is a column."""
        end = 0
        for match in _COLUMN.finditer(self.template):
            if match.start() > end:
                yield self.template[end : match.start()], False
            yield match[1], True
            end = match.end()
        if end < len(self.template):
            yield self.template[end:], False

    def fill(self, value_of: Callable[[str], str]) -> str:
        """The template with the value of each column in its place; braces in values are text."""
        return _COLUMN.sub(lambda match: value_of(match[1]), self.template)

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
        (folder / FILE).write_text(self.model_dump_json(indent=2, exclude_defaults=True) + "\n", encoding="utf-8")

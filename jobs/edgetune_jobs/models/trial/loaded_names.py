"""The names under which transformers loads stored tensors: it renames and converts those of many model types."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class OneTensor:
    """A stored tensor, as a model loads it."""

    name: str
    """Name in the model."""

    stored_as: str
    """Name after all renaming, but before a conversion; `name` if it is not converted."""

    operations: tuple[str, ...] = ()
    """Classes of the operations that convert it, such as Concatenate; none if it is loaded as it is."""


class LoadedNames:
    """Finds the tensors of a model that stored tensors become, with the rules by which from_pretrained does it."""

    def __init__(self, model: "PreTrainedModel") -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        mapping = get_model_conversion_mapping(model)
        self._renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
        self._converters = [each for each in mapping if isinstance(each, WeightConverter)]
        self._prefix = model.base_model_prefix
        self._own = model.state_dict()

    def in_order(self, stored: Iterable[str]) -> list[str]:
        """Stored names in the order in which they are loaded: some rules apply only after another one has."""
        from transformers.core_model_loading import dot_natural_key

        return sorted(stored, key=dot_natural_key)

    def find(self, stored: str) -> OneTensor | None:
        """The tensor of the model; None if the model does not load it."""
        from transformers.core_model_loading import apply_renamings, rename_source_key

        name, pattern = rename_source_key(stored, self._renamings, self._converters, self._prefix, self._own)
        if name not in self._own and stored in self._own:
            name, pattern = rename_source_key(stored, [], [], self._prefix, self._own)
        if name not in self._own:
            return None
        if pattern is None:
            return OneTensor(name, name)
        converter = next(each for each in self._converters if pattern in each.source_patterns)
        operations = tuple(type(each).__name__ for each in converter.operations)
        return OneTensor(name, apply_renamings(stored, self._renamings), operations)

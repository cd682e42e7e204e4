"""Which files of a folder are rows to train on and which to evaluate on, by the names of their splits."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from edgetune_jobs.wording import count, some


class Split(StrEnum):
    """A part of a data set, as the Hugging Face libraries name it."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


_SPLIT_OF = {
    "train": Split.TRAIN,
    "training": Split.TRAIN,
    "validation": Split.VALIDATION,
    "valid": Split.VALIDATION,
    "val": Split.VALIDATION,
    "dev": Split.VALIDATION,
    "test": Split.TEST,
    "testing": Split.TEST,
    "eval": Split.TEST,
    "evaluation": Split.TEST,
}
# A split's name has no letter before or after it: train-00000-of-00002 and my_test2, but not latest.
_SPLIT = re.compile(rf"(?<![^\W\d_])({'|'.join(sorted(_SPLIT_OF, key=len, reverse=True))})(?![^\W\d_])", re.IGNORECASE)

_HELD_OUT = (Split.VALIDATION, Split.TEST)
_NO_SPLIT = "no split in the name"
_MOST_NAMED = 3

# The datasets library writes these beside the rows of save_to_disk and of the hub.
_DESCRIPTIONS = frozenset(("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"))
# Beside a data set that was loaded from its folder, the library keeps the results of map and filter.
_CACHED = re.compile(r"cache-[0-9a-f]+(_\d+_of_\d+)?\.arrow")


@dataclass(frozen=True)
class FolderFiles:
    """The files of a folder by their use; paths are in the folder's order."""

    rows: Sequence[str]
    """The files with the rows that the spec asks for."""

    held_out: Sequence[str] = ()
    """Files of a training folder with rows to evaluate on."""

    notes: Sequence[str] = ()
    """What was taken for what, and what is not read."""


def split_of(path: str) -> Split | None:
    """The split that a file's name, or else the innermost folder with such a name, stands for."""
    for part in reversed(PurePosixPath(path).parts):
        if match := _SPLIT.search(part):
            return _SPLIT_OF[match[1].lower()]
    return None


def choose_files(paths: Sequence[str], *, to_train: bool, has_eval: bool) -> FolderFiles:
    """Choose the files of a training or an evaluation folder.

    Training reads the files of the split train, or else those without a split; evaluation those of validation, or else
    of test. A folder in which this leaves nothing has one kind of rows: all of its files are read. A training folder's
    validation files, or else its test files, are evaluated on if the spec names no other rows for that.

    Args:
        paths: all data files of the folder.
        to_train: whether the spec names the folder for training.
        has_eval: whether the spec names rows to evaluate on.
    """
    descriptions = [path for path in paths if PurePosixPath(path).name in _DESCRIPTIONS] if len(paths) > 1 else []
    cached = [path for path in paths if _CACHED.fullmatch(PurePosixPath(path).name)]
    other = {*descriptions, *(cached if len(cached) < len(paths) else ())}
    files = [path for path in paths if path not in other]
    by_split: dict[str, list[str]] = {}
    for path in files:
        by_split.setdefault(split_of(path) or _NO_SPLIT, []).append(path)
    present = list(by_split)
    wanted = [name for name in ((Split.TRAIN, _NO_SPLIT) if to_train else _HELD_OUT) if name in by_split]
    notes = [f"not rows, but a description of them: {some(descriptions)}"] if descriptions else []
    if other.intersection(cached):
        notes.append(f"not rows of the data set, but a cache of the datasets library: {some(cached)}")
    if not wanted or len(present) < 2:
        if to_train and present and not wanted:
            notes.append(f"all files are named as {' or '.join(present)}, and trained on: {some(files)}")
        return FolderFiles(files, notes=notes)
    rows = by_split.pop(wanted[0])
    reserved = [name for name in _HELD_OUT if name in by_split] if to_train and not has_eval else []
    held_out = by_split.pop(reserved[0]) if reserved else []
    use = "training" if to_train else "evaluation"
    notes.append(f"{count(len(rows), 'file')} for {use} ({wanted[0]}): {some(rows, _MOST_NAMED)}")
    if held_out:
        notes.append(
            f"{count(len(held_out), 'file')} for evaluation ({reserved[0]}), because spec.dataset.eval is not set: "
            f"{some(held_out, _MOST_NAMED)}; evalSplitPercent is not used"
        )
    unused = [path for name in by_split for path in by_split[name]]
    if unused:
        notes.append(f"{count(len(unused), 'file is', 'files are')} not used: {some(unused, _MOST_NAMED)}")
    return FolderFiles(rows, held_out, notes)

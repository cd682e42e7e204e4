"""The text part of a multimodal model, read as a plain text model: a source that renames tensors and leaves out others.

Nothing is computed and no tensor is held in memory: the files are a config.json, headers of safetensors, and byte
ranges of the stored weights. prepare inspects this source, and its copy in the store is the base of all later stages.
"""

import json
import shutil
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from edgetune_contract.digest import sha256_of
from edgetune_contract.request import FileEntry
from edgetune_jobs.errors import BASE_FIELD, InvalidInput
from edgetune_jobs.models.folder import (
    CODE_FIELD,
    COMPANION_FILES,
    CONFIG,
    SourceModelFolder,
    base_label,
    without_code,
)
from edgetune_jobs.models.libraries import prepare_libraries
from edgetune_jobs.models.trial.bounds import check_bounds
from edgetune_jobs.models.trial.process import HOW_TO_REPAIR, TrialFailed, TrialProcess
from edgetune_jobs.models.trial.text_part import TextPart, find_text_part
from edgetune_jobs.models.weights import WEIGHTS_INDEX, StoredTensor, fill, read_json, read_tensors
from edgetune_jobs.stage import OutputFile
from edgetune_jobs.store.files import CHUNK_BYTES
from edgetune_jobs.store.sources.source import Source
from edgetune_jobs.tensors.safetensors_plan import (
    MAX_FILE_BYTES,
    PlannedFile,
    PlannedTensor,
    TensorGroup,
    plan_files,
    weights_index,
)
from edgetune_jobs.wording import count, some

# Configurations of parts in a config.json. Some models have their text part's fields beside that of their vision part.
_PARTS = ("text_config", "vision_config", "audio_config", "thinker_config")


def is_multimodal(source: Source) -> bool:
    """Whether the base model has parts other than text, so that stages use a copy of its text part."""
    with suppress(InvalidInput):  # inspect_base says what is wrong with the file
        config = _read_config(source)
        return any(isinstance(config.get(part), Mapping) for part in _PARTS)
    return False


def text_model(source: Source, trial: TrialProcess, folder: Path) -> Source:
    """The text part of a multimodal base model; the source itself if it is a text model.

    Args:
        source: the base model.
        trial: the child process that builds the models, without their weights.
        folder: for the small files of the text model; it is created.

    Raises:
        InvalidInput: the text part cannot be used as a model of its own, or the model has an invalid file.
    """
    config = _read_config(source) if is_multimodal(source) else {}
    if not config or (config.get(CODE_FIELD) and not _is_native(config.get("model_type"))):
        return source  # inspect_base refuses a model that needs its own code
    tensors = read_tensors(SourceModelFolder(source, base_label(source.uri)))
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    check_bounds(config, len(shapes))
    try:
        part = trial.call(find_text_part, source.fetch([CONFIG]), shapes)
    except TrialFailed as error:
        raise InvalidInput(f"{BASE_FIELD}: {error}; {HOW_TO_REPAIR}") from error
    return TextModel(source, part, tensors, folder)


class TextModel:
    """The text part as a source. It has the digest of the whole model: nothing else decides what it contains."""

    def __init__(
        self,
        whole: Source,
        part: TextPart,
        tensors: Sequence[StoredTensor],
        folder: Path,
        max_file_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        """
        Args:
            whole: the multimodal model.
            part: which of its tensors are used, and their names.
            tensors: all of its tensors.
            folder: for the small files; it is created.
            max_file_bytes: the largest size of the tensors of one file.
        """
        self._whole = whole
        self._part = part
        self._tensors = tensors
        self._folder = folder
        self._max_file_bytes = max_file_bytes
        self._fetched: set[str] = set()

    @property
    def uri(self) -> str:
        return self._whole.uri

    @property
    def digest(self) -> str:
        return self._whole.digest

    @property
    def ignored(self) -> Sequence[str]:
        return self._whole.ignored

    @property
    def architecture(self) -> str:
        """Architecture of the multimodal model."""
        return self._part.whole

    @property
    def warning(self) -> str:
        """What is used of the multimodal model, and what is left out."""
        left_out = [tensor for tensor in self._tensors if tensor.name in self._part.left_out]
        used = f"the base model is multimodal: only the text part of {self._part.whole}, {self._part.architecture},"
        if not left_out:
            return f"{used} is used"
        share = sum(tensor.bytes for tensor in left_out) / sum(tensor.bytes for tensor in self._tensors)
        parts = sorted({self._part.left_out[tensor.name] for tensor in left_out})
        return (
            f"{used} is used; {count(len(left_out), 'tensor of', 'tensors of')} {some(parts)}, {share:.1%} of the "
            "weights' bytes, are left out, also of the edge model"
        )

    @cached_property
    def files(self) -> Sequence[FileEntry]:
        """The files; a SHA-256 is not that of the file, but says what it is made from."""
        sizes = {file.path: file.bytes for file in self._whole.files if file.path in COMPANION_FILES}
        sizes |= {name: len(content) for name, content in self._generated.items()}
        sizes |= {name: file.bytes for name, file in self._weights.items()}
        return [
            FileEntry(path=name, bytes=size, sha256=sha256_of({"textPartOf": self.digest, "file": name}))
            for name, size in sorted(sizes.items())
        ]

    def fetch(self, paths: Sequence[str]) -> Path:
        """A local folder with these files. Weights are written as a whole: `write_to` needs no disk space.

        Raises:
            InvalidInput: a path is not a file of the text model.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(set(paths) - self._fetched):
            self._check(path)
            if path in COMPANION_FILES:
                shutil.copyfile(self._whole.fetch([path]) / path, self._folder / path)
            else:
                with (self._folder / path).open("wb") as file:
                    self.write_to(path, file)
            self._fetched.add(path)
        return self._folder

    def read_into(self, path: str, start: int, buffer: memoryview) -> int:
        self._check(path)
        if path in COMPANION_FILES:
            return self._whole.read_into(path, start, buffer)
        if path in self._generated:
            part = self._generated[path][start : start + len(buffer)]
            buffer[: len(part)] = part
            return len(part)
        return self._weights[path].read_into(self._whole, start, buffer)

    def read_note(self, path: str) -> bytes:
        """The first bytes of a file of the multimodal model."""
        return self._whole.read_note(path)

    def write_to(self, path: str, output: OutputFile) -> None:
        """Write a file in pieces of a few megabytes.

        Raises:
            InvalidInput: the whole model's file has become shorter.
        """
        model = SourceModelFolder(self, base_label(self.uri))
        size = model.sizes[path]
        for start in range(0, size, CHUNK_BYTES):
            buffer = bytearray(min(CHUNK_BYTES, size - start))
            if fill(model, path, start, memoryview(buffer)) < len(buffer):
                raise InvalidInput(f"{base_label(self.uri)} has changed while it was read; ask for a retry")
            output.write(bytes(buffer))

    def _check(self, path: str) -> None:
        if path not in {file.path for file in self.files}:
            raise InvalidInput(f"{base_label(self.uri)} has no file {path}")

    @cached_property
    def _weights(self) -> "dict[str, _RenamedTensors]":
        """The weights' files by their names."""
        used = [tensor for tensor in self._tensors if tensor.name in self._part.names]
        stored = {self._part.names[tensor.name]: tensor for tensor in used}
        groups = [TensorGroup(PlannedTensor(name, tensor.dtype, tensor.shape)) for name, tensor in stored.items()]
        planned = plan_files(groups, self._max_file_bytes)
        return {file.name: _RenamedTensors(file, [stored[tensor.name] for tensor in file.tensors]) for file in planned}

    @cached_property
    def _generated(self) -> dict[str, bytes]:
        """Contents of config.json and, of several files of weights, their index."""
        generated = {CONFIG: _json_bytes(without_code(self._part.config))}
        if len(self._weights) > 1:
            generated[WEIGHTS_INDEX] = _json_bytes(weights_index([file.planned for file in self._weights.values()]))
        return generated


class _RenamedTensors:
    """A safetensors file: a header, and byte ranges of stored files."""

    def __init__(self, planned: PlannedFile, tensors: Sequence[StoredTensor]) -> None:
        self.planned = planned
        self._header = planned.header
        self._tensors = tensors
        self._starts: list[int] = []
        position = len(self._header)
        for tensor in tensors:
            self._starts.append(position)
            position += tensor.bytes
        self.bytes = position

    def read_into(self, whole: Source, start: int, buffer: memoryview) -> int:
        """Read from byte `start` to the end of the header or of one tensor at most; the number of bytes read."""
        if start < len(self._header):
            part = self._header[start : start + len(buffer)]
            buffer[: len(part)] = part
            return len(part)
        if start >= self.bytes:
            return 0
        index = bisect_right(self._starts, start) - 1
        tensor, offset = self._tensors[index], start - self._starts[index]
        return whole.read_into(tensor.file, tensor.begin + offset, buffer[: tensor.bytes - offset])


def _read_config(source: Source) -> dict[str, Any]:
    model = SourceModelFolder(source, base_label(source.uri))
    return read_json(model, CONFIG) if CONFIG in model.sizes else {}


def _is_native(model_type: object) -> bool:
    """Whether transformers has models of this type, which it uses instead of the model's own code."""
    prepare_libraries()
    from transformers import CONFIG_MAPPING

    return isinstance(model_type, str) and model_type in CONFIG_MAPPING


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, default=str) + "\n").encode()

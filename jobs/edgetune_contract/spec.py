"""Parameter models: the part of a LoraFineTune's spec that is passed to the stages.

The CRD's schema is generated from the same models (`edgetune_operator.generate.crd`), so every string, list and number
has bounds, and every field has a description with its unit.
"""

import re
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from edgetune_contract.evaluation import EvaluationSpec
from edgetune_contract.schema import Model, Rule, listed_once
from edgetune_contract.training import TrainingSpec
from edgetune_contract.values.text import NAME_PATTERN, TEXT_PATTERN, UNSAFE

URI_MAX_LENGTH = 1024
CHAT_TEMPLATE = "ChatTemplate"
HUB_SCHEME = "hf://"
DEFAULT_TEMPLATE = "### Instruction:\n{instruction}\n\n### Response:\n"
_BUCKET_URI = rf"s3://[a-z0-9][a-z0-9.-]{{1,61}}[a-z0-9](/[^\s{UNSAFE}]+)?"
_FILE_URI = rf"file:///[^\s{UNSAFE}][^{UNSAFE}]*"
_COMMIT = r"[0-9a-f]{40}"
_SHA256 = r"[0-9a-f]{64}"

ColumnName = Annotated[str, Field(min_length=1, max_length=128, pattern=NAME_PATTERN)]


class BaseModelSpec(Model):
    """The model to fine-tune: a folder in the layout of the Hugging Face libraries, with safetensors weights."""

    uri: Annotated[
        str,
        Field(
            max_length=URI_MAX_LENGTH,
            pattern=rf"^({_BUCKET_URI}|hf://[A-Za-z0-9._-]+/[A-Za-z0-9._-]+|{_FILE_URI})$",
        ),
    ]
    """Location of the model: s3://bucket/prefix, hf://organization/name, or in a local run file:///path."""

    revision: Annotated[str, Field(max_length=64, pattern=rf"^({_COMMIT}|{_SHA256})?$")] = ""
    """Pin. Required for hf://, where it is the 40-digit commit; otherwise optional: the SHA-256 of the model's file
    list, as in status.resolved.base."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!self.uri.startsWith('hf://') || (has(self.revision) && self.revision.matches('^[0-9a-f]{40}$'))",
            holds=lambda self: not self.is_on_hub or bool(re.fullmatch(_COMMIT, self.revision)),
            message="a model from hf:// requires revision: the 40-digit hexadecimal commit",
        ),
    )

    @property
    def is_on_hub(self) -> bool:
        """Whether the model comes from the Hugging Face hub."""
        return self.uri.startswith(HUB_SCHEME)


class DataSource(Model):
    """Rows of one data set."""

    uri: Annotated[str, Field(max_length=URI_MAX_LENGTH, pattern=rf"^({_BUCKET_URI}|{_FILE_URI})$")]
    """A .jsonl, .json, .csv, .parquet or .arrow file, or a folder of such files: s3://bucket/key, or in a local run
    file:///path. In a folder, the split in the files' names (train, validation, test) decides which are read."""

    revision: Annotated[str, Field(max_length=64, pattern=rf"^({_SHA256})?$")] = ""
    """Optional pin: the SHA-256 of the content, as in status.resolved. Data that does not match is refused."""


class RowFormat(StrEnum):
    """Format of the rows in the data set."""

    INSTRUCTION = "Instruction"
    CHAT = "Chat"
    TEXT = "Text"


class DatasetFields(Model):
    """Names of the columns to read."""

    instruction: ColumnName = "instruction"
    """Column with the instruction (format Instruction)."""

    response: ColumnName = "response"
    """Column with the response (format Instruction)."""

    messages: ColumnName = "messages"
    """Column with the list of {role, content} messages (format Chat); ShareGPT's column conversations is also read."""

    text: ColumnName = "text"
    """Column with the whole text (format Text)."""

    expected_keyword: ColumnName = "expected_keyword"
    """Column with the keyword, or list of keywords, that a correct answer contains; rows may omit it."""


class DatasetSpec(Model):
    """Training and evaluation data."""

    train: DataSource
    """Rows to train on."""

    eval: DataSource | None = None
    """Rows to evaluate on. Default: the validation files, or else the test files, in the folder of train; without such
    files, evalSplitPercent of the training rows are held out, selected by training.seed."""

    eval_split_percent: Annotated[int, Field(ge=1, le=50)] = 10
    """Percentage of the training rows to hold out for evaluation if eval is not set, and the folder of train has no
    validation or test files."""

    format: RowFormat = RowFormat.INSTRUCTION
    """Format of the rows: Instruction (an instruction and a response), Chat (messages, rendered with the tokenizer's
    chat template) or Text (plain text)."""

    fields: DatasetFields = DatasetFields()
    """Names of the columns to read."""

    template: Annotated[str, Field(min_length=1, max_length=8192, pattern=TEXT_PATTERN)] = DEFAULT_TEMPLATE
    """Prompt template of the format Instruction; it contains {instruction}, and may contain other columns by their
    names in braces. ChatTemplate uses the tokenizer's own chat template."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.template == 'ChatTemplate' || self.template.contains('{instruction}')",
            holds=lambda self: self.template == CHAT_TEMPLATE or "{instruction}" in self.template,
            message="template must contain {instruction} or be ChatTemplate",
        ),
    )


class Method(StrEnum):
    """How the base is held in memory during training."""

    QLORA = "QLoRA"
    LORA = "LoRA"


TARGET_MODULE_PRESETS: dict[str, tuple[str, ...]] = {
    "Minimal": ("q_proj", "v_proj"),
    "Standard": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "Aggressive": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
    "AllLinear": (),  # every linear layer but the output head; which ones depends on the model
}

TargetModulePreset = Literal["Minimal", "Standard", "Aggressive", "AllLinear"]
_MODULE_NAME = re.compile(r"[A-Za-z0-9_.]{1,256}")
_MAX_MODULE_NAMES = 64

# A structural schema cannot express a union of a string and a list. A node without a type may have value validations:
# one branch allows the presets, the other a list (each of its keywords refuses one of the other JSON types). `items`
# applies to lists only.
_TARGET_MODULES_SCHEMA = {
    "x-kubernetes-preserve-unknown-fields": True,
    "default": "Standard",
    "items": {"type": "string", "pattern": f"^{_MODULE_NAME.pattern}$"},
    "anyOf": [
        {"enum": list(TARGET_MODULE_PRESETS)},
        {
            "minItems": 1,
            "maxItems": _MAX_MODULE_NAMES,
            "maxLength": 0,
            "minLength": 1,
            "minimum": 1,
            "maximum": 0,
            "minProperties": 1,
            "maxProperties": 0,
            "not": {"enum": [True, False]},
        },
    ],
}


def _check_target_modules(value: Any) -> Any:
    if isinstance(value, str) and value in TARGET_MODULE_PRESETS:
        return value
    names = value if isinstance(value, list | tuple) else ()
    well_formed = all(isinstance(name, str) and _MODULE_NAME.fullmatch(name) for name in names)
    if not well_formed or not 1 <= len(names) <= _MAX_MODULE_NAMES:
        raise ValueError(
            f"must be {', '.join(TARGET_MODULE_PRESETS)}, or a list of 1 to {_MAX_MODULE_NAMES} module names "
            f"such as [q_proj, v_proj], is {value!r}"
        )
    return tuple(names)


class LoraSpec(Model):
    """Size and placement of the adapter."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """Rank of the two adapter matrices."""

    alpha: Annotated[int, Field(ge=1, le=4096)] = 32
    """Scale: the adapter's product is multiplied by alpha / rank, or with rsLora by alpha / sqrt(rank)."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Dropout probability on the adapter's inputs during training, 0 to below 1."""

    target_modules: Annotated[
        TargetModulePreset | tuple[str, ...],
        BeforeValidator(_check_target_modules),
        WithJsonSchema(_TARGET_MODULES_SCHEMA),
    ] = "Standard"
    """Layers that get an adapter: Minimal (q, v), Standard (q, k, v, o), Aggressive (Standard and gate, up, down),
    AllLinear, or a list of module names."""

    rs_lora: bool = False
    """Rank-stabilized scaling: alpha / sqrt(rank) instead of alpha / rank."""


class MergeBase(StrEnum):
    """Base weights to which the adapter is added."""

    AS_TRAINED = "AsTrained"
    ORIGINAL = "Original"


class MergeSpec(Model):
    """Merging of the adapter into the base."""

    keep: bool = True
    """Write the merged model to the store. If false, it is never written, and quantize merges on the fly."""

    base: MergeBase = MergeBase.AS_TRAINED
    """Base weights to which the adapter is added: AsTrained (as in QLoRA training, rounded to NF4 and back) or Original
    (as stored)."""


class EdgeFormat(StrEnum):
    """File format of an edge model."""

    BITSANDBYTES_INT8 = "BitsAndBytesInt8"
    GGUF_Q8_0 = "GGUF-Q8_0"
    COMPRESSED_TENSORS_W8A8 = "CompressedTensorsW8A8"

    @property
    def artifact(self) -> str:
        """Name of the artifact with a model in this format."""
        return _EDGE_ARTIFACTS[self]


_EDGE_ARTIFACTS = {
    EdgeFormat.BITSANDBYTES_INT8: "edge-bnb-int8",
    EdgeFormat.GGUF_Q8_0: "edge-gguf-q8_0",
    EdgeFormat.COMPRESSED_TENSORS_W8A8: "edge-ct-w8a8",
}


class QuantizationSpec(Model):
    """Formats of the edge model."""

    formats: Annotated[
        tuple[EdgeFormat, ...],
        Field(min_length=1, max_length=len(EdgeFormat), json_schema_extra={"x-kubernetes-list-type": "set"}),
        listed_once("format"),
    ] = (EdgeFormat.BITSANDBYTES_INT8,)
    """Formats to write. BitsAndBytesInt8 is LLM.int8, which from_pretrained reads. GGUF-Q8_0 is one file for llama.cpp
    (Llama, Mistral, Qwen2, Qwen3). CompressedTensorsW8A8 has 8-bit weights and activations for vLLM. The status shows
    the first one as the edge model; all are scored, gated and published."""

    outlier_threshold: Annotated[float, Field(ge=0, le=1000)] = 6.0
    """BitsAndBytesInt8 only: activations above this magnitude are multiplied in 16 bits. 0 disables this."""


class PublishSpec(Model):
    """Choice of the version that latest.json names."""

    pin: Annotated[str, Field(max_length=64, pattern=r"^([0-9a-f]{12,64})?$")] = ""
    """A published version of this model that latest.json names instead of the spec's own: its digest, or at least the
    first 12 digits, as in status.publication.version and `edgetune versions`. The pin takes effect before any other
    stage runs. Gates are not checked again: the version passed them when it was published. The other stages still run,
    but their output is not published while the pin is set. Empty: the spec's own version, if its gates hold."""


class Parameters(Model):
    """The part of a LoraFineTune's spec that can change the output of the stages."""

    base_model: BaseModelSpec
    """The model to fine-tune."""

    dataset: DatasetSpec
    """Training and evaluation data."""

    method: Method = Method.QLORA
    """How the base is held in memory during training: QLoRA in NF4 with double quantization, LoRA as stored."""

    lora: LoraSpec = LoraSpec()
    """Size and placement of the adapter."""

    training: TrainingSpec = TrainingSpec()
    """Hyperparameters of the training."""

    merge: MergeSpec = MergeSpec()
    """Merging of the adapter into the base."""

    quantization: QuantizationSpec = QuantizationSpec()
    """Formats of the edge model."""

    evaluation: EvaluationSpec = EvaluationSpec()
    """Scoring and gates."""

    publish: PublishSpec = PublishSpec()
    """Choice of the version that latest.json names."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.evaluation) || !has(self.evaluation.edge) || !has(self.quantization) || "
            "!has(self.quantization.formats) || self.quantization.formats[0] != 'CompressedTensorsW8A8'",
            holds=lambda self: (
                self.evaluation.edge is None or self.quantization.formats[0] != EdgeFormat.COMPRESSED_TENSORS_W8A8
            ),
            message="evaluation.edge measures the first of quantization.formats on a CPU, which does not run "
            "CompressedTensorsW8A8: put BitsAndBytesInt8 or GGUF-Q8_0 first",
        ),
    )

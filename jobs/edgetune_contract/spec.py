"""Parameter models: the part of a LoraFineTune's spec that is passed to the stages.

The CRD's schema is generated from the same models (`edgetune_operator.generate.crd`), so every string, list and number
has bounds, and every field has a description with its unit.
"""

import re
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
)
from pydantic_core import PydanticKnownError

from edgetune_contract.evaluation import EvaluationSpec
from edgetune_contract.schema import Model, Rule, listed_once
from edgetune_contract.training import TrainingSpec
from edgetune_contract.values.text import NAME_PATTERN, TEXT_PATTERN, UNSAFE
from edgetune_contract.values.word_or_list import word_or_list

URI_MAX_LENGTH = 1024
CHAT_TEMPLATE = "ChatTemplate"
HUB_SCHEME = "hf://"
DEFAULT_TEMPLATE = "### Instruction:\n{instruction}\n\n### Response:\n"
BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
HUB_NAME = r"[A-Za-z0-9._-]+"
_BUCKET_URI = rf"s3://{BUCKET}(/[^\s{UNSAFE}]+)?"
_FILE_URI = rf"file:///[^\s{UNSAFE}][^{UNSAFE}]*"
_COMMIT = r"[0-9a-f]{40}"
_SHA256 = r"[0-9a-f]{64}"

# A store or a proxy that resolves such a segment would serve another key than the one that was checked. One / may end
# a URI. After the scheme, which has five characters.
_MISLEADING = r"(^|/)\.{0,2}/|/\.{1,2}$|%[0-9A-Fa-f]{2}"
_CLEAR_SEGMENTS = Rule(
    cel=f"self.uri.startsWith('file://') || !self.uri.substring(5).matches(r'{_MISLEADING}')",
    holds=lambda self: self.uri.startswith("file://") or not re.search(_MISLEADING, self.uri[5:]),
    message="uri must not have empty segments, the segments . and .., or encoded characters such as %2e",
)

ColumnName = Annotated[str, Field(min_length=1, max_length=128, pattern=NAME_PATTERN)]


class BaseModelSpec(Model):
    """The model to fine-tune: a folder in the layout of the Hugging Face libraries, with safetensors weights."""

    uri: Annotated[
        str,
        Field(
            max_length=URI_MAX_LENGTH,
            pattern=rf"^({_BUCKET_URI}|hf://{HUB_NAME}/{HUB_NAME}|{_FILE_URI})$",
        ),
    ]
    """Location of the model: s3://bucket/prefix, hf://organization/name, or in a local run file:///path."""

    revision: Annotated[str, Field(max_length=64, pattern=rf"^({_COMMIT}|{_SHA256})?$")] = ""
    """Pin. Required for hf://, where it is the 40-digit commit; otherwise optional: the SHA-256 of the model's file
    list, as in status.resolved.base."""

    rules: ClassVar[tuple[Rule, ...]] = (
        _CLEAR_SEGMENTS,
        Rule(
            cel="!self.uri.startsWith('hf://') || (has(self.revision) && self.revision.matches('^[0-9a-f]{40}$'))",
            holds=lambda self: not self.is_on_hub or bool(re.fullmatch(_COMMIT, self.revision)),
            message="a model from hf:// requires revision, the 40-digit commit: `edgetune digest URI` prints it",
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

    rules: ClassVar[tuple[Rule, ...]] = (_CLEAR_SEGMENTS,)


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

_TARGET_MODULES_SCHEMA = word_or_list(
    words=list(TARGET_MODULE_PRESETS),
    items={"type": "string", "pattern": f"^{_MODULE_NAME.pattern}$"},
    most=_MAX_MODULE_NAMES,
    default="Standard",
)


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
    GGUF_BF16 = "GGUF-BF16"
    GGUF_Q8_0 = "GGUF-Q8_0"
    GGUF_Q6_K = "GGUF-Q6_K"
    GGUF_Q5_K_M = "GGUF-Q5_K_M"
    GGUF_Q4_K_M = "GGUF-Q4_K_M"
    COMPRESSED_TENSORS_W8A8 = "CompressedTensorsW8A8"
    GGUF_LORA = "GGUF-LoRA"

    @property
    def artifact(self) -> str:
        """Name of the artifact with a model in this format."""
        return _EDGE_ARTIFACTS[self]

    @property
    def file_type(self) -> str | None:
        """llama.cpp's name of the file type, such as Q8_0; None if the format is no GGUF file of a whole model."""
        return _FILE_TYPES.get(self)

    @property
    def is_k_quant(self) -> bool:
        """Whether llama.cpp's own quantizer writes the format, from a GGUF file in 16 bits."""
        return self in _K_QUANTS


_EDGE_ARTIFACTS = {
    EdgeFormat.BITSANDBYTES_INT8: "edge-bnb-int8",
    EdgeFormat.GGUF_BF16: "edge-gguf-bf16",
    EdgeFormat.GGUF_Q8_0: "edge-gguf-q8_0",
    EdgeFormat.GGUF_Q6_K: "edge-gguf-q6_k",
    EdgeFormat.GGUF_Q5_K_M: "edge-gguf-q5_k_m",
    EdgeFormat.GGUF_Q4_K_M: "edge-gguf-q4_k_m",
    EdgeFormat.COMPRESSED_TENSORS_W8A8: "edge-ct-w8a8",
    EdgeFormat.GGUF_LORA: "edge-gguf-lora",
}
_FILE_TYPES = {
    EdgeFormat.GGUF_BF16: "BF16",
    EdgeFormat.GGUF_Q8_0: "Q8_0",
    EdgeFormat.GGUF_Q6_K: "Q6_K",
    EdgeFormat.GGUF_Q5_K_M: "Q5_K_M",
    EdgeFormat.GGUF_Q4_K_M: "Q4_K_M",
}
_K_QUANTS = frozenset({EdgeFormat.GGUF_Q6_K, EdgeFormat.GGUF_Q5_K_M, EdgeFormat.GGUF_Q4_K_M})


AUTO = "Auto"
"""In place of the list of formats: evaluate chooses one of all that the base can be written in."""

_FORMATS_SCHEMA = word_or_list(
    words=[AUTO],
    items={"type": "string", "enum": [each.value for each in EdgeFormat]},
    most=len(EdgeFormat),
    default=[EdgeFormat.BITSANDBYTES_INT8.value],
)


def _auto_or_list(value: Any, validate: ValidatorFunctionWrapHandler) -> tuple[EdgeFormat, ...]:
    if value == AUTO:
        return ()
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be {AUTO}, or a list of formats such as [{EdgeFormat.GGUF_Q8_0}], is {value!r}")
    listed: tuple[EdgeFormat, ...] = validate(tuple(value))
    return listed


def _edge_format(value: Any) -> EdgeFormat:
    """The format of this name. A validator that wraps others gets JSON's lists as Python's, whose names a strict check
    would refuse."""
    known = {each.value: each for each in EdgeFormat}
    if isinstance(value, str) and value in known:
        return known[value]
    *others, last = (f"'{name}'" for name in known)
    raise PydanticKnownError("enum", {"expected": f"{', '.join(others)} or {last}"})


def _written(formats: tuple[EdgeFormat, ...]) -> Any:
    return list(formats) or AUTO


class QuantizationSpec(Model):
    """Formats of the edge model."""

    formats: Annotated[
        tuple[Annotated[EdgeFormat, BeforeValidator(_edge_format)], ...],
        Field(min_length=1, max_length=len(EdgeFormat)),
        listed_once("format"),
        WrapValidator(_auto_or_list),
        PlainSerializer(_written),
        WithJsonSchema(_FORMATS_SCHEMA),
    ] = (EdgeFormat.BITSANDBYTES_INT8,)
    """Formats to write. BitsAndBytesInt8 is LLM.int8, which from_pretrained reads. GGUF-… is one file for llama.cpp
    (Gemma 2, Gemma 3, Llama, Mistral, Phi-3, Phi-4, Qwen2, Qwen3): in 16 bits (BF16), or in about 8.5 (Q8_0), 6.6
    (Q6_K), 5.7 (Q5_K_M) or 4.9 (Q4_K_M) bits a weight; the last three need llama.cpp in the jobs image. GGUF-LoRA is
    the adapter alone, for llama.cpp beside the base in GGUF-Q8_0, which all fine-tunes of a base share.
    CompressedTensorsW8A8 has 8-bit weights and activations for vLLM. The status shows the first one as the edge model;
    all are scored, gated and published. With Auto in place of the list, all formats of a whole model that the base can
    be written in are candidates, and the best-scoring one that holds spec.evaluation.edge and all gates is the edge
    model, and the only one that is published."""

    outlier_threshold: Annotated[float, Field(ge=0, le=1000)] = 6.0
    """BitsAndBytesInt8 only: activations above this magnitude are multiplied in 16 bits. 0 disables this."""

    importance_matrix: bool = False
    """GGUF-Q6_K, GGUF-Q5_K_M and GGUF-Q4_K_M only: weigh the error of each weight by the mean square of its input
    (llama.cpp's importance matrix). quantize then runs the merged model on up to 16,384 tokens of training rows, on its
    CPU."""

    @property
    def is_auto(self) -> bool:
        """Whether evaluate chooses the format. `formats` is then empty."""
        return not self.formats

    @property
    def needs_rows(self) -> bool:
        """Whether quantize reads training rows, for the importance matrix."""
        return self.importance_matrix and (self.is_auto or any(each.is_k_quant for each in self.formats))


class PublishSpec(Model):
    """Choice of the version that latest.json names."""

    pin: Annotated[str, Field(max_length=64, pattern=r"^([0-9a-f]{12,64})?$")] = ""
    """A published version of this model that latest.json names instead of the spec's own: its digest, or at least the
    first 12 digits, as in status.publication.version and `edgetune versions`. The pin takes effect before any other
    stage runs, and with suspend: true alone. Gates are not checked again: the version passed them when it was
    published. The other stages still run, but their output is not published while the pin is set. Setting or removing
    a pin retries no stage that failed. Empty: the spec's own version, if its gates hold."""


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

    # CEL does not see formats, which is a word or a list.
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=None,
            holds=lambda self: (
                self.evaluation.edge is None or EdgeFormat.COMPRESSED_TENSORS_W8A8 not in self.quantization.formats[:1]
            ),
            message="evaluation.edge measures the first of quantization.formats on a CPU, which does not run "
            "CompressedTensorsW8A8: put BitsAndBytesInt8 or GGUF-Q8_0 first",
        ),
        Rule(
            cel=None,
            holds=lambda self: not self.quantization.is_auto or self.evaluation.limits_the_device,
            message="quantization.formats: Auto chooses by what the device has: set evaluation.gates.maxEdgeBytes, or "
            "in evaluation.edge memory, maxPeakMemory or minTokensPerSecond; or list the formats",
        ),
    )

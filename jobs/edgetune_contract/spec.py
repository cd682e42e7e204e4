"""Parameter models: the part of a LoraFineTune's spec that reaches the stages. Defaults are the article's.

The same models make the CRD's schema (`edgetune_operator.generate.crd`), so every string, list and number has bounds
and every field a description with its unit.
"""

import re
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from edgetune_contract.evaluation import EvaluationSpec
from edgetune_contract.model import Model, Rule

URI_MAX_LENGTH = 1024
CHAT_TEMPLATE = "ChatTemplate"
HUB_SCHEME = "hf://"
DEFAULT_TEMPLATE = "### Instruction:\n{instruction}\n\n### Response:\n"
_BUCKET_URI = r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/\S+)?"
_FILE_URI = r"file:///\S.*"
_COMMIT = r"[0-9a-f]{40}"
_SHA256 = r"[0-9a-f]{64}"

ColumnName = Annotated[str, Field(min_length=1, max_length=128)]


class BaseModelSpec(Model):
    """The model to fine-tune: a folder in the layout of the Hugging Face libraries, weights as safetensors."""

    uri: Annotated[
        str,
        Field(
            max_length=URI_MAX_LENGTH,
            pattern=rf"^({_BUCKET_URI}|hf://[A-Za-z0-9._-]+/[A-Za-z0-9._-]+|{_FILE_URI})$",
        ),
    ]
    """Where the model lies: s3://bucket/prefix, hf://organization/name, or in a local run file:///path."""

    revision: Annotated[str, Field(max_length=64, pattern=rf"^({_COMMIT}|{_SHA256})?$")] = ""
    """Pin. For hf:// the 40-digit commit (required); else optional: the SHA-256 of the model's file list, as
    status.resolved.base shows it."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!self.uri.startsWith('hf://') || (has(self.revision) && self.revision.matches('^[0-9a-f]{40}$'))",
            holds=lambda self: not self.is_on_hub or bool(re.fullmatch(_COMMIT, self.revision)),
            message="a model from hf:// needs revision: the 40-digit hexadecimal commit",
        ),
    )

    @property
    def is_on_hub(self) -> bool:
        """Whether the model comes from the Hugging Face hub."""
        return self.uri.startswith(HUB_SCHEME)


class DataSource(Model):
    """Rows of one data set."""

    uri: Annotated[str, Field(max_length=URI_MAX_LENGTH, pattern=rf"^({_BUCKET_URI}|{_FILE_URI})$")]
    """A .jsonl, .json, .csv or .parquet file, or a folder of such files: s3://bucket/key, or in a local run
    file:///path."""

    revision: Annotated[str, Field(max_length=64, pattern=rf"^({_SHA256})?$")] = ""
    """Optional pin: the SHA-256 of the content, as status.resolved shows it. Data that does not match is invalid."""


class RowFormat(StrEnum):
    """How a row of the data set is read."""

    INSTRUCTION = "Instruction"
    CHAT = "Chat"
    TEXT = "Text"


class DatasetFields(Model):
    """Names of the columns that are read."""

    instruction: ColumnName = "instruction"
    """Column with the instruction (format Instruction)."""

    response: ColumnName = "response"
    """Column with the response (format Instruction)."""

    messages: ColumnName = "messages"
    """Column with the list of {role, content} messages (format Chat)."""

    text: ColumnName = "text"
    """Column with the whole text (format Text)."""

    expected_keyword: ColumnName = "expected_keyword"
    """Column with the keyword, or list of keywords, that a right answer holds; optional in the rows."""


class DatasetSpec(Model):
    """Training and evaluation data."""

    train: DataSource
    """Rows to train on."""

    eval: DataSource | None = None
    """Rows to evaluate on. Without it, evalSplitPercent of the training rows are held out, split by seed."""

    eval_split_percent: Annotated[int, Field(ge=1, le=50)] = 10
    """Share of the training rows that is held out for evaluation when eval is not set, in percent."""

    format: RowFormat = RowFormat.INSTRUCTION
    """Instruction (instruction and response), Chat (messages, through the tokenizer's chat template), or Text."""

    fields: DatasetFields = DatasetFields()
    """Names of the columns that are read."""

    template: Annotated[str, Field(min_length=1, max_length=8192)] = DEFAULT_TEMPLATE
    """Prompt of the format Instruction, with {instruction} in it, or ChatTemplate for the tokenizer's own chat
    template."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.template == 'ChatTemplate' || self.template.contains('{instruction}')",
            holds=lambda self: self.template == CHAT_TEMPLATE or "{instruction}" in self.template,
            message="template must contain {instruction}, or be ChatTemplate",
        ),
    )


class Method(StrEnum):
    """How the base is held while the adapter trains."""

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

# A structural schema has no union of a string and a list. A node without a type may carry value validations, so the two
# branches say: one of the presets; or a list (each keyword of the second branch refuses one of the other JSON types).
# `items` speaks of a list only.
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
    """The adapter."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """Rank r of the two adapter matrices."""

    alpha: Annotated[int, Field(ge=1, le=4096)] = 32
    """Scale: the adapter's product is multiplied by alpha / rank (by alpha / sqrt(rank) with rsLora)."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Probability of dropping an input of the adapter while training, 0 to below 1."""

    target_modules: Annotated[
        TargetModulePreset | tuple[str, ...],
        BeforeValidator(_check_target_modules),
        WithJsonSchema(_TARGET_MODULES_SCHEMA),
    ] = "Standard"
    """Minimal (q, v), Standard (q, k, v, o), Aggressive (Standard and gate, up, down), AllLinear, or a list of module
    names."""

    rs_lora: bool = False
    """Rank-stabilized scaling: alpha / sqrt(rank) instead of alpha / rank."""


class CheckpointSpec(Model):
    """Training checkpoints in the store."""

    every_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    """Optimizer steps between two checkpoints. A run that is stopped by SIGTERM writes one besides."""

    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """How many of the newest complete checkpoints stay in the store while training runs."""


Optimizer = Literal[
    "paged_adamw_8bit", "paged_adamw_32bit", "adamw_8bit", "adamw_torch", "adamw_torch_fused", "adafactor"
]
Scheduler = Literal["cosine", "cosine_with_restarts", "linear", "polynomial", "constant", "constant_with_warmup"]


class Precision(StrEnum):
    """Dtype of the arithmetic while training."""

    AUTO = "Auto"
    BF16 = "BF16"
    FP16 = "FP16"
    FP32 = "FP32"


class TrainingSpec(Model):
    """How the adapter is trained."""

    epochs: Annotated[float, Field(gt=0, le=1000)] = 3
    """Passes over the training rows. Not used when maxSteps is set."""

    max_steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Optimizer steps; takes the place of epochs."""

    batch_size: Annotated[int, Field(ge=1, le=4096)] = 16
    """Examples in one optimizer step: microBatchSize times gradient accumulation."""

    micro_batch_size: Annotated[int, Field(ge=1, le=4096)] = 4
    """Examples in one forward pass. Halved by itself after the GPU ran out of memory, with the same batchSize."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.0002
    """Peak learning rate."""

    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.03
    """Share of the optimizer steps in which the learning rate rises from 0 to learningRate."""

    scheduler: Scheduler = "cosine"
    """How the learning rate falls after the warm-up; the names are those of transformers."""

    max_length: Annotated[int, Field(ge=8, le=1_048_576)] = 2048
    """Longest example in tokens. Longer examples are cut; their share is reported, and those with nothing left to
    learn are named."""

    optimizer: Optimizer = "paged_adamw_8bit"
    """Optimizer; the names are those of transformers."""

    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Decoupled weight decay of the adapter."""

    max_grad_norm: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Gradients are scaled down to this norm; 0 switches it off."""

    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more time."""

    precision: Precision = Precision.AUTO
    """Auto is BF16 where the hardware has it, else FP16 on a GPU and FP32 on a CPU."""

    packing: bool = False
    """Put several short examples into one sequence of maxLength tokens."""

    seed: Annotated[int, Field(ge=0, le=4_294_967_295)] = 42
    """Seed of the split, the adapter's first values, the data order and the dropout."""

    checkpoint: CheckpointSpec = CheckpointSpec()
    """Training checkpoints in the store."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.batchSize % self.microBatchSize == 0",
            holds=lambda self: self.batch_size % self.micro_batch_size == 0,
            message="batchSize must be a multiple of microBatchSize",
        ),
    )


class MergeBase(StrEnum):
    """To which base the adapter is added."""

    AS_TRAINED = "AsTrained"
    ORIGINAL = "Original"


class MergeSpec(Model):
    """Folding the adapter into the base."""

    keep: bool = True
    """Write the merged model to the store. With false it is never written: quantize merges on the fly."""

    base: MergeBase = MergeBase.AS_TRAINED
    """AsTrained adds the adapter to the base as QLoRA saw it (to NF4 and back); Original to the stored weights."""


class EdgeFormat(StrEnum):
    """Format of an edge model."""

    BITSANDBYTES_INT8 = "BitsAndBytesInt8"
    GGUF_Q8_0 = "GGUF-Q8_0"
    COMPRESSED_TENSORS_W8A8 = "CompressedTensorsW8A8"

    @property
    def artifact(self) -> str:
        """Name of the artifact that holds a model in this format."""
        return _EDGE_ARTIFACTS[self]


_EDGE_ARTIFACTS = {
    EdgeFormat.BITSANDBYTES_INT8: "edge-bnb-int8",
    EdgeFormat.GGUF_Q8_0: "edge-gguf-q8_0",
    EdgeFormat.COMPRESSED_TENSORS_W8A8: "edge-ct-w8a8",
}


def _refuse_repeated(formats: tuple[EdgeFormat, ...]) -> tuple[EdgeFormat, ...]:
    repeated = next((edge_format for edge_format in formats if formats.count(edge_format) > 1), None)
    if repeated is not None:
        raise ValueError(f"must name each format once, names {repeated} twice")
    return formats


class QuantizationSpec(Model):
    """The edge model."""

    formats: Annotated[
        tuple[EdgeFormat, ...],
        Field(min_length=1, max_length=len(EdgeFormat), json_schema_extra={"x-kubernetes-list-type": "set"}),
        AfterValidator(_refuse_repeated),
    ] = (EdgeFormat.BITSANDBYTES_INT8,)
    """Formats to write. BitsAndBytesInt8 is LLM.int8 in the layout that from_pretrained reads; GGUF-Q8_0 is one file
    for llama.cpp (Llama, Mistral, Qwen2, Qwen3); CompressedTensorsW8A8 has 8-bit weights and activations for vLLM. The
    first is the edge model that the status shows; all are scored, gated and published."""

    outlier_threshold: Annotated[float, Field(ge=0, le=1000)] = 6.0
    """BitsAndBytesInt8: activations above this magnitude are multiplied in 16 bits; 0 switches the split off."""


class PublishSpec(Model):
    """Which version the pointer names."""

    pin: Annotated[str, Field(max_length=64, pattern=r"^([0-9a-f]{12,64})?$")] = ""
    """A published version of this model that latest.json names in place of the spec's own: its digest, or the first 12
    digits or more, as status.publication.version and `edgetune versions` show it. The pin takes effect before any other
    stage runs and asks no gates, which that version has passed. The other stages go on as the spec says; what they make
    is not published while the pin stands. Empty: the spec's own version, if its gates hold."""


class Parameters(Model):
    """All of a LoraFineTune's spec that can change what the stages make."""

    base_model: BaseModelSpec
    """The model to fine-tune."""

    dataset: DatasetSpec
    """Training and evaluation data."""

    method: Method = Method.QLORA
    """QLoRA holds the base in NF4 with double quantization while training; LoRA holds it as it is stored."""

    lora: LoraSpec = LoraSpec()
    """The adapter."""

    training: TrainingSpec = TrainingSpec()
    """How the adapter is trained."""

    merge: MergeSpec = MergeSpec()
    """Folding the adapter into the base."""

    quantization: QuantizationSpec = QuantizationSpec()
    """The edge model."""

    evaluation: EvaluationSpec = EvaluationSpec()
    """Scoring and gates."""

    publish: PublishSpec = PublishSpec()
    """Which version the pointer names."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.evaluation) || !has(self.evaluation.edge) || !has(self.quantization) || "
            "!has(self.quantization.formats) || self.quantization.formats[0] != 'CompressedTensorsW8A8'",
            holds=lambda self: (
                self.evaluation.edge is None or self.quantization.formats[0] != EdgeFormat.COMPRESSED_TENSORS_W8A8
            ),
            message="evaluation.edge measures the first of quantization.formats on a CPU, which CompressedTensorsW8A8 "
            "is not for: put BitsAndBytesInt8 or GGUF-Q8_0 first",
        ),
    )

"""Valid and invalid objects, each with the model's message. A real API server must give the same verdicts."""

from dataclasses import dataclass
from typing import Any

from support.builders import ObjectBuilder, lora_fine_tune

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA256 = "ab" * 32
REMOVED = object()


@dataclass(frozen=True)
class Verdict:
    """One object: the smallest valid one with some fields of its spec changed."""

    case: str
    changes: dict[str, Any]
    problem: str = ""
    """Start of the path and message from the model; empty for a valid object."""

    is_models_only: bool = False
    """Whether the API server accepts it: CEL does not see a field that is a word or a list."""

    @property
    def valid(self) -> bool:
        return not self.problem

    @property
    def path(self) -> str:
        """Path of the invalid field."""
        return self.problem.split(": ", maxsplit=1)[0]

    @property
    def object(self) -> dict[str, Any]:
        """The object."""
        builder: ObjectBuilder = lora_fine_tune()
        for path, value in self.changes.items():
            builder = builder.without_spec(path) if value is REMOVED else builder.with_spec(path, value)
        return builder.build()


_AUTO = {"quantization.formats": "Auto"}
_NO_FORMATS = "spec.quantization.formats: must be Auto, or a list of formats such as [GGUF-Q8_0], is "

VALID = (
    Verdict("the smallest object", {}),
    Verdict("a bucket without a prefix", {"baseModel.uri": "s3://models"}),
    Verdict("a folder with a / at its end", {"baseModel.uri": "s3://models/llama/"}),
    Verdict("dots and a percent sign in names", {"dataset.train.uri": "s3://data/.v1/a..b/...c/100%/d.jsonl"}),
    Verdict("dots and an encoded character in a file's name", {"dataset.train.uri": "file:///a/../b//c%20d.jsonl"}),
    Verdict("a model from the hub with its commit", {"baseModel": {"uri": "hf://org/model", "revision": COMMIT}}),
    Verdict("a model on this machine", {"baseModel.uri": "file:///models/base"}),
    Verdict("a model pinned by content", {"baseModel.revision": SHA256}),
    Verdict("a commit for a model in a bucket", {"baseModel.revision": COMMIT}),
    Verdict("data pinned by content", {"dataset.train.revision": SHA256}),
    Verdict("evaluation data", {"dataset.eval": {"uri": "file:///data/eval.parquet"}}),
    Verdict("a null for an optional field", {"dataset.eval": None, "training.maxSteps": None}),
    Verdict("a null for a field with a default", {"lora.rank": None, "training": None}),
    Verdict("the chat template", {"dataset.template": "ChatTemplate"}),
    Verdict("another template", {"dataset.template": "Q: {instruction}\nA:"}),
    Verdict(
        "a template with a tab and letters of other scripts",
        {"dataset.template": "\t질문 問 naïve 🧑\u200d🔧: {instruction}\n"},
    ),
    Verdict("format Text", {"dataset.format": "Text", "dataset.fields.text": "body"}),
    Verdict("a preset of modules", {"lora.targetModules": "AllLinear"}),
    Verdict("a list of modules", {"lora.targetModules": ["q_proj", "model.layers.0.mlp.up_proj"]}),
    Verdict("64 modules", {"lora.targetModules": [f"layer_{index}" for index in range(64)]}),
    Verdict("the smallest rank", {"lora.rank": 1}),
    Verdict("the largest rank", {"lora.rank": 512}),
    Verdict("an integer written as a number", {"lora.rank": 16.0}),
    Verdict("no dropout", {"lora.dropout": 0}),
    Verdict("evaluation during training", {"training.evaluation": {}}),
    Verdict("early stopping", {"training.evaluation": {"everySteps": 10, "patience": 3}, "training.maxSteps": 10}),
    Verdict("a part of an epoch", {"training.epochs": 0.5}),
    Verdict("steps in place of epochs", {"training.maxSteps": 100}),
    Verdict("a batch that the GPUs share", {"training.batchSize": 16, "training.gpus": 4}),
    Verdict("one example at a time", {"training.batchSize": 1, "training.microBatchSize": 1}),
    Verdict("a batch that is not a multiple", {"training.batchSize": 16, "training.microBatchSize": 5}),
    Verdict(
        "how a step is computed",
        {"training.layout": "Packed", "training.attention": "Sdpa", "training.gradientCheckpointing": "Never"},
    ),
    Verdict("the largest seed", {"training.seed": 4_294_967_295}),
    Verdict("merge left out", {"merge.keep": False}),
    Verdict("models that no gate compares left out", {"evaluation.models": ["Edge"]}),
    Verdict(
        "models that gates compare",
        {"evaluation.models": ["Edge", "Tuned"], "evaluation.gates": {"maxDrop": 0.1, "minScore": 0.5}},
    ),
    Verdict("a format that is chosen", {"quantization.formats": "Auto", "evaluation.gates.maxEdgeBytes": "8Gi"}),
    Verdict("a format that is chosen by its speed", _AUTO | {"evaluation.edge": {"minTokensPerSecond": 5}}),
    Verdict("every edge format", {"quantization.formats": ["GGUF-Q8_0", "BitsAndBytesInt8", "CompressedTensorsW8A8"]}),
    Verdict(
        "every GGUF format",
        {"quantization.formats": ["GGUF-Q4_K_M", "GGUF-Q5_K_M", "GGUF-Q6_K", "GGUF-Q8_0", "GGUF-BF16"]},
    ),
    Verdict("no outliers", {"quantization.outlierThreshold": 0}),
    Verdict(
        "all gates",
        {"evaluation.gates": {"minScore": 0.8, "maxDrop": 0.02, "minImprovement": -0.05, "maxEdgeBytes": 1}},
    ),
    Verdict("a quantity with a binary suffix", {"evaluation.gates.maxEdgeBytes": "8Gi"}),
    Verdict("a quantity with a decimal suffix", {"evaluation.gates.maxEdgeBytes": "500M"}),
    Verdict("a quantity as text", {"evaluation.gates.maxEdgeBytes": "8589934592"}),
    Verdict("an edge budget without limits", {"evaluation.edge": {}}),
    Verdict(
        "an edge budget",
        {"evaluation.edge": {"cpu": "2", "memory": "2Gi", "minTokensPerSecond": 20, "maxPeakMemory": "1Gi"}},
    ),
    Verdict("cores as a number", {"evaluation.edge.cpu": 2}),
    Verdict("a part of a core", {"evaluation.edge.cpu": "500m"}),
    Verdict("a core and a half", {"evaluation.edge.cpu": "1.5"}),
    Verdict(
        "an edge budget beside a format for servers",
        {"evaluation.edge": {}, "quantization.formats": ["GGUF-Q8_0", "CompressedTensorsW8A8"]},
    ),
    Verdict("a version pinned by its first digits", {"publish.pin": "0123456789ab"}),
    Verdict("a version pinned", {"publish.pin": SHA256}),
    Verdict("another profile", {"profile": "a100-spot"}),
    Verdict("suspended", {"suspend": True}),
    Verdict("no second attempt", {"retryLimit": 0}),
    Verdict("artifacts deleted with the object", {"deletionPolicy": "Delete"}),
)

_NO_GPUS = "spec.training.gpus: must be Auto or a whole number from 1 to 64, is "
_NO_MICRO_BATCH = "spec.training.microBatchSize: must be Auto or a whole number from 1 to 4,096, is "
_QUANTITY = "spec.evaluation.gates.maxEdgeBytes"
_NO_MODULES = (
    "spec.lora.targetModules: must be Minimal, Standard, Aggressive, AllLinear, or a list of 1 to 64 module names "
    "such as [q_proj, v_proj], is "
)
_NO_MODEL_URI = (
    "is not a valid model URI; expected s3://bucket/prefix, hf://organization/name or, in a local run, file:///path"
)
_NO_DATA_URI = "is not a valid data URI; expected s3://bucket/key or, in a local run, file:///path"
_MISLEADING_URI = "uri must not have empty segments, the segments . and .., or encoded characters such as %2e"
_NO_COLUMN = "is not a valid column name; expected a text of one line without control or bidirectional characters"
_NO_TEMPLATE = (
    "is not a valid template; expected a text without control or bidirectional characters other than line breaks and "
    "tabs"
)
_NO_SIZE = "is not a valid size; expected a whole number of bytes with an optional unit, such as 500M or 8Gi"
_NO_CORES = "is not a valid number of CPU cores; expected a number such as 2 or 1.5, or thousandths such as 500m"
_NO_VERSION = "is not a valid version; expected the first 12 to 64 digits that status.publication.version shows"

INVALID = (
    Verdict("no base model", {"baseModel": REMOVED}, "spec.baseModel: is required"),
    Verdict("a base model of null", {"baseModel": None}, "spec.baseModel: is required"),
    Verdict("no URI of the base model", {"baseModel": {}}, "spec.baseModel.uri: is required"),
    Verdict("no data set", {"dataset": REMOVED}, "spec.dataset: is required"),
    Verdict("no training data", {"dataset": {}}, "spec.dataset.train: is required"),
    Verdict("evaluation data without a URI", {"dataset.eval": {}}, "spec.dataset.eval.uri: is required"),
    Verdict(
        "a URI with another scheme",
        {"baseModel.uri": "https://models/x"},
        f"spec.baseModel.uri: 'https://models/x' {_NO_MODEL_URI}",
    ),
    Verdict("an empty URI", {"baseModel.uri": ""}, f"spec.baseModel.uri: '' {_NO_MODEL_URI}"),
    Verdict(
        "a bucket in capitals",
        {"baseModel.uri": "s3://Models/x"},
        f"spec.baseModel.uri: 's3://Models/x' {_NO_MODEL_URI}",
    ),
    Verdict(
        "a hub model without an organization",
        {"baseModel.uri": "hf://model"},
        f"spec.baseModel.uri: 'hf://model' {_NO_MODEL_URI}",
    ),
    Verdict(
        "a file on another host",
        {"baseModel.uri": "file://host/x"},
        f"spec.baseModel.uri: 'file://host/x' {_NO_MODEL_URI}",
    ),
    Verdict(
        "a URI with a space",
        {"baseModel.uri": "s3://models/a b"},
        f"spec.baseModel.uri: 's3://models/a b' {_NO_MODEL_URI}",
    ),
    *(
        Verdict(
            f"{name} in {path}", {path: value.format(character)}, f"spec.{path}: {value.format(character)!r} {problem}"
        )
        for name, character in (
            ("an escape", "\x1b"),
            ("a control character of 8 bits", "\x9b"),
            ("a return", "\r"),
            ("an override of the direction", "\u202e"),
            ("an isolate", "\u2066"),
            ("a line separator", "\u2028"),
        )
        for path, value, problem in (
            ("baseModel.uri", "s3://models/x{0}y", _NO_MODEL_URI),
            ("baseModel.uri", "file:///models/x{0}y", _NO_MODEL_URI),
            ("dataset.train.uri", "file:///x{0}", _NO_DATA_URI),
            ("dataset.fields.response", "a{0}", _NO_COLUMN),
            ("dataset.template", "{{instruction}}{0}", _NO_TEMPLATE),
        )
    ),
    Verdict(
        "a line break in a column's name",
        {"dataset.fields.text": "a\nb"},
        f"spec.dataset.fields.text: 'a\\nb' {_NO_COLUMN}",
    ),
    Verdict(
        "a URI that is too long",
        {"baseModel.uri": "s3://models/" + "x" * 1024},
        "spec.baseModel.uri: string should have at most 1024 characters",
    ),
    *(
        Verdict(f"{what} in {field}", {f"{field}.uri": uri}, f"spec.{field}: {_MISLEADING_URI}")
        for field in ("baseModel", "dataset.train", "dataset.eval")
        for what, uri in (
            ("a segment of one dot", "s3://b-1/a/./b"),
            ("a segment of two dots", "s3://b-1/team-a/../team-b"),
            ("two dots at the end", "s3://b-1/team-a/.."),
            ("two dots at the start", "s3://b-1/../b-2/x"),
            ("an empty segment", "s3://b-1/a//b"),
            ("an empty segment at the start", "s3://b-1//a"),
            ("an empty segment at the end", "s3://b-1/a//"),
            ("encoded dots", "s3://b-1/a/%2e%2E/b"),
            ("an encoded /", "s3://b-1/a%2Fb"),
            ("an encoding of an encoding", "s3://b-1/a/%252e%252e/b"),
        )
    ),
    Verdict(
        "a hub model of two dots",
        {"baseModel": {"uri": "hf://../model", "revision": COMMIT}},
        f"spec.baseModel: {_MISLEADING_URI}",
    ),
    Verdict(
        "data from the hub",
        {"dataset.train.uri": "hf://org/data"},
        f"spec.dataset.train.uri: 'hf://org/data' {_NO_DATA_URI}",
    ),
    Verdict(
        "half a digest",
        {"dataset.train.revision": "abc"},
        "spec.dataset.train.revision: 'abc' is not a valid revision; expected the 64-digit SHA-256 that "
        "status.resolved shows",
    ),
    Verdict(
        "a branch as revision",
        {"baseModel.revision": "main"},
        "spec.baseModel.revision: 'main' is not a valid revision; expected the 40-digit commit of an hf:// model, or "
        "the 64-digit SHA-256 that status.resolved.base shows",
    ),
    Verdict(
        "a hub model without its commit",
        {"baseModel.uri": "hf://org/model"},
        "spec.baseModel: a model from hf:// requires revision, the 40-digit commit: `edgetune digest URI` prints it",
    ),
    Verdict(
        "a hub model with a digest for a commit",
        {"baseModel": {"uri": "hf://org/model", "revision": SHA256}},
        "spec.baseModel: a model from hf:// requires revision, the 40-digit commit: `edgetune digest URI` prints it",
    ),
    Verdict(
        "a template without the instruction",
        {"dataset.template": "Answer:"},
        "spec.dataset: template must contain {instruction} or be ChatTemplate",
    ),
    Verdict(
        "an empty template", {"dataset.template": ""}, "spec.dataset.template: string should have at least 1 character"
    ),
    Verdict(
        "Varlen attention of padded rows",
        {"training.attention": "Varlen", "training.layout": "Padded"},
        "spec.training: attention: Varlen requires layout: PaddingFree or Packed",
    ),
    Verdict(
        "evaluations after the end",
        {"training.maxSteps": 10, "training.evaluation": {"everySteps": 11}},
        "spec.training: evaluation.everySteps must be at most maxSteps: otherwise only the last step is evaluated",
    ),
    Verdict(
        "a micro-batch larger than the batch",
        {"training.microBatchSize": 32},
        "spec.training: microBatchSize must be at most batchSize",
    ),
    Verdict("no GPU", {"training.gpus": 0}, f"{_NO_GPUS}0"),
    Verdict("more GPUs than a node has", {"training.gpus": 65}, f"{_NO_GPUS}65"),
    Verdict(
        "a batch that the GPUs do not divide",
        {"training.batchSize": 6, "training.gpus": 4},
        "spec.training: batchSize must be a multiple of gpus, which share the examples of a step: use 4 or 8",
    ),
    Verdict("an empty micro-batch", {"training.microBatchSize": 0}, f"{_NO_MICRO_BATCH}0"),
    Verdict("half an example", {"training.microBatchSize": 0.5}, f"{_NO_MICRO_BATCH}0.5"),
    Verdict("an unknown word for the micro-batch", {"training.microBatchSize": "auto"}, f"{_NO_MICRO_BATCH}'auto'"),
    Verdict("an unknown layout", {"training.layout": "packed"}, "spec.training.layout: input should be 'PaddingFree'"),
    Verdict("an unknown attention", {"training.attention": "eager"}, "spec.training.attention: input should be 'Auto'"),
    Verdict(
        "checkpointing as a switch",
        {"training.gradientCheckpointing": True},
        "spec.training.gradientCheckpointing: input should be 'Auto', 'Always' or 'Never'",
    ),
    Verdict("an unknown format", {"dataset.format": "Alpaca"}, "spec.dataset.format: input should be 'Instruction'"),
    Verdict("an unknown method", {"method": "qlora"}, "spec.method: input should be 'QLoRA' or 'LoRA', is 'qlora'"),
    Verdict("an unknown optimizer", {"training.optimizer": "sgd"}, "spec.training.optimizer: input should be"),
    Verdict(
        "an unknown scheduler", {"training.scheduler": "step"}, "spec.training.scheduler: input should be 'cosine'"
    ),
    Verdict("an unknown precision", {"training.precision": "bf16"}, "spec.training.precision: input should be 'Auto'"),
    Verdict(
        "an unknown merge base", {"merge.base": "NF4"}, "spec.merge.base: input should be 'AsTrained' or 'Original'"
    ),
    Verdict(
        "an unknown model to score",
        {"evaluation.models": ["Edge", "Student"]},
        "spec.evaluation.models[1]: input should be",
    ),
    Verdict(
        "a model to score twice",
        {"evaluation.models": ["Edge", "Edge"]},
        "spec.evaluation.models: duplicate model Edge: list each model once",
    ),
    Verdict(
        "an edge model that is published without a score",
        {"evaluation.models": ["Base"]},
        "spec.evaluation: models must contain Edge: this model is published",
    ),
    Verdict(
        "a drop from a model that is not scored",
        {"evaluation.models": ["Edge", "Base"], "evaluation.gates": {"maxDrop": 0.1}},
        "spec.evaluation: gates.maxDrop compares the tuned model: add Tuned to models",
    ),
    Verdict(
        "an improvement on a model that is not scored",
        {"evaluation.models": ["Edge", "Tuned"], "evaluation.gates": {"minImprovement": 0.1}},
        "spec.evaluation: gates.minImprovement compares the base model: add Base to models",
    ),
    Verdict(
        "an unknown edge format", {"quantization.formats": ["Gguf"]}, "spec.quantization.formats[0]: input should be"
    ),
    Verdict(
        "no edge format", {"quantization.formats": []}, "spec.quantization.formats: must have at least 1 item, has 0"
    ),
    Verdict(
        "an edge format twice",
        {"quantization.formats": ["BitsAndBytesInt8", "BitsAndBytesInt8"]},
        "spec.quantization.formats: duplicate format BitsAndBytesInt8: list each format once",
        is_models_only=True,
    ),
    Verdict("a format as a word", {"quantization.formats": "GGUF-Q8_0"}, f"{_NO_FORMATS}'GGUF-Q8_0'"),
    Verdict("formats as a number", {"quantization.formats": 1}, f"{_NO_FORMATS}1"),
    Verdict("formats as an object", {"quantization.formats": {}}, f"{_NO_FORMATS}{{}}"),
    Verdict("Auto in a list", {"quantization.formats": ["Auto"]}, "spec.quantization.formats[0]: input should be"),
    Verdict(
        "a choice without a limit",
        _AUTO | {"evaluation.edge": {}, "evaluation.gates.minScore": 0.5},
        "spec: quantization.formats: Auto chooses by what the device has: set evaluation.gates.maxEdgeBytes, or in "
        "evaluation.edge memory, maxPeakMemory or minTokensPerSecond; or list the formats",
        is_models_only=True,
    ),
    Verdict("a rank of zero", {"lora.rank": 0}, "spec.lora.rank: input should be greater than or equal to 1, is 0"),
    Verdict("a rank beyond the bound", {"lora.rank": 513}, "spec.lora.rank: input should be less than or equal to 512"),
    Verdict("a rank as text", {"lora.rank": "16"}, "spec.lora.rank: input should be a valid integer, is '16'"),
    Verdict("half a rank", {"lora.rank": 1.5}, "spec.lora.rank: input should be a valid integer, is 1.5"),
    Verdict(
        "a boolean as text", {"lora.rsLora": "true"}, "spec.lora.rsLora: input should be a valid boolean, is 'true'"
    ),
    Verdict("a number as boolean", {"suspend": 1}, "spec.suspend: input should be a valid boolean, is 1"),
    Verdict("a text as object", {"lora": "big"}, "spec.lora: input should be an object, is 'big'"),
    Verdict("all inputs dropped", {"lora.dropout": 1}, "spec.lora.dropout: input should be less than 1, is 1"),
    Verdict("no epochs", {"training.epochs": 0}, "spec.training.epochs: input should be greater than 0, is 0"),
    Verdict("no steps", {"training.maxSteps": 0}, "spec.training.maxSteps: input should be greater than or equal to 1"),
    Verdict("no learning", {"training.learningRate": 0}, "spec.training.learningRate: input should be greater than 0"),
    Verdict(
        "only warm-up steps", {"training.warmupRatio": 1}, "spec.training.warmupRatio: input should be less than 1"
    ),
    Verdict("examples too short", {"training.maxLength": 7}, "spec.training.maxLength: input should be greater than"),
    Verdict(
        "a seed below zero", {"training.seed": -1}, "spec.training.seed: input should be greater than or equal to 0"
    ),
    Verdict("no checkpoint kept", {"training.checkpoint.keep": 0}, "spec.training.checkpoint.keep: input should be"),
    Verdict(
        "all rows held out", {"dataset.evalSplitPercent": 100}, "spec.dataset.evalSplitPercent: input should be less"
    ),
    Verdict("a nameless column", {"dataset.fields.response": ""}, "spec.dataset.fields.response: string should have"),
    Verdict("an unknown preset", {"lora.targetModules": "standard"}, f"{_NO_MODULES}'standard'"),
    Verdict("no modules", {"lora.targetModules": []}, f"{_NO_MODULES}[]"),
    Verdict("65 modules", {"lora.targetModules": ["x"] * 65}, f"{_NO_MODULES}['x', 'x'"),
    Verdict("a module with a space", {"lora.targetModules": ["q proj"]}, f"{_NO_MODULES}['q proj']"),
    Verdict("a module without a name", {"lora.targetModules": [""]}, f"{_NO_MODULES}['']"),
    Verdict("a number as module", {"lora.targetModules": [1]}, f"{_NO_MODULES}[1]"),
    Verdict("an object as module", {"lora.targetModules": [{"a": 1}]}, f"{_NO_MODULES}[{{'a': 1}}]"),
    Verdict("modules as an object", {"lora.targetModules": {"a": 1}}, f"{_NO_MODULES}{{'a': 1}}"),
    Verdict("modules as an empty object", {"lora.targetModules": {}}, f"{_NO_MODULES}{{}}"),
    Verdict("modules as a number", {"lora.targetModules": 5}, f"{_NO_MODULES}5"),
    Verdict("modules as a fraction", {"lora.targetModules": 0.5}, f"{_NO_MODULES}0.5"),
    Verdict("modules as a boolean", {"lora.targetModules": True}, f"{_NO_MODULES}True"),
    Verdict(
        "a score in percent", {"evaluation.gates.minScore": 80}, "spec.evaluation.gates.minScore: input should be less"
    ),
    Verdict("a drop below zero", {"evaluation.gates.maxDrop": -0.1}, "spec.evaluation.gates.maxDrop: input should be"),
    Verdict("a quantity in GiB", {"evaluation.gates.maxEdgeBytes": "8GiB"}, f"{_QUANTITY}: '8GiB' {_NO_SIZE}"),
    Verdict("a fraction of a quantity", {"evaluation.gates.maxEdgeBytes": "1.5Gi"}, f"{_QUANTITY}: '1.5Gi' {_NO_SIZE}"),
    Verdict("a quantity below zero", {"evaluation.gates.maxEdgeBytes": -1}, f"{_QUANTITY}: '-1' {_NO_SIZE}"),
    Verdict("half a byte", {"evaluation.gates.maxEdgeBytes": 0.5}, f"{_QUANTITY}: input should be a valid string"),
    Verdict(
        "a boolean as quantity", {"evaluation.gates.maxEdgeBytes": True}, f"{_QUANTITY}: input should be a valid string"
    ),
    Verdict("no cores", {"evaluation.edge.cpu": 0}, f"spec.evaluation.edge.cpu: '0' {_NO_CORES}"),
    Verdict("cores below zero", {"evaluation.edge.cpu": -1}, f"spec.evaluation.edge.cpu: '-1' {_NO_CORES}"),
    Verdict("cores as a word", {"evaluation.edge.cpu": "two"}, f"spec.evaluation.edge.cpu: 'two' {_NO_CORES}"),
    Verdict(
        "a speed below zero",
        {"evaluation.edge.minTokensPerSecond": -1},
        "spec.evaluation.edge.minTokensPerSecond: input should be greater than or equal to 0",
    ),
    Verdict("memory in GB", {"evaluation.edge.memory": "2GB"}, f"spec.evaluation.edge.memory: '2GB' {_NO_SIZE}"),
    Verdict(
        "an edge budget for a format for servers",
        {"evaluation.edge": {}, "quantization.formats": ["CompressedTensorsW8A8", "GGUF-Q8_0"]},
        "spec: evaluation.edge measures the first of quantization.formats on a CPU, which does not run "
        "CompressedTensorsW8A8: put BitsAndBytesInt8 or GGUF-Q8_0 first",
        is_models_only=True,
    ),
    Verdict(
        "a pin that is too short", {"publish.pin": "0123456789a"}, f"spec.publish.pin: '0123456789a' {_NO_VERSION}"
    ),
    Verdict("a pin in capitals", {"publish.pin": "0123456789AB"}, f"spec.publish.pin: '0123456789AB' {_NO_VERSION}"),
    Verdict(
        "a pin that is a name", {"publish.pin": "latest-but-one"}, f"spec.publish.pin: 'latest-but-one' {_NO_VERSION}"
    ),
    Verdict("a pin that is too long", {"publish.pin": "a" * 65}, "spec.publish.pin: string should have at most 64"),
    Verdict("no examples", {"evaluation.maxExamples": 0}, "spec.evaluation.maxExamples: input should be greater than"),
    Verdict(
        "a profile in capitals",
        {"profile": "A100"},
        "spec.profile: 'A100' is not a valid profile name; expected lower-case letters, digits and '-', with a letter "
        "or digit at both ends",
    ),
    Verdict("no profile", {"profile": ""}, "spec.profile: string should have at least 1 character"),
    Verdict(
        "an unknown deletion policy",
        {"deletionPolicy": "Recycle"},
        "spec.deletionPolicy: input should be 'Retain' or 'Delete', is 'Recycle'",
    ),
    Verdict("attempts below zero", {"retryLimit": -1}, "spec.retryLimit: input should be greater than or equal to 0"),
    Verdict("a deadline under a minute", {"activeDeadlineSeconds": 59}, "spec.activeDeadlineSeconds: input should be"),
    Verdict("an unknown field", {"image": "evil:1"}, "spec.image: unknown field"),
    Verdict(
        "an unknown field further down",
        {"training.batch": 16},
        "spec.training.batch: unknown field; did you mean 'batchSize'?",
    ),
    Verdict("a field name in snake case", {"training.batch_size": 16}, "spec.training.batch_size: unknown field"),
)
VERDICTS = VALID + INVALID

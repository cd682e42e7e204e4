"""Digests and store keys.

A digest covers every input that can change a stage's output, and nothing else. It includes the digest of the stage
before it:

    prepare (request) = H(base, dataset, maxLength, seed)                    names, pins and options
    prepared          = H(resolved, dataset without URIs, maxLength, seed)   content; the key of prepare's manifest
    train             = H(resolved base and training data, how rows become tokens, method, lora, training;
                          with training.evaluation also the evaluation data and evaluation.maxExamples)
    merge             = H(train, merge.base)
    quantize          = H(merge or train, merge.base, formats, outlierThreshold, importanceMatrix)
                        with formats Auto, those that prepare found
    evaluate          = H(quantize, evaluation data, options, cores and memory of the edge budget;
                          with formats Auto also all other limits, by which it chooses;
                          runtimes of formats that are not installed)
    publish           = H(evaluate, gates, the model's name), or with publish.pin H(pin, the model's name)

Each also covers the versions of its own stage and of all earlier ones (`STAGE_VERSIONS`). Labels, resources, node
selection, retry limits, deadlines and checkpoint intervals are in no digest: changing them re-runs nothing.
"""

import hashlib
import json
from math import ceil
from typing import Any

from edgetune_contract.evaluation import EdgeBudget, Match, ScoredModel
from edgetune_contract.pipeline import stages_of
from edgetune_contract.request import Resolved, edge_formats
from edgetune_contract.spec import AUTO, Parameters
from edgetune_contract.stages import Stage
from edgetune_contract.training import Attention, GradientCheckpointing, Kernels, Layout
from edgetune_contract.values.quantities import parse_bytes, parse_cpu

# Increment a stage's number when its earlier output must not be used any more: all finished objects then run the stage
# and all later ones again. Quantize: 2 has the prompt of training as chat template, 1 had the base's, with which a
# tuned model answers badly. Evaluate: 2 finds keywords as words, 1 found them anywhere.
STAGE_VERSIONS: dict[Stage, int] = {**dict.fromkeys(Stage, 1), Stage.QUANTIZE: 2, Stage.EVALUATE: 2}

# Increment it when the content of a base's GGUF file changes: devices then download each base again.
_BASE_GGUF_VERSION = 1

MANIFEST = "manifest.json"
USES = "uses"
PROVENANCE = "provenance.sigstore.json"


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces, in UTF-8: equal values have equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256_of(value: Any) -> str:
    """SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def prepare_digest(parameters: Parameters) -> str:
    """Digest of a request to prepare. It changes when names, pins or options in the spec change."""
    return _stage_digest(
        Stage.PREPARE,
        baseModel=_dump(parameters.base_model),
        dataset=_dump(parameters.dataset),
        maxLength=parameters.training.max_length,
        seed=parameters.training.seed,
    )


def prepared_digest(parameters: Parameters, resolved: Resolved) -> str:
    """Digest of prepare's output. It changes when the content behind the names changes."""
    return _stage_digest(
        Stage.PREPARE,
        resolved=_dump(resolved.content),
        rows=_row_options(parameters),
        maxLength=parameters.training.max_length,
        seed=parameters.training.seed,
    )


def stage_digests(parameters: Parameters, resolved: Resolved, name: str) -> dict[Stage, str]:
    """Digests of the run's stages after prepare, each chained to the preceding one."""
    digests: dict[Stage, str] = {}
    before = ""
    for stage in stages_of(parameters)[1:]:
        before = _stage_digest(stage, **_stage_inputs(stage, parameters, resolved, name, before))
        digests[stage] = before
    if pin := pin_digest(parameters, name):
        digests[Stage.PUBLISH] = pin
    return digests


def _stage_inputs(stage: Stage, parameters: Parameters, resolved: Resolved, name: str, before: str) -> dict[str, Any]:
    """Inputs that can change a stage's output, without its version; `before` is the preceding stage's digest."""
    match stage:
        case Stage.TRAIN:
            return {
                "base": resolved.base,
                "data": resolved.train,
                "rows": _trained_rows(parameters),
                "method": parameters.method,
                "lora": _dump(parameters.lora),
                "training": _training_options(parameters),
                **_validation_inputs(parameters, resolved),
            }
        case Stage.MERGE:
            return {"train": before, "base": parameters.merge.base}
        case Stage.QUANTIZE:
            return {
                "source": before,
                "base": parameters.merge.base,
                # Ordered: the status shows the first one's score.
                "formats": edge_formats(parameters, resolved) or AUTO,
                "outlierThreshold": parameters.quantization.outlier_threshold,
                # Left out without effect, so that the digests of 0.1.0 still hold.
                **({"importanceMatrix": True} if parameters.quantization.needs_rows else {}),
            }
        case Stage.EVALUATE:
            limits = _edge_limits(parameters.evaluation.edge)
            models = _scored_models(parameters)
            return {
                "quantize": before,
                "edge": limits,
                **models,
                **_evaluation_inputs(parameters, resolved),
                **_limits_of_choice(parameters),
                **({"missingRuntimes": resolved.missing_runtimes} if resolved.missing_runtimes else {}),
            }
        case Stage.PUBLISH:
            return {
                "evaluate": before,
                "gates": _dump(parameters.evaluation.gates),
                "edge": _edge_gates(parameters.evaluation.edge),
                "name": name,
            }
        case _:
            raise ValueError(f"{stage} has no chained digest")


def pin_digest(parameters: Parameters, name: str) -> str:
    """Digest of a publish stage that restores the pinned version; known before prepare runs. Empty without a pin."""
    pin = parameters.publish.pin
    return _stage_digest(Stage.PUBLISH, pin=pin, name=name) if pin else ""


def recipe_digest(parameters: Parameters) -> str:
    """Digest of all that a spec says about the stages from train to evaluate, whatever the content of base and data."""
    unknown = "0" * 64
    content = Resolved(base=unknown, train=unknown, eval=None if parameters.dataset.eval is None else unknown)
    return stage_digests(parameters, content, name="")[Stage.EVALUATE]


def base_scores_digest(parameters: Parameters, resolved: Resolved) -> str:
    """Digest of the base model's scores; runs with the same base and the same evaluation rows share it."""
    versions = [STAGE_VERSIONS[Stage.PREPARE], STAGE_VERSIONS[Stage.EVALUATE]]
    inputs = _evaluation_inputs(parameters, resolved)
    return sha256_of({"scores": "base", "versions": versions, "base": resolved.base, **inputs})


def stage_key(stage: Stage, digest: str) -> str:
    """Folder of a stage's output in the store."""
    return f"stages/{stage}/{digest}"


def manifest_key(stage: Stage, digest: str) -> str:
    """Key of a stage's manifest."""
    return f"{stage_key(stage, digest)}/{MANIFEST}"


def checkpoints_key(train_digest: str) -> str:
    """Folder of a training's checkpoints, one subfolder step-<n>/ each."""
    return f"checkpoints/{train_digest}"


def use_key(stage: Stage, digest: str, name: str) -> str:
    """Key of the marker for an object of this name that uses a stage's output."""
    return f"{uses_key(stage, digest)}/{name}"


def uses_key(stage: Stage, digest: str) -> str:
    """Folder of the use markers of a stage's output, one for each object that uses it."""
    return f"{USES}/{stage}/{digest}"


def base_scores_key(digest: str) -> str:
    """Key of the base model's scores."""
    return f"scores/base/{digest}.json"


def base_answers_key(digest: str) -> str:
    """Key of the base model's answers to the rows of these scores; older stores have none."""
    return f"scores/base/{digest}.answers.jsonl"


def base_gguf_digest(base: str) -> str:
    """Digest of a base model in GGUF-Q8_0, which all adapters for it in GGUF-LoRA share, by the base's own digest."""
    return sha256_of({"shared": "base.gguf", "version": _BASE_GGUF_VERSION, "base": base})


def shared_key(digest: str) -> str:
    """Folder of a file that the artifacts of several objects share: it belongs to none of them."""
    return f"shared/{digest}"


def versions_key(name: str) -> str:
    """Folder of a model's version documents."""
    return f"{model_key(name)}/versions"


def model_key(name: str) -> str:
    """Folder of a model: its versions and its pointer."""
    return f"models/{name}"


def version_key(name: str, digest: str) -> str:
    """Key of one published or refused version of a model."""
    return f"{versions_key(name)}/{digest}.json"


def cards_key(name: str, digest: str, artifact: str) -> str:
    """Folder of the model card of one edge model of a version."""
    return f"{versions_key(name)}/{digest}/{artifact}"


def reports_key(name: str, digest: str) -> str:
    """Folder of the report of a version."""
    return f"{versions_key(name)}/{digest}"


def signatures_key(name: str, version: str) -> str:
    """Folder of the signatures of one version of a model: `PROVENANCE`, and one for each artifact of its run."""
    return f"{model_key(name)}/signatures/{version}"


def provenance_key(name: str, version: str) -> str:
    """Key of the signed provenance of one version of a model."""
    return f"{signatures_key(name, version)}/{PROVENANCE}"


def signature_key(name: str, version: str, artifact: str) -> str:
    """Key of the signature of an artifact's files."""
    return f"{signatures_key(name, version)}/{artifact}.sig"


def pointer_key(name: str) -> str:
    """Key of the pointer that edge devices follow."""
    return f"{model_key(name)}/latest.json"


def _stage_digest(stage: Stage, **inputs: Any) -> str:
    """Digest of a stage. It covers the versions of all stages up to this one, whose output ends up in this one's."""
    order = list(Stage)
    versions = [STAGE_VERSIONS[before] for before in order[: order.index(stage) + 1]]
    return sha256_of({"stage": stage, "versions": versions, **inputs})


def _dump(model: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = model.model_dump(mode="json", exclude_none=True)
    return dumped


def _training_options(parameters: Parameters) -> dict[str, Any]:
    training = parameters.training
    options = _dump(training)
    del options["checkpoint"], options["gpus"]
    if training.max_steps is not None:
        del options["epochs"]
    # As 0.1.0 wrote them, so that the digests of its trainings still hold: joined examples give the same losses as its
    # padded ones. What it called packing counted packed sequences as examples, and is not offered any more.
    options["packing"] = False
    if training.layout is Layout.PADDING_FREE:
        del options["layout"]
    if training.attention is Attention.AUTO:
        del options["attention"]
    if training.kernels is Kernels.TORCH:
        del options["kernels"]
    if training.gradient_checkpointing is not GradientCheckpointing.AUTO:
        options["gradientCheckpointing"] = training.gradient_checkpointing is GradientCheckpointing.ALWAYS
    return options


def _validation_inputs(parameters: Parameters, resolved: Resolved) -> dict[str, Any]:
    """The rows whose loss selects the adapter; empty if training does not evaluate."""
    if parameters.training.evaluation is None:
        return {}
    return {"validation": {"data": resolved.eval, "maxExamples": parameters.evaluation.max_examples}}


def _trained_rows(parameters: Parameters) -> dict[str, Any]:
    rows = _row_options(parameters)
    del rows["fields"]["expectedKeyword"]
    return rows


def _row_options(parameters: Parameters) -> dict[str, Any]:
    """How rows are read and turned into tokens, without their URIs."""
    rows = _dump(parameters.dataset)
    for place in ("train", "eval"):
        rows.pop(place, None)
    if parameters.dataset.eval is not None:
        del rows["evalSplitPercent"]
    return rows


def _edge_limits(budget: EdgeBudget | None) -> dict[str, Any] | None:
    """Cores and bytes of memory to measure models with; None if they are not measured."""
    if budget is None:
        return None
    return {
        "cores": None if budget.cpu is None else ceil(parse_cpu(budget.cpu)),
        "memory": None if budget.memory is None else parse_bytes(budget.memory),
    }


def _limits_of_choice(parameters: Parameters) -> dict[str, Any]:
    """The limits that decide which candidate is the edge model; empty without formats Auto."""
    if not parameters.quantization.is_auto:
        return {}
    evaluation = parameters.evaluation
    return {"choice": {"gates": _dump(evaluation.gates), "edge": _edge_gates(evaluation.edge)}}


def _edge_gates(budget: EdgeBudget | None) -> dict[str, Any]:
    return _dump(budget.model_copy(update={"cpu": None, "memory": None})) if budget else {}


def _scored_models(parameters: Parameters) -> dict[str, Any]:
    """The models to score, whatever their order; empty at the default, so that digests of 0.1.0 still hold."""
    models = sorted(parameters.evaluation.models)
    return {} if models == sorted(ScoredModel) else {"models": models}


def _evaluation_inputs(parameters: Parameters, resolved: Resolved) -> dict[str, Any]:
    evaluation = parameters.evaluation
    # Fields that 0.1.0 did not have are left out at their default, so that its digests still hold.
    match = {} if evaluation.match is Match.WORD else {"match": evaluation.match}
    return {
        "data": resolved.eval or {"train": resolved.train, "seed": parameters.training.seed},
        "rows": _row_options(parameters),
        "maxLength": parameters.training.max_length,
        "maxExamples": evaluation.max_examples,
        "maxNewTokens": evaluation.max_new_tokens,
        **match,
    }

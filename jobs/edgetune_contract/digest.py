"""Digests and store keys.

A digest covers every input that can change a stage's output, and nothing else. It includes the digest of the stage
before it:

    prepare (request) = H(base, dataset, maxLength, seed)                    names, pins and options
    prepared          = H(resolved, dataset without URIs, maxLength, seed)   content; the key of prepare's manifest
    train             = H(resolved base and training data, how rows become tokens, method, lora, training;
                          with training.evaluation also the evaluation data and evaluation.maxExamples)
    merge             = H(train, merge.base)
    quantize          = H(merge or train, merge.base, formats, outlierThreshold)
    evaluate          = H(quantize, evaluation data, options, cores and memory of the edge budget)
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
from edgetune_contract.request import Resolved
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_contract.training import Attention, GradientCheckpointing, Layout
from edgetune_contract.values.quantities import parse_bytes, parse_cpu

# Increment a stage's number when its earlier output must not be used any more: all finished objects then run the stage
# and all later ones again. Evaluate: 2 finds keywords as words, 1 found them anywhere.
STAGE_VERSIONS: dict[Stage, int] = {**dict.fromkeys(Stage, 1), Stage.EVALUATE: 2}

MANIFEST = "manifest.json"
USES = "uses"


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
        resolved=_dump(resolved),
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
                "formats": parameters.quantization.formats,  # ordered: the status shows the first one's score
                "outlierThreshold": parameters.quantization.outlier_threshold,
            }
        case Stage.EVALUATE:
            limits = _edge_limits(parameters.evaluation.edge)
            models = _scored_models(parameters)
            return {"quantize": before, "edge": limits, **models, **_evaluation_inputs(parameters, resolved)}
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


def versions_key(name: str) -> str:
    """Folder of a model's version documents."""
    return f"{model_key(name)}/versions"


def model_key(name: str) -> str:
    """Folder of a model: its versions and its pointer."""
    return f"models/{name}"


def version_key(name: str, digest: str) -> str:
    """Key of one published or refused version of a model."""
    return f"{versions_key(name)}/{digest}.json"


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
    del options["checkpoint"]
    if training.max_steps is not None:
        del options["epochs"]
    # As 0.1.0 wrote them, so that the digests of its trainings still hold: joined examples give the same losses as its
    # padded ones. What it called packing counted packed sequences as examples, and is not offered any more.
    options["packing"] = False
    if training.layout is Layout.PADDING_FREE:
        del options["layout"]
    if training.attention is Attention.AUTO:
        del options["attention"]
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

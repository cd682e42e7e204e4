"""The pipeline as one table: the inputs and outputs of each stage, its condition and its phase.

    base ─┬─► train ─► adapter ─► merge ─► merged ─► quantize ─► edge ─► evaluate ─► publish
          └─ prepare ─► prepared

With spec.merge.keep false there is no merge stage: a stage that reads the merged model reads merge's inputs instead.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edgetune_contract.evaluation import ScoredModel
from edgetune_contract.spec import EdgeFormat, Parameters
from edgetune_contract.stages import Stage

BASE = "base"
"""The base model: an input that no stage makes."""

PREPARED = "prepared"
ADAPTER = "adapter"
MERGED = "merged"
EDGE = "edge"
"""All edge models: one artifact for each format in the spec, named by `EdgeFormat.artifact`."""

EVALUATION = "evaluation"
BASE_SCORES = "base-scores"
"""Scores of the base alone: evaluate reads them if the store has them, and computes them otherwise."""

TUNED = "tuned"
"""The base with the adapter: it is scored, but is not an artifact."""

SCORED_MODELS = (BASE, TUNED, MERGED, EDGE)
"""The models that evaluate compares. EDGE is the edge model in the first format."""


@dataclass(frozen=True)
class StageDefinition:
    """One row of the pipeline."""

    condition: str
    """Type of the condition that is True once the stage is done."""

    phase: str
    """Phase of the object while the stage runs."""

    reads: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    reports: Literal["resolved", "scores", "publication"] | None = None
    """Field that the result of a finished stage must have."""

    wants_gpu: bool = False
    """Whether the stage requests a GPU by default."""

    wants_gpu_if_large: bool = False
    """Whether the stage requests a GPU by default for a base above the profile's evaluateOnGpuAbove."""

    is_optional: bool = False
    """Whether the stage runs only if spec.merge.keep is true."""


PIPELINE: Mapping[Stage, StageDefinition] = {
    Stage.PREPARE: StageDefinition(condition="Prepared", phase="Preparing", makes=(PREPARED,), reports="resolved"),
    Stage.TRAIN: StageDefinition(
        condition="Trained", phase="Training", reads=(BASE, PREPARED), makes=(ADAPTER,), wants_gpu=True
    ),
    Stage.MERGE: StageDefinition(
        condition="Merged", phase="Merging", reads=(BASE, ADAPTER), makes=(MERGED,), is_optional=True
    ),
    Stage.QUANTIZE: StageDefinition(condition="Quantized", phase="Quantizing", reads=(MERGED,), makes=(EDGE,)),
    Stage.EVALUATE: StageDefinition(
        condition="Evaluated",
        phase="Evaluating",
        reads=(BASE, PREPARED, ADAPTER, MERGED, EDGE),
        makes=(EVALUATION,),
        reports="scores",
        wants_gpu_if_large=True,
    ),
    Stage.PUBLISH: StageDefinition(condition="Published", phase="Publishing", reports="publication"),
}


def stages_of(parameters: Parameters) -> tuple[Stage, ...]:
    """The stages of a run, in the order in which they run."""
    return tuple(stage for stage in Stage if parameters.merge.keep or not PIPELINE[stage].is_optional)


def inputs_of(stage: Stage, parameters: Parameters, found: Sequence[EdgeFormat] | None = None) -> tuple[str, ...]:
    """Names of a stage's inputs, without base-scores, which the store may not have yet.

    Args:
        stage: the stage.
        parameters: of the run.
        found: with quantization.formats Auto, the formats that quantize writes; None if they are not known yet.
    """
    present = stages_of(parameters)
    names: list[str] = []
    reads = PIPELINE[stage].reads
    if stage is Stage.QUANTIZE and EdgeFormat.GGUF_LORA in parameters.quantization.formats:
        reads = (*reads, BASE, ADAPTER)  # which it writes unmerged
    if stage is Stage.QUANTIZE and parameters.quantization.needs_rows:
        reads = (*reads, PREPARED)
    for name in reads:
        if stage is Stage.EVALUATE and name == MERGED and ScoredModel.MERGED not in parameters.evaluation.models:
            continue
        maker = _MAKERS.get(name)
        names += (name,) if maker is None or maker in present else PIPELINE[maker].reads
    return tuple(dict.fromkeys(each for name in names for each in _artifacts(name, parameters, found)))


def outputs_of(stage: Stage, parameters: Parameters, found: Sequence[EdgeFormat] | None = None) -> tuple[str, ...]:
    """Names of a stage's output artifacts; arguments as of `inputs_of`."""
    return tuple(each for name in PIPELINE[stage].makes for each in _artifacts(name, parameters, found))


def maker_of(artifact: str) -> Stage:
    """The stage that makes an artifact.

    Raises:
        KeyError: no stage makes it.
    """
    return _MAKERS[EDGE if is_edge(artifact) else artifact]


def is_edge(artifact: str) -> bool:
    """Whether an artifact is an edge model, in any format."""
    return artifact in _EDGE_ARTIFACTS


def _artifacts(name: str, parameters: Parameters, found: Sequence[EdgeFormat] | None) -> tuple[str, ...]:
    if name != EDGE:
        return (name,)
    return tuple(each.artifact for each in parameters.quantization.formats or found or ())


_MAKERS: Mapping[str, Stage] = {name: stage for stage, definition in PIPELINE.items() for name in definition.makes}
_EDGE_ARTIFACTS = frozenset(edge_format.artifact for edge_format in EdgeFormat)

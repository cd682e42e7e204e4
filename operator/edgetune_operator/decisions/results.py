"""Results: whether what a stage reports can be recorded."""

from collections.abc import Sequence

from edgetune_contract.pipeline import PIPELINE
from edgetune_contract.request import Result
from edgetune_contract.stages import Stage
from edgetune_operator.api.status.object_status import ArtifactStatus
from edgetune_operator.api.status.stage_status import StageStatus


def is_whole(result: Result, row: StageStatus, artifacts: Sequence[ArtifactStatus]) -> bool:
    """Whether a result is the stage's own and has what later stages and the status need.

    Args:
        result: the result.
        row: row of the stage.
        artifacts: those of all stages so far.
    """
    stage, reported = row.name, PIPELINE[row.name].reports
    # prepare's manifest has a digest of the content, its row a digest of the URIs in the spec.
    same = stage is Stage.PREPARE or result.digest == row.digest
    others = {kept.name for kept in artifacts if kept.stage is not stage}
    if any(made.name in others for made in result.artifacts):
        return False
    return same and result.stage is stage and (reported is None or getattr(result, reported) is not None)

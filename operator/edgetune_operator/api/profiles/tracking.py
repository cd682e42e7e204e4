"""The part of a profile that says where runs are tracked."""

from typing import Annotated

from pydantic import Field

from edgetune_contract.access.tracking import MLFLOW_URI
from edgetune_contract.schema import Model
from edgetune_contract.stages import Stage

TRACKED_STAGES = tuple(stage for stage in Stage if stage is not Stage.PREPARE)
"""Stages that say when a run fails or is stopped. prepare does not know its version yet."""

RECORDING_STAGES = (Stage.TRAIN, Stage.PUBLISH)
"""Stages that begin a run, and send figures."""


class Mlflow(Model):
    """An MLflow server."""

    uri: Annotated[str, Field(pattern=MLFLOW_URI, max_length=2048)]
    """Its address, such as https://mlflow.example.com, without user and password."""

    # The kubelet expands $(NAME) in values.
    experiment: Annotated[str, Field(pattern=r"^[^$\s]([^$\r\n]*[^$\s])?$", max_length=250)] | None = None
    """Experiment of all runs, which is created if it is missing. Default: one for each object, namespace/name."""

    credentials_secret: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Secret in the object's namespace with MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and
    MLFLOW_TRACKING_PASSWORD. The Pods of all stages but prepare mount it, and run without it if it does not exist."""


class Tracking(Model):
    """Where runs are tracked."""

    mlflow: Mlflow
    """The MLflow server."""

"""The tracker of a local run: the option, the profile, and the variables of MLflow's own client."""

from collections.abc import Mapping

import pytest
import typer

from edgetune_cli.local.tracking import with_tracking
from edgetune_operator.api.profiles.profile import Profile, ProfileStore
from edgetune_operator.api.profiles.tracking import Mlflow, Tracking

PLAIN = Profile(store=ProfileStore(uri="file:///store"))
OPTION, VARIABLE, OWN = "http://option:5000", "http://variable:5000", "http://profile:5000"
TRACKED = PLAIN.model_copy(update={"tracking": Tracking(mlflow=Mlflow(uri=OWN))})


def found(profile: Profile, option: str | None, **environment: str) -> Mlflow | None:
    tracking = with_tracking({"default": profile}, "default", option, environment)["default"].tracking
    return None if tracking is None else tracking.mlflow


@pytest.mark.parametrize(
    ("profile", "option", "environment", "uri"),
    [
        (PLAIN, None, {}, None),
        (PLAIN, None, {"MLFLOW_TRACKING_URI": ""}, None),
        (PLAIN, None, {"MLFLOW_TRACKING_URI": VARIABLE}, VARIABLE),
        (PLAIN, OPTION, {"MLFLOW_TRACKING_URI": VARIABLE}, OPTION),
        (TRACKED, None, {"MLFLOW_TRACKING_URI": VARIABLE}, OWN),
        (TRACKED, OPTION, {}, OPTION),
    ],
)
def test_the_option_counts_before_the_profile_and_that_before_the_variable(
    profile: Profile, option: str | None, environment: Mapping[str, str], uri: str | None
) -> None:
    mlflow = found(profile, option, **environment)
    assert (None if mlflow is None else mlflow.uri) == uri


def test_the_experiment_is_that_of_the_variable() -> None:
    mlflow = found(PLAIN, OPTION, MLFLOW_EXPERIMENT_NAME="edge models")
    assert mlflow is not None
    assert mlflow.experiment == "edge models"


def test_an_option_that_is_no_server_ends_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        found(PLAIN, "sqlite:///mlflow.db")
    assert "--mlflow is not the address of a server: use http:// or https://" in capsys.readouterr().err


def test_a_variable_for_another_program_is_only_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert found(PLAIN, None, MLFLOW_TRACKING_URI="databricks") is None
    assert "The run is not tracked: MLFLOW_TRACKING_URI is not the address of a server" in capsys.readouterr().err

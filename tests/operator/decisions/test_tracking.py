"""A profile with a tracker: which requests know the commit, and which Pods have its address and credentials."""

from typing import Any

import pytest

from edgetune_contract.request import Request
from edgetune_contract.stages import Stage
from edgetune_operator.api import names
from edgetune_operator.api.profiles.profile import Profile
from edgetune_operator.api.profiles.tracking import Mlflow, Tracking
from edgetune_operator.decisions.manifests.job_manifests import TRACKING_DIR, TRACKING_VOLUME
from support.builders import ObjectBuilder, lora_fine_tune
from support.golden import DEFAULT, job_of
from support.scenario import PROFILE, Scenario, request_of

URI = "https://mlflow.example.internal"
REVISION = "main@sha1:" + "7" * 40


def tracking(**fields: Any) -> Tracking:
    return Tracking(mlflow=Mlflow(uri=URI, **fields))


def with_tracking(profile: Profile, **fields: Any) -> Profile:
    return profile.model_copy(update={"tracking": tracking(**fields)})


def requests_of(builder: ObjectBuilder, profile: Profile) -> dict[Stage, Request]:
    scenario = Scenario(builder, profile)
    scenario.finish_all()
    return {request.stage: request for request in map(request_of, scenario.cluster.created)}


def at_revision() -> ObjectBuilder:
    return lora_fine_tune().with_metadata(annotations={names.SOURCE_REVISION_ANNOTATION: REVISION})


def variables_of(job: dict[str, Any]) -> dict[str, str]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each["value"] for each in container["env"]}


def test_train_and_publish_know_the_commit_which_is_in_no_digest() -> None:
    tracked, untracked = requests_of(at_revision(), with_tracking(PROFILE)), requests_of(lora_fine_tune(), PROFILE)

    assert {stage for stage, each in tracked.items() if each.source_revision == REVISION} == {
        Stage.TRAIN,
        Stage.PUBLISH,
    }
    assert [each.digest for each in tracked.values()] == [each.digest for each in untracked.values()]


def test_the_pods_of_all_stages_that_know_the_version_have_the_address_and_the_credentials() -> None:
    profile = with_tracking(DEFAULT, experiment="edge models", credentials_secret="edgetune-mlflow")
    jobs = {stage: job_of(stage, profile) for stage in Stage}

    tracked = [stage for stage, job in jobs.items() if "EDGETUNE_MLFLOW_URI" in variables_of(job)]
    assert tracked == [stage for stage in Stage if stage is not Stage.PREPARE]
    assert [stage for stage, job in jobs.items() if "edgetune-mlflow" in str(job)] == tracked
    for stage in tracked:
        variables, pod = variables_of(jobs[stage]), jobs[stage]["spec"]["template"]["spec"]
        assert variables["EDGETUNE_MLFLOW_URI"] == URI
        assert variables["EDGETUNE_MLFLOW_EXPERIMENT"] == "edge models"
        assert variables["EDGETUNE_TRACKING_CREDENTIALS_DIR"] == TRACKING_DIR
        (volume,) = (each for each in pod["volumes"] if each["name"] == TRACKING_VOLUME)
        assert volume["secret"]["optional"], "the Pod also starts without the Secret"


def test_without_credentials_there_is_no_volume() -> None:
    job = job_of(Stage.TRAIN, with_tracking(DEFAULT))

    assert TRACKING_VOLUME not in str(job)
    assert "EDGETUNE_MLFLOW_EXPERIMENT" not in variables_of(job)


def test_another_tracker_replaces_only_waiting_jobs_that_have_its_address() -> None:
    profiles = [with_tracking(DEFAULT, experiment=name) for name in ("one", "other")]

    def settings(stage: Stage, profile: Profile) -> str:
        return str(job_of(stage, profile)["metadata"]["annotations"][names.SETTINGS_ANNOTATION])

    changed = [stage for stage in Stage if len({settings(stage, profile) for profile in profiles}) == 2]

    assert changed == [stage for stage in Stage if stage is not Stage.PREPARE]
    assert settings(Stage.PREPARE, profiles[0]) == settings(Stage.PREPARE, DEFAULT)


@pytest.mark.parametrize(
    "uri",
    ["http://mlflow", "http://mlflow:5000", "https://mlflow.example.com/team-a/", "http://[::1]:5000", URI],
)
def test_the_address_is_that_of_a_server(uri: str) -> None:
    assert Mlflow(uri=uri).uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:password@mlflow.example.com",
        "https://mlflow.example.com/?token=x",
        "https://mlflow.example.com/#x",
        "file:///mlruns",
        "sqlite:///mlflow.db",
        "databricks",
        "https://",
        "https://$(HOST)",
        "https://mlflow.example.com\nx",
    ],
)
def test_an_address_that_is_none_or_has_credentials_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="uri"):
        Mlflow(uri=uri)


@pytest.mark.parametrize("experiment", ["", " ", "$(HOME)", "a\nb", " a"])
def test_an_experiment_that_the_kubelet_or_mlflow_would_change_is_refused(experiment: str) -> None:
    with pytest.raises(ValueError, match="experiment"):
        Mlflow(uri=URI, experiment=experiment)

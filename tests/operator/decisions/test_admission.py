"""Admission: which objects may run with the profile that they name."""

from typing import Any

import pytest

from edgetune_contract.stages import Stage
from edgetune_operator.api.profiles.profile import Profile, ProfileStore
from edgetune_operator.api.profiles.queue import Queue
from edgetune_operator.api.profiles.resources import Resources
from edgetune_operator.api.profiles.tenants import LabelSelector, Namespaces
from support.builders import lora_fine_tune
from support.deletion import Deletion, published_with_delete
from support.scenario import PROFILE, Scenario, request_of

OTHERS = "s3://artifacts/edgetune/team-b/stages/merge/0123/merged"


@pytest.fixture
def deletion() -> Deletion:
    """A published object that will be deleted."""
    return published_with_delete()


def test_no_job_is_created_for_a_model_of_another_namespace() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("baseModel.uri", OTHERS))

    scenario.reconcile()

    status, reason, message = scenario.held_up or ("", "", "")
    assert (status, reason) == ("True", "SourceNotAllowed")
    assert message.startswith(f"spec.baseModel.uri: {OTHERS} is in the store s3://artifacts/edgetune, of which")
    assert scenario.cluster.created == []


def test_an_edit_to_data_of_another_namespace_stops_before_the_next_job_and_keeps_what_is_done() -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.finish_all()
    created = len(scenario.cluster.created)

    scenario.change(scenario.builder.edited("dataset.train.uri", f"{OTHERS}/train.jsonl"))
    scenario.reconcile()

    assert (scenario.held_up or ())[:2] == ("True", "SourceNotAllowed")
    assert (len(scenario.cluster.created), len(scenario.status.artifacts)) == (created, 4)
    scenario.change(lora_fine_tune().with_metadata(generation=3))
    scenario.reconcile()
    assert (scenario.condition("Ready") or ())[:2] == ("True", "Published")


def test_the_store_of_another_profile_is_closed_too() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("baseModel.uri", "s3://large/team-b/model"))
    scenario.profiles["large"] = Profile(store=ProfileStore(uri="s3://large"))

    scenario.reconcile()

    assert "is in the store s3://large, of which" in (scenario.held_up or ("", "", ""))[2]


def test_the_list_of_a_profile_is_checked_and_reaches_the_stages() -> None:
    allowed = ("s3://models/*", "s3://datasets/sensor/*")
    scenario = Scenario(lora_fine_tune(), PROFILE.model_copy(update={"sources": allowed}))
    scenario.reconcile()
    assert (scenario.request.stage, scenario.request.allowed_sources) == (Stage.PREPARE, allowed)

    scenario.change(scenario.builder.edited("baseModel.uri", "s3://elsewhere/llama"))
    scenario.reconcile()

    message = "spec.baseModel.uri: s3://elsewhere/llama is not a source that the profile allows (s3://models/*, "
    assert (scenario.held_up or ("", "", ""))[2].startswith(message)


def only(*namespaces: str, **fields: Any) -> Profile:
    return PROFILE.model_copy(update={"namespaces": Namespaces(names=namespaces), **fields})


def stalled(scenario: Scenario) -> tuple[str, ...]:
    """Reason and message after a pass, which creates nothing."""
    created = len(scenario.cluster.created)
    scenario.reconcile()
    assert len(scenario.cluster.created) == created
    return (scenario.held_up or ())[1:]


def test_a_profile_of_other_namespaces_is_refused_with_those_that_may_be_used() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("profile", "large"))
    scenario.profiles |= {"large": only("team-b"), "small": only("team-a")}

    message = "spec.profile: namespace team-a may not use profile 'large'; it may use default, small"
    assert stalled(scenario) == ("ProfileNotAllowed", message)
    scenario.profiles = {"large": only("team-b")}
    message = "spec.profile: namespace team-a may not use profile 'large'; it may use none: ask the platform team"
    assert stalled(scenario) == ("ProfileNotAllowed", message)


def test_a_profile_that_does_not_exist_is_refused_with_those_that_may_be_used() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("profile", "xxl"))
    scenario.profiles |= {"large": only("team-b")}

    assert stalled(scenario)[1] == "spec.profile: profile 'xxl' not found; namespace team-a may use default"


def test_a_misspelled_profile_is_answered_with_the_one_that_was_probably_meant() -> None:
    scenario = Scenario(lora_fine_tune().with_spec("profile", "defualt"))

    scenario.reconcile()

    assert stalled(scenario)[1].endswith("namespace team-a may use default; did you mean 'default'?")


def test_labels_of_the_namespace_open_and_close_a_profile() -> None:
    selector = LabelSelector(match_labels={"team": "vision"})
    scenario = Scenario(lora_fine_tune(), PROFILE.model_copy(update={"namespaces": Namespaces(selector=selector)}))
    assert stalled(scenario)[0] == "ProfileNotAllowed"

    scenario.cluster.namespace_labels = {"team": "vision"}
    scenario.reconcile()
    assert scenario.request.stage is Stage.PREPARE

    scenario.finish()
    scenario.cluster.namespace_labels = {}
    assert stalled(scenario)[0] == "ProfileNotAllowed"


def test_a_clean_up_does_not_run_with_a_profile_of_other_namespaces(deletion: Deletion) -> None:
    deletion.profiles["default"] = only("team-b")
    deletion.delete()

    first = deletion.step().plan

    assert (first.actions, first.reason) == ((), "ProfileNotAllowed")
    assert "namespace team-a may not use profile 'default'; it may use none" in first.message


def test_a_stage_with_a_gpu_is_created_suspended_where_a_queue_is_required() -> None:
    scenario = Scenario(
        lora_fine_tune(), PROFILE.model_copy(update={"queue": Queue(name="gpu"), "require_queue": True})
    )

    scenario.finish_all()

    suspended = {request_of(job).stage: job["spec"].get("suspend") for job in scenario.cluster.created}
    assert suspended == {**dict.fromkeys(Stage), Stage.TRAIN: True}


SEVERAL = Resources(requests={"nvidia.com/gpu": 2}, limits={"nvidia.com/gpu": 2})


@pytest.mark.parametrize(("gpus", "expected"), [("Auto", "2"), (1, "1"), (4, "4")])
def test_the_job_of_a_training_requests_the_gpus_that_the_spec_asks_for(gpus: int | str, expected: str) -> None:
    profile = PROFILE.model_copy(update={"resources": {Stage.TRAIN: SEVERAL}, "max_gpus": 4})
    scenario = Scenario(lora_fine_tune().with_spec("training.gpus", gpus), profile)
    scenario.reconcile()
    scenario.finish(scenario.simulated_result(scenario.request))

    scenario.reconcile()

    (container,) = scenario.cluster.jobs[scenario.live_job]["spec"]["template"]["spec"]["containers"]
    assert str(container["resources"]["limits"]["nvidia.com/gpu"]) == expected
    assert {"name": "EDGETUNE_GPUS", "value": expected} in container["env"]


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (
            PROFILE,
            "spec.training.gpus is 4, but profile 'default' allows at most 1 (maxGpus or resources.train); use 1 or "
            "less, or Auto",
        ),
        (
            PROFILE.model_copy(update={"resources": {Stage.TRAIN: Resources(requests={"cpu": 4})}}),
            "spec.training.gpus is 4, but profile 'default' gives train no GPU; remove it",
        ),
    ],
    ids=["fewer", "none"],
)
def test_more_gpus_than_the_profile_gives_are_refused(profile: Profile, message: str) -> None:
    scenario = Scenario(lora_fine_tune().with_spec("training.gpus", 4), profile)

    scenario.reconcile()

    assert scenario.held_up == ("True", "InvalidSpec", message)
    assert scenario.cluster.created == []


ON_NODES = PROFILE.model_copy(
    update={
        "resources": {Stage.TRAIN: Resources(requests={"nvidia.com/gpu": 1}, limits={"nvidia.com/gpu": 1}, nodes=2)},
        "max_gpus": 4,
        "max_nodes": 3,
    }
)


@pytest.mark.parametrize(
    ("training", "nodes", "each"),
    [
        ({}, 2, 1),
        ({"batchSize": 3}, 1, 1),
        ({"gpus": 1}, 1, 1),
        ({"gpus": 4}, 1, 4),
        ({"gpus": 6, "batchSize": 6}, 2, 3),
        ({"gpus": 9, "batchSize": 9}, 3, 3),
        ({"gpus": 12, "batchSize": 12}, 3, 4),
    ],
    ids=["Auto", "as many as divide the batch", "one", "one node", "two", "three", "all"],
)
def test_the_gpus_of_a_training_are_on_as_few_nodes_as_possible(
    training: dict[str, int], nodes: int, each: int
) -> None:
    builder = lora_fine_tune()
    for field, value in training.items():
        builder = builder.with_spec(f"training.{field}", value)
    scenario = Scenario(builder, ON_NODES)
    scenario.advance_to(Stage.TRAIN)

    job = scenario.cluster.jobs[scenario.live_job]

    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) == each
    assert (job["spec"].get("completions", 1), job["spec"].get("parallelism", 1)) == (nodes, nodes)


@pytest.mark.parametrize(
    ("gpus", "nearest"),
    [(5, "3 or 6"), (30, "6")],
    ids=["not equally many on each node", "more than all nodes have"],
)
def test_gpus_that_cannot_be_split_are_refused_with_the_nearest_numbers_that_can(gpus: int, nearest: str) -> None:
    scenario = Scenario(lora_fine_tune().with_spec("training.batchSize", 30).with_spec("training.gpus", gpus), ON_NODES)

    scenario.reconcile()

    assert scenario.condition("Stalled") == (
        "True",
        "InvalidSpec",
        f"spec.training.gpus is {gpus}, but profile 'default' allows at most 4 on each of 3 nodes (maxGpus, maxNodes "
        f"or resources.train), equally many on each; use {nearest}, or Auto",
    )


def test_a_training_on_cpus_runs_on_as_many_nodes_of_the_profile_as_divide_its_batch() -> None:
    profile = PROFILE.model_copy(update={"resources": {Stage.TRAIN: Resources(requests={"cpu": 4}, nodes=3)}})
    scenario = Scenario(lora_fine_tune().with_spec("training.batchSize", 4), profile)
    scenario.advance_to(Stage.TRAIN)

    assert scenario.cluster.jobs[scenario.live_job]["spec"]["completions"] == 2

"""The CRD on a real API server: it is accepted, gives the model's verdicts, and sets the model's defaults."""

from typing import Any

import pytest

from edgetune_contract.spec import BaseModelSpec, DatasetSpec
from edgetune_contract.training import TrainingSpec
from edgetune_operator.api import names
from edgetune_operator.api.spec import LoraFineTuneSpec
from edgetune_operator.api.spec_check import parse_spec
from support.apiserver import ApiServer
from support.builders import lora_fine_tune
from support.scenario import Scenario
from support.verdicts import INVALID, VERDICTS, Verdict

OBJECTS = f"/apis/{names.API_VERSION}/namespaces/default/{names.PLURAL}"
DRY_RUN = f"{OBJECTS}?dryRun=All&fieldValidation=Strict"

RULES = [
    rule.message
    for model in (BaseModelSpec, DatasetSpec, TrainingSpec, LoraFineTuneSpec)
    for rule in model.rules
    if rule.cel is not None
]
"""Messages that the model and the CRD share."""


def submitted(document: dict[str, Any]) -> dict[str, Any]:
    """The object as a user submits it."""
    return document | {"metadata": {"name": document["metadata"]["name"], "namespace": "default"}}


@pytest.mark.parametrize("verdict", VERDICTS, ids=[verdict.case for verdict in VERDICTS])
def test_the_api_server_gives_the_models_verdict(apiserver: ApiServer, verdict: Verdict) -> None:
    reply = apiserver.request("POST", DRY_RUN, submitted(verdict.object))

    assert reply.accepted is (verdict.valid or verdict.is_models_only), reply.message
    if not reply.accepted:
        assert verdict.path in reply.message


@pytest.mark.parametrize("message", RULES)
def test_a_broken_rule_is_reported_with_the_models_message(apiserver: ApiServer, message: str) -> None:
    verdict = next(each for each in INVALID if f": {message}" in each.problem)

    reply = apiserver.request("POST", DRY_RUN, submitted(verdict.object))

    (cause,) = reply.body["details"]["causes"]
    assert cause["field"] == verdict.path
    assert cause["message"].endswith(f": {message}")


def test_the_smallest_object_is_served_with_every_default_of_the_model(apiserver: ApiServer) -> None:
    reply = apiserver.request("POST", DRY_RUN, submitted(lora_fine_tune().build()))

    expected = parse_spec(lora_fine_tune().build()["spec"])
    assert LoraFineTuneSpec.model_validate(reply.body["spec"]) == expected
    assert reply.body["spec"] == expected.model_dump(mode="json", exclude_none=True)


def test_setting_one_field_keeps_the_defaults_of_the_others(apiserver: ApiServer) -> None:
    document = lora_fine_tune().with_spec("training.checkpoint.keep", 5).build()

    training = apiserver.request("POST", DRY_RUN, submitted(document)).body["spec"]["training"]

    assert training["checkpoint"] == {"everySteps": 100, "keep": 5}
    assert training["optimizer"] == "Auto"


def test_kstatus_does_not_read_a_new_object_as_current(apiserver: ApiServer) -> None:
    reply = apiserver.request("POST", DRY_RUN, submitted(lora_fine_tune().build()))

    assert reply.body["status"] == {"observedGeneration": -1}


def test_an_object_without_spec_is_refused(apiserver: ApiServer) -> None:
    document = submitted(lora_fine_tune().build())
    del document["spec"]

    reply = apiserver.request("POST", DRY_RUN, document)

    assert not reply.accepted
    assert "spec: Required value" in reply.message


def test_a_status_is_read_as_it_was_written(apiserver: ApiServer) -> None:
    scenario = Scenario(lora_fine_tune())
    scenario.finish_all()
    document = submitted(lora_fine_tune().build())
    created = apiserver.request("POST", OBJECTS, document)
    path = f"{OBJECTS}/{document['metadata']['name']}"
    try:
        status = scenario.cluster.document["status"]
        written = apiserver.request("PUT", f"{path}/status?fieldValidation=Strict", created.body | {"status": status})
        assert written.accepted, written.message

        # With a difference, every pass would write the status again.
        assert apiserver.request("GET", path).body["status"] == status
    finally:
        apiserver.request("DELETE", path)


def test_kubectl_get_has_the_columns_of_the_design(apiserver: ApiServer) -> None:
    table = apiserver.request("GET", OBJECTS, accept="application/json;as=Table;g=meta.k8s.io;v=v1").body

    columns = [column["name"] for column in table["columnDefinitions"]]
    assert columns == [
        "Name",
        "Phase",
        "Progress",
        "Base",
        "Tuned",
        "Edge",
        "Adapter",
        "Edge-size",
        "Version",
        "Processes",
        "Note",
        "Age",
    ]

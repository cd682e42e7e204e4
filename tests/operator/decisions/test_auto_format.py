"""Passes over an object with formats Auto: what a changed limit runs again, and what plan says about that."""

from typing import Any

from edgetune_contract.request import Artifact
from edgetune_contract.results.candidates import Candidate
from edgetune_contract.spec import EdgeFormat
from edgetune_contract.stages import Stage
from edgetune_operator.api.profiles.tenants import Tenant
from edgetune_operator.api.spec_check import parse_spec
from edgetune_operator.api.status.edge_model import edge_artifact
from edgetune_operator.decisions.admission import admit
from edgetune_operator.decisions.forecast.passes import forecast
from edgetune_operator.decisions.observe import observe
from support.builders import lora_fine_tune
from support.scenario import POSSIBLE, Scenario

BOTH = tuple(each.format for each in POSSIBLE)
CHOSEN = (
    Candidate(format=EdgeFormat.BITSANDBYTES_INT8, bytes=600, limits=("edge.memory",)),
    Candidate(format=EdgeFormat.GGUF_Q8_0, bytes=500, score=0.9, chosen=True),
)


def finished(limit: str) -> Scenario:
    """An object with formats Auto and a limit on bytes, whose run is published."""
    builder = lora_fine_tune().with_spec("quantization.formats", "Auto")
    scenario = Scenario(builder.with_spec("evaluation.gates.maxEdgeBytes", limit))
    scenario.candidates = CHOSEN
    scenario.finish_all()
    return scenario


def edited(scenario: Scenario, limit: str) -> dict[Stage, str]:
    """Change the limit; by stage, what plan says."""
    before = parse_spec(scenario.cluster.document["spec"])
    scenario.change(scenario.builder.edited("evaluation.gates.maxEdgeBytes", limit))
    document = scenario.cluster.document
    spec = parse_spec(document["spec"])
    snapshot = observe(document, list(scenario.cluster.jobs.values()), list(scenario.cluster.pods.values()), None)
    profile = admit(spec, scenario.profiles, Tenant(snapshot.namespace))
    found = forecast(spec, profile, snapshot, scenario.cluster.now, before=before)
    return {each.stage: f"{each.action} {each.why}" for each in found.stages}


def stages_run(scenario: Scenario) -> list[Stage]:
    """The stages that passes run from now on, of which the store does not have the output."""
    done = set(scenario.manifests)
    scenario.finish_all()
    return [result.stage for digest, result in scenario.manifests.items() if digest not in done]


def status(scenario: Scenario) -> dict[str, Any]:
    found: dict[str, Any] = scenario.cluster.document["status"]
    return found


def test_the_status_has_the_candidates_and_what_prepare_found() -> None:
    found = status(finished("600"))

    assert [(each["format"], each.get("chosen", False)) for each in found["candidates"]] == [
        ("BitsAndBytesInt8", False),
        ("GGUF-Q8_0", True),
    ]
    assert found["resolved"]["formats"] == list(BOTH)
    assert "edgeQuantizedShare" not in found["sizes"]


def test_a_tighter_limit_evaluates_again_and_writes_nothing_again() -> None:
    scenario = finished("600")

    planned = edited(scenario, "550")

    assert planned[Stage.QUANTIZE].startswith("keep done")
    assert planned[Stage.EVALUATE] == "run changed: spec.evaluation.gates.maxEdgeBytes"
    assert stages_run(scenario) == [Stage.EVALUATE, Stage.PUBLISH]
    assert status(scenario)["resolved"]["formats"] == list(BOTH)


def test_a_looser_limit_writes_what_the_tighter_one_excluded() -> None:
    scenario = finished("550")
    assert status(scenario)["resolved"]["formats"] == ["GGUF-Q8_0"]

    planned = edited(scenario, "600")

    assert planned[Stage.TRAIN].startswith("keep done")
    assert planned[Stage.QUANTIZE] == (
        "run changed: spec.evaluation.gates.maxEdgeBytes, which no longer excludes BitsAndBytesInt8"
    )
    assert stages_run(scenario) == [Stage.QUANTIZE, Stage.EVALUATE, Stage.PUBLISH]


def test_a_revert_to_an_earlier_limit_finds_everything_in_the_store() -> None:
    scenario = finished("550")
    edited(scenario, "600")
    scenario.finish_all()

    edited(scenario, "550")

    assert stages_run(scenario) == []
    assert status(scenario)["resolved"]["formats"] == ["GGUF-Q8_0"]


def artifact(edge_format: EdgeFormat) -> Artifact:
    return Artifact(name=edge_format.artifact, uri=f"s3://b/{edge_format.artifact}", bytes=1, sha256="0" * 64)


def test_the_edge_model_is_the_chosen_candidate_or_the_first_format_of_a_list() -> None:
    artifacts = tuple(artifact(each) for each in BOTH)
    scenario = finished("600")
    resolved = scenario.status.resolved
    assert resolved is not None
    listed = resolved.model_copy(update={"formats": None})

    assert edge_artifact(artifacts, CHOSEN, resolved) == artifacts[1]
    assert edge_artifact(artifacts, CHOSEN[:1], resolved) is None
    assert edge_artifact(artifacts, (), resolved) is None
    assert edge_artifact(artifacts, (), listed) == artifacts[0]

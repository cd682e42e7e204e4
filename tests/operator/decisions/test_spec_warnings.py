"""The status has the warnings about settings: those of the spec at once, those about the data after prepare."""

from edgetune_contract.stages import Stage
from support.builders import lora_fine_tune
from support.scenario import Scenario

BUILDER = (
    lora_fine_tune()
    .with_spec("training.scheduler", "constant")
    .with_spec("training.warmupRatio", 0.1)
    .with_spec("training.batchSize", 64)
)


def test_a_setting_that_the_data_shows_to_be_too_large_is_named_after_prepare() -> None:
    scenario = Scenario(BUILDER)

    scenario.reconcile()
    before = scenario.status.warnings
    prepared = scenario.simulated_result(scenario.request)
    scenario.finish(prepared.model_copy(update={"metrics": {**prepared.metrics, "trainExamples": 24.0}}))
    scenario.reconcile()

    assert scenario.row(Stage.PREPARE).metrics["trainExamples"] == 24
    assert [text for text in before if "spec.training" in text] == [
        "spec.training.warmupRatio has no effect with scheduler: constant; use constant_with_warmup"
    ]
    new = [text for text in scenario.status.warnings if text.startswith("spec.training") and text not in before]
    assert [text.split(":")[0] for text in new] == [
        "spec.training.batchSize 64 is more than the 24 training examples",
    ]


def test_a_corrected_setting_is_no_longer_named_although_prepare_has_nothing_to_do() -> None:
    scenario = Scenario(BUILDER)
    scenario.finish_all()

    scenario.change(BUILDER.with_spec("training.scheduler", "linear"))
    scenario.reconcile()

    assert not any("warmupRatio" in text for text in scenario.status.warnings)

"""Only prepare of a hub model may connect to the hub: each process overrides HF_HUB_OFFLINE of its environment."""

from pathlib import Path

import pytest

from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from support.fake_hub import running_hub
from support.local_runs import new_runs
from support.stage_process import BEHAVIOUR, OFFLINE
from support.stage_runs import StageRuns

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "tokenizer.json": b"{}"}
LATER = list(Stage)[1:]


def offline(runs: StageRuns, stage: Stage, before: str) -> str:
    """HF_HUB_OFFLINE inside a stage's body whose process was started with the value `before`."""
    ended = runs.run(stage, **{BEHAVIOUR: "reports_offline", OFFLINE: before})
    assert ended.exit_code == 0, ended.stderr
    return ended.result.facts[OFFLINE]


def test_prepare_of_a_base_from_the_hub_is_online_and_every_other_stage_is_not(tmp_path: Path) -> None:
    runs = new_runs(tmp_path)
    base = {"uri": "hf://acme/tiny", "revision": COMMIT}
    spec = runs.parameters.model_dump(mode="json", exclude_none=True) | {"baseModel": base}
    runs.parameters = Parameters.model_validate(spec)

    with running_hub("acme/tiny", COMMIT, FILES) as hub:
        # The hub's client raises warnings; pytest's filter for them does not apply to the process.
        runs.environment |= {"HF_ENDPOINT": hub.endpoint, "PYTHONWARNINGS": "default"}

        assert offline(runs, Stage.PREPARE, before="1") == "0"
        assert {stage: offline(runs, stage, before="0") for stage in LATER} == dict.fromkeys(LATER, "1")


@pytest.mark.parametrize("before", ["0", "1"])
def test_prepare_of_another_base_is_offline(tmp_path: Path, before: str) -> None:
    assert offline(new_runs(tmp_path), Stage.PREPARE, before) == "1"

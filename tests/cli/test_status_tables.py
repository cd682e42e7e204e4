"""The tables at the end of a run."""

import io

import pytest

from edgetune_cli.output import SafeConsole
from edgetune_cli.status_tables import show_outcome
from edgetune_contract.stages import Stage
from edgetune_operator.api.status.object_status import LoraFineTuneStatus


@pytest.mark.parametrize("metrics", [{"trainRows": 30, "trainExamples": 60}, {"trainExamples": 30}])
def test_a_conversation_of_several_examples_is_counted_as_one_row(metrics: dict[str, float]) -> None:
    row = {"name": "prepare", "state": "Succeeded", "metrics": {**metrics, "evalExamples": 3}}
    status = LoraFineTuneStatus.model_validate({"stages": [row]})
    printed = io.StringIO()

    show_outcome(SafeConsole(file=printed, width=120), status, frozenset({Stage.PREPARE}))

    assert "30 training rows, 3 evaluation rows" in printed.getvalue()

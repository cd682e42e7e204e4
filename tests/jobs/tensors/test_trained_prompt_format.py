"""What all conversations share reaches the merged and the edge models."""

from pathlib import Path

from edgetune_contract.pipeline import ADAPTER, MERGED
from edgetune_contract.stages import Stage
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.tensors.streamed_model import trained_prompt_format
from support.stage_context import stage_context
from support.tiny_runs import tiny_parameters

PARAMETERS = tiny_parameters(dataset={"format": "Chat"})
TOOL = {"type": "function", "function": {"name": "level", "parameters": {}}}
SHARED = PromptFormat.of(PARAMETERS.dataset).model_copy(update={"system": "You know tanks.", "tools": (TOOL,)})


def test_merge_and_quantize_pass_on_what_train_wrote(tmp_path: Path) -> None:
    for number, name in enumerate((ADAPTER, MERGED)):
        folder = tmp_path / name
        folder.mkdir()
        context = stage_context(Stage.QUANTIZE, PARAMETERS, tmp_path / str(number), {name: folder})

        assert trained_prompt_format(context) == PromptFormat.of(PARAMETERS.dataset)
        SHARED.write(folder)
        assert trained_prompt_format(context) == SHARED

"""The cases of /work/shared/cases: what was silently lost or undone is used, refused, or named."""

from pathlib import Path

import pytest

from edgetune_contract.stages import Stage
from support.cases import SMALL, Case, make_base


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama."""
    return make_base(tmp_path_factory.mktemp("llama") / "base", "llama", SMALL)


def test_05_a_training_of_one_step_learns(tmp_path: Path, llama: Path) -> None:
    from safetensors.torch import load_file

    training = {"maxSteps": None, "epochs": 1, "batchSize": 32, "microBatchSize": 32, "learningRate": 0.01}
    case = Case(tmp_path, llama, sections={"training": training})

    trained = case.run_up_to(Stage.TRAIN)[Stage.TRAIN]

    weights = load_file(case.artifact("adapter") / "adapter_model.safetensors")
    assert trained.metrics["steps"] == 1
    assert all(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)


def test_06_columns_of_the_template_are_filled_in_and_the_others_named(tmp_path: Path, llama: Path) -> None:
    rows = [{"instruction": "Shorten.", "input": f"pump {i}", "output": f"result {i}", "id": i} for i in range(12)]
    template = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    dataset = {"fields": {"response": "output"}, "template": template}
    case = Case(tmp_path, llama, rows, {"dataset": dataset})

    prepared = case.run(Stage.PREPARE)

    wholes = {whole for whole, _ in case.prepared_texts()}
    assert len(wholes) == 11
    assert wholes < {
        f"### Instruction:\nShorten.\n\n### Input:\npump {i}\n\n### Response:\nresult {i}<|im_end|>" for i in range(12)
    }
    assert any(warning.startswith("1 column is not used: 'id' (12 rows)") for warning in prepared.warnings)


_TOOL = {"type": "function", "function": {"name": "level", "parameters": {}}}
_CALL = {"id": "a", "type": "function", "function": {"name": "level", "arguments": "{}"}}
_CONVERSATIONS = [
    {
        "tools": [_TOOL],
        "messages": [
            {"role": "user", "content": f"Open valve {i}"},
            {"role": "assistant", "content": f"WRONG {i}", "weight": 0},
            {"role": "user", "content": "again"},
            {"role": "assistant", "reasoning_content": "think", "content": "I look it up.", "tool_calls": [_CALL]},
        ],
    }
    for i in range(12)
]
_TOOLS_TEMPLATE = (
    "{% if tools %}TOOLS {{ tools | tojson }}\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<call>{{ call.function.name }} {{ call.function.arguments | tojson }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("uses_tools", [False, True])
def test_07_everything_that_is_said_is_learned_or_the_row_refused(
    tmp_path: Path, llama: Path, uses_tools: bool
) -> None:
    base = make_base(tmp_path / "base", "llama", SMALL, chat_template=_TOOLS_TEMPLATE) if uses_tools else llama
    case = Case(tmp_path, base, _CONVERSATIONS, {"dataset": {"format": "Chat"}})

    if not uses_tools:
        assert "train.jsonl lines 1, 2" in (refusal := case.refusal(Stage.PREPARE))
        assert "the base model's chat template does not use tools" in refusal
        return
    case.run(Stage.PREPARE)
    assert {learned for _, learned in case.prepared_texts()} == {
        "<think>think</think>I look it up.<call>level {}<|im_end|>"
    }
    assert all(whole.startswith('TOOLS [{"type": "function"') for whole, _ in case.prepared_texts())

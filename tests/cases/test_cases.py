"""Reported cases, by their numbers: what was silently lost or undone is used, refused, or named."""

from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.stages import Stage
from support.cases import SMALL, Case, make_base


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Llama."""
    return make_base(tmp_path_factory.mktemp("llama") / "base", "llama", SMALL)


def test_01_falcons_own_linear_layers_are_refused_for_a_format_that_would_convert_none(tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False}
    case = Case(tmp_path, make_base(tmp_path / "base", "falcon", sizes))

    assert "BitsAndBytesInt8" in case.refusal(Stage.PREPARE)


def test_02_experts_are_quantized_in_training_and_named_with_their_share_in_the_edge_model(tmp_path: Path) -> None:
    sizes = {**SMALL, "num_local_experts": 4, "num_experts_per_tok": 2}
    case = Case(tmp_path, make_base(tmp_path / "base", "mixtral", sizes), sections={"training": {"maxSteps": 2}})

    done = case.run_up_to(Stage.QUANTIZE)

    assert done[Stage.TRAIN].metrics["quantizedShare"] > 0.8
    share = done[Stage.QUANTIZE].metrics["quantizedShare"]
    assert share < 0.3
    assert any(f"{share:.0%}" in text for text in done[Stage.QUANTIZE].warnings)


def test_05_a_training_of_one_step_learns(tmp_path: Path, llama: Path) -> None:
    from safetensors.torch import load_file

    training = {"maxSteps": None, "epochs": 1, "batchSize": 32, "microBatchSize": 32, "learningRate": 0.01}
    case = Case(tmp_path, llama, sections={"training": training})

    trained = case.run_up_to(Stage.TRAIN)[Stage.TRAIN]

    weights = load_file(case.artifact("adapter") / "adapter_model.safetensors")
    assert trained.metrics["steps"] == 1
    assert all(weight.abs().max() > 0 for name, weight in weights.items() if "lora_B" in name)


def test_06_alpacas_input_is_in_the_prompt(tmp_path: Path, llama: Path) -> None:
    verbs = ("Translate into German", "Shorten", "Write in capitals")
    rows = [
        {"instruction": f"{verb} (job {i}).", "input": f"pump number {i}", "output": f"result {i}"}
        for i in range(4)
        for verb in verbs
    ]
    template = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
    case = Case(tmp_path, llama, rows, {"dataset": {"fields": {"response": "output"}, "template": template}})

    case.run(Stage.PREPARE)

    for text, learned in case.prepared_texts():
        assert "### Input:\npump number " in text
        assert learned.startswith("result ")


CHAT_ROWS: list[dict[str, Any]] = [
    {
        "tools": [{"type": "function", "function": {"name": "level", "parameters": {}}}],
        "messages": [
            {"role": "user", "content": f"Open valve {i}"},
            {"role": "assistant", "content": f"WRONG {i}", "weight": 0},
            {"role": "user", "content": "again"},
            {"role": "assistant", "content": "First answer."},
            {"role": "user", "content": "and then?"},
            {
                "role": "assistant",
                "reasoning_content": "thinking",
                "content": "I look it up.",
                "tool_calls": [{"id": "a", "type": "function", "function": {"name": "level", "arguments": "{}"}}],
            },
        ],
    }
    for i in range(12)
]
TEMPLATE_OF_ALL_FIELDS = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}({{ message.reasoning_content }}) {% endif %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %} CALL {{ call.function.name }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_07_chat_rows_are_used_with_every_field_and_every_answer_is_learned(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama", SMALL, chat_template=TEMPLATE_OF_ALL_FIELDS)
    case = Case(tmp_path, base, CHAT_ROWS, {"dataset": {"format": "Chat"}})

    case.run(Stage.PREPARE)

    learned = "\n".join(learned for _, learned in case.prepared_texts())
    assert all("level" in text.split("<|im_start|>user")[0] for text, _ in case.prepared_texts())
    assert "First answer." in learned
    assert "(thinking) I look it up. CALL level" in learned
    assert "WRONG" not in learned


def test_07_fields_that_the_chat_template_does_not_use_are_refused_by_line(tmp_path: Path, llama: Path) -> None:
    case = Case(tmp_path, llama, CHAT_ROWS, {"dataset": {"format": "Chat"}})

    message = case.refusal(Stage.PREPARE)

    assert "train.jsonl line" in message
    assert "the base model's chat template does not use tools" in message


def test_03_answers_end_at_the_last_learned_position_which_is_said(tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "word_embed_proj_dim": 128, "ffn_dim": 192, "num_hidden_layers": 2}
    base = make_base(tmp_path / "base", "opt", {**sizes, "num_attention_heads": 4, "max_position_embeddings": 64})
    sections = {"training": {"maxSteps": 1, "maxLength": 64}, "evaluation": {"maxNewTokens": 40, "edge": {}}}
    case = Case(tmp_path, base, sections=sections)

    done = case.run_up_to(Stage.EVALUATE)

    assert done[Stage.EVALUATE].scores is not None
    edge = done[Stage.EVALUATE].edge
    assert edge is not None
    assert edge.prompt_tokens + edge.new_tokens <= 64
    warnings = [text for output in done.values() for text in output.warnings]
    assert any("spec.evaluation.maxNewTokens" in text and "64 learned positions" in text for text in warnings)


def test_04_all_linear_layers_of_a_mamba_type_are_refused_in_prepare_with_the_librarys_reason(tmp_path: Path) -> None:
    mamba = {"mamba_d_ssm": 128, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16}
    case = Case(tmp_path, make_base(tmp_path / "base", "falcon_h1", {**SMALL, **mamba}))

    message = case.refusal(Stage.PREPARE)

    assert "spec.lora.targetModules" in message
    assert "out_proj" in message


def test_08_a_gguf_file_that_llama_cpp_does_not_load_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "qwen3", {**SMALL, "head_dim": 64, "attention_bias": True})
    case = Case(tmp_path, base, sections={"quantization": {"formats": ["GGUF-Q8_0"]}})

    message = case.refusal(Stage.PREPARE)

    assert "GGUF-Q8_0" in message
    assert "bias" in message

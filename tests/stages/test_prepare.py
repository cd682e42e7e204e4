"""prepare, from sources to the prepared data and its report."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.request import Resolved, Result
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import Interrupted, InvalidInput
from edgetune_jobs.stages import prepare
from edgetune_operator.decisions.manifests.stage_needs import ModelShape
from support.base_folder import llama_shapes, write_safetensors
from support.data_rows import instruction_rows
from support.edge_models import make_kind
from support.tiny_tokenizer import make_tokenizer
from support.workplace import Workplace, make_workplace


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return make_workplace(tmp_path)


def table(folder: Path, name: str) -> list[dict[str, Any]]:
    from pyarrow import parquet

    return list(parquet.read_table(folder / name).to_pylist())


def test_rows_are_tokenized_in_the_documented_format(workplace: Workplace) -> None:
    from pyarrow import parquet
    from transformers import AutoTokenizer

    _, folder = workplace.run(dataset=workplace.write("eval.jsonl", instruction_rows(20, begin=500)))
    assert sorted(path.name for path in folder.iterdir()) == [
        "edgetune.json",
        "eval.parquet",
        "report.json",
        "train.parquet",
    ]
    types = {
        field.name: str(field.type)
        for name in ("train", "eval")
        for field in parquet.read_schema(folder / f"{name}.parquet")
    }
    assert types == {
        "input_ids": "list<element: int32>",
        "completion_mask": "list<element: int8>",
        "prompt": "string",
        "prompt_ids": "list<element: int32>",
        "completion_ids": "list<element: int32>",
        "response": "string",
        "keywords": "list<element: string>",
    }
    tokenizer = AutoTokenizer.from_pretrained(workplace.folder / "base")
    train, evaluation = table(folder, "train.parquet"), table(folder, "eval.parquet")
    assert (len(train), len(evaluation)) == (300, 20)
    assert tokenizer.decode(train[7]["input_ids"]) == (
        "### Instruction:\nPump P-07 reports strong vibration. Name the fault.\n\n### Response:\n"
        "Fault: bearing wear 7.<|im_end|>"
    )
    assert evaluation[0]["response"] == "Fault: bearing wear 500."
    assert evaluation[0]["keywords"] == ["bearing wear 500"]
    assert tokenizer.decode(evaluation[0]["prompt_ids"]) == evaluation[0]["prompt"]
    assert tokenizer.decode(evaluation[0]["completion_ids"]) == "Fault: bearing wear 500.<|im_end|>"


def test_figures_warnings_and_digests_are_reported(workplace: Workplace) -> None:
    context = workplace.context(lora={"rank": 4, "targetModules": "Minimal"}, dataset={"evalSplitPercent": 10})
    output = prepare.run(context)
    metrics = output.metrics
    assert (metrics["trainExamples"], metrics["evalExamples"], metrics["truncatedShare"]) == (270, 30, 0)
    assert metrics["expectedTrainableParameters"] == 4 * 2 * (16 + 12)
    assert metrics["baseParameters"] == 400 * 8 + 8 + 2 * (8 + 64 + 32 + 32 + 64 + 3 * 128)
    assert (metrics["largestTensorBytes"], metrics["largestLinearBytes"]) == (400 * 8 * 2, 16 * 8 * 2)
    assert (metrics["cacheBytesPerToken"], metrics["vocabulary"]) == (2 * 2 * 4 * 2, 400)
    # Its rows are shorter than the blocks of NF4.
    assert metrics["streamed"] is False
    assert ModelShape.of(metrics) is not None
    assert metrics["tokensP50"] <= metrics["tokensP90"] <= metrics["tokensP99"] <= metrics["tokensMax"] < 256
    assert metrics["estimatedTrainingBytes"] > metrics["baseParameters"]
    assert list(output.warnings) == ["270 training examples: style adaptation usually needs 500 to 1,000"]
    report = json.loads((context.output / "prepared" / "report.json").read_text())
    assert report["split"] == {"percent": 10, "seed": 42}
    assert sum(bucket["examples"] for bucket in report["train"]["histogram"]) == 270
    assert report["estimatedTrainingBytes"]["total"] == metrics["estimatedTrainingBytes"]
    Result(
        stage=Stage.PREPARE,
        digest="0" * 64,
        metrics=dict(metrics),
        facts=dict(output.facts),
        warnings=tuple(output.warnings),
        resolved=Resolved(base=context.sources["base"].digest, train=context.sources["train"].digest),
    ).encode()


def test_the_same_content_gives_the_same_bytes_at_any_location(workplace: Workplace) -> None:
    _, first = workplace.run()
    (workplace.folder / "train.jsonl").rename(workplace.folder / "elsewhere.jsonl")
    _, second = workplace.run(dataset={"train": {"uri": f"file://{workplace.folder}/elsewhere.jsonl"}})
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_another_seed_holds_out_other_rows(workplace: Workplace) -> None:
    _, first = workplace.run()
    _, second = workplace.run(training={"seed": 7})
    held_out = [{row["response"] for row in table(folder, "eval.parquet")} for folder in (first, second)]
    assert len(held_out[0]) == len(held_out[1]) == 30
    assert held_out[0] != held_out[1]


@pytest.mark.parametrize("row_format", ["Chat", "Text", "ChatTemplate"])
def test_every_format_is_prepared(workplace: Workplace, row_format: str) -> None:
    if row_format == "ChatTemplate":
        dataset: dict[str, Any] = {"template": "ChatTemplate"}
    elif row_format == "Chat":
        turns = [
            [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": "answer"}]
            for number in range(30)
        ]
        dataset = {"format": "Chat", **workplace.write("train.jsonl", [{"messages": messages} for messages in turns])}
    else:
        rows: list[dict[str, object]] = [{"text": f"log line {number}"} for number in range(30)]
        dataset = {"format": "Text", **workplace.write("train.jsonl", rows)}
    _, folder = workplace.run(dataset=dataset)
    train, evaluation = table(folder, "train.parquet"), table(folder, "eval.parquet")
    if row_format == "Text":
        assert all(set(row["completion_mask"]) == {1} for row in train)
        assert all((row["prompt"], row["prompt_ids"]) == ("", []) for row in evaluation)
    else:
        assert all(set(row["completion_mask"]) == {0, 1} for row in train)
        assert all(row["prompt"].endswith("<|im_start|>assistant\n") for row in evaluation)


def test_columns_of_the_template_are_in_the_prompts_and_the_others_are_named(workplace: Workplace) -> None:
    rows: list[dict[str, object]] = [
        {"instruction": "Translate.", "input": f"pump {number}", "output": f"Pumpe {number}", "id": number}
        for number in range(30)
    ]
    spec = {"fields": {"response": "output"}, "template": "{instruction}\n{input}\n"}

    output, folder = workplace.run(dataset={**spec, **workplace.write("train.jsonl", rows)})

    prompts = {row["prompt"] for row in table(folder, "eval.parquet")}
    assert len(prompts) == 3
    assert all(prompt.startswith("Translate.\npump ") for prompt in prompts)
    assert any(warning.startswith("1 column is not used: 'id' (30 rows)") for warning in output.warnings)


def test_what_conversations_share_and_what_is_repeated_is_in_the_output(workplace: Workplace) -> None:
    rows: list[dict[str, object]] = [
        {
            "messages": [
                {"role": "system", "content": "You know pumps."},
                *({"role": role, "content": f"{role} {number}", "name": "n"} for role in ("user", "assistant") * 2),
            ]
        }
        for number in range(30)
    ]
    tokenizer = make_tokenizer(chat_template="{% for m in messages %}[{{ m.content }}]{% endfor %}{{ eos_token }}")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ eos_token }}", "{% if add_generation_prompt %}[{% else %}{{ eos_token }}{% endif %}"
    )
    tokenizer.save_pretrained(workplace.folder / "base")

    output, folder = workplace.run(dataset={"format": "Chat", **workplace.write("train.jsonl", rows)})

    assert json.loads((folder / "edgetune.json").read_text())["system"] == "You know pumps."
    assert (len(table(folder, "train.parquet")), len(table(folder, "eval.parquet"))) == (54, 3)
    assert any(warning.startswith("27 training rows are 54 training examples: ") for warning in output.warnings)
    assert "the base model's chat template does not use these fields of messages: 'name'" in " ".join(output.warnings)


def test_all_invalid_rows_are_listed_in_one_message(workplace: Workplace) -> None:
    good = instruction_rows(3)
    workplace.write("train.jsonl", [*good, {"instruction": "x"}, {"instruction": "y " * 400, "response": "z"}])
    evaluation = workplace.write("eval.jsonl", [*instruction_rows(1, 9), {"instruction": 5, "response": "b"}])
    assert workplace.refusal(dataset=evaluation).split("\n") == [
        "the data has 3 invalid rows or files; fix or remove them:",
        "spec.dataset.train: train.jsonl line 4: missing field 'response' (found: 'instruction'); "
        "set spec.dataset.fields.response to the name of the field",
        "spec.dataset.eval: eval.jsonl line 2: 'instruction' is a number, not a string",
        "spec.dataset.train: train.jsonl line 5: the prompt has 810 tokens and spec.training.maxLength is 256, "
        "which leaves no tokens for the response; raise maxLength or shorten the prompt",
    ]


def test_rows_that_are_too_long_are_truncated_and_their_share_is_reported(workplace: Workplace) -> None:
    long: dict[str, object] = {"instruction": "x", "response": "bearing wear " * 300}
    workplace.write("train.jsonl", [*instruction_rows(9), long])
    output, folder = workplace.run(dataset=workplace.write("eval.jsonl", instruction_rows(2, begin=90)))
    assert max(len(row["input_ids"]) for row in table(folder, "train.parquet")) == 256
    assert output.metrics["truncatedShare"] == 0.1
    assert any(
        warning.startswith("1 of 10 training examples (10.0%) exceed spec.training.maxLength 256 and are truncated")
        for warning in output.warnings
    )


def test_prompts_longer_than_the_limit_are_refused(workplace: Workplace) -> None:
    assert "spec.training.maxLength is 16, which leaves no tokens for the response" in workplace.refusal(
        training={"maxLength": 16}
    )


def test_a_token_that_template_and_tokenizer_both_add_is_used_once_and_said_once(workplace: Workplace) -> None:
    make_tokenizer(adds_bos=True).save_pretrained(workplace.folder / "base")

    output, folder = workplace.run(dataset={"template": "<s>{instruction}\n"})

    tokens = [row["input_ids"][:2] for row in table(folder, "train.parquet")]
    bos = tokens[0][0]
    assert all(first == bos != second for first, second in tokens)
    assert [warning for warning in output.warnings if "BOS" in warning] == [
        "300 examples begin with the same token (BOS) from two places, the template or the row and the tokenizer: it "
        "is used once, in training, evaluation and inference"
    ]


def test_the_licence_of_the_base_is_a_fact_and_a_missing_one_a_warning(workplace: Workplace) -> None:
    known, _ = workplace.run()
    (workplace.folder / "base" / "LICENSE").unlink()
    unknown, _ = workplace.run()

    assert (known.facts["license"], known.facts["licenseFile"]) == ("apache-2.0", "LICENSE")
    assert unknown.facts["license"] == "unknown"
    (warning,) = set(unknown.warnings) - set(known.warnings)
    assert warning.startswith(f"spec.baseModel: file://{workplace.folder}/base has no licence file")


def test_leaked_and_duplicate_rows_are_warnings(workplace: Workplace) -> None:
    workplace.write("train.jsonl", [*instruction_rows(20), *instruction_rows(2)])
    output, _ = workplace.run(dataset=workplace.write("eval.jsonl", instruction_rows(5)))
    assert (
        "spec.dataset.train: 2 rows duplicate an earlier row (first: train.jsonl line 21 duplicates train.jsonl line 1)"
        in output.warnings
    )
    assert any(
        warning.startswith("5 of 5 evaluation rows also occur in the training data") for warning in output.warnings
    )


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"type": "Nonsense"}}')


def _nonsense_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = [["there", "is no such token"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _set_vocabulary(folder: Path, rows: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    write_safetensors(folder / "model.safetensors", llama_shapes() | {"model.embed_tokens.weight": (rows, 8)})


def _other_weights(folder: Path) -> None:
    _set_vocabulary(folder, 100)


def _short_context(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 20}))


def _odd_configuration(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 3}))


def _unknown_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "nobody-knows"}))


def _no_queries(folder: Path) -> None:
    shapes = {name: shape for name, shape in llama_shapes().items() if "q_proj" not in name}
    write_safetensors(folder / "model.safetensors", shapes)


def _pad_token_without_row(folder: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<|new|>"})
    tokenizer.save_pretrained(folder)
    _set_vocabulary(folder, len(tokenizer) - 1)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            _pad_token_without_row,
            "(<|new|>), but its embedding has 343 rows: set pad_token in tokenizer_config.json to",
        ),
        (_no_tokenizer, "cannot load the tokenizer"),
        (_nonsense_tokenizer, "spec.baseModel: loading its tokenizer fails: "),
        (_odd_configuration, "The hidden size (8) is not a multiple of the number of attention heads (3)"),
        (_unknown_model, "`nobody-knows`"),
        (_other_weights, "but its embedding has 100 rows: tokenizer and weights belong to different models"),
        (_short_context, "but the base model supports at most 20: set maxLength to 20 or less"),
        (_no_queries, "spec.lora.targetModules: the base model (LlamaForCausalLM) has no linear layer 'q_proj'"),
    ],
)
def test_an_unusable_base_is_refused(workplace: Workplace, damage: Callable[[Path], None], reason: str) -> None:
    damage(workplace.folder / "base")
    assert reason in workplace.refusal()


def test_progress_counts_all_rows(workplace: Workplace) -> None:
    workplace.run()
    assert workplace.progress.updates[-1] == {"done": 300, "total": 300, "unit": "rows"}
    trying = "importing the libraries and trying the base model"
    assert workplace.progress.said == ["inspecting the base model", "reading the data", trying, "tokenizing"]


@pytest.mark.parametrize("moment", ["reading the data", "tokenizing"])
def test_a_stop_ends_the_stage_and_leaves_nothing(workplace: Workplace, moment: str) -> None:
    workplace.write("train.jsonl", instruction_rows(600))
    if moment == "reading the data":
        workplace.stop.set()
    workplace.progress.on_update = lambda _: workplace.stop.set()
    context = workplace.context()
    with pytest.raises(Interrupted, match=f"stopped .*while {moment}"):
        prepare.run(context)
    assert list(context.output.iterdir()) == []
    assert len(workplace.progress.updates) == (0 if moment == "reading the data" else 1)


def test_fields_outside_of_the_digest_are_checked_again_on_prepared_data(workplace: Workplace) -> None:
    prepared, _ = workplace.run(lora={"rank": 4, "targetModules": "Minimal"}, training={"maxLength": 64})
    fresh, _ = workplace.run(lora={"rank": 8, "targetModules": "AllLinear"}, training={"maxLength": 64})

    found = prepare.recheck(
        workplace.context(lora={"rank": 8, "targetModules": "AllLinear"}, training={"maxLength": 64}), prepared.metrics
    )

    assert {"expectedTrainableParameters", "estimatedTrainingBytes", "largestTensorBytes"} < set(found.metrics)
    assert {**prepared.metrics, **found.metrics} == fresh.metrics
    assert {**prepared.facts, **found.facts} == fresh.facts


def test_the_micro_batch_that_fits_is_reported_by_gpu_memory(workplace: Workplace) -> None:
    output, folder = workplace.run()

    fits = json.loads((folder / "report.json").read_text())["gpus"]
    assert output.facts["microBatchSizes"] == "16 from 16 GiB"
    assert output.facts["activations"] == "measured"
    assert [fit["gpuBytes"] // 2**30 for fit in fits] == [16, 24, 40, 48, 80, 141]
    assert {(fit["fits"], fit["largestMicroBatchSize"]) for fit in fits} == {(True, 16)}


def test_the_largest_base_is_reported_for_the_gpu_of_the_profile(workplace: Workplace) -> None:
    prepared, _ = workplace.run()

    found = prepare.recheck(replace(workplace.context(), gpu_bytes=40 * 2**30), prepared.metrics)

    assert "largestBase" not in prepared.facts
    assert re.fullmatch(r"about [\d.e+]+ billion parameters in NF4 fit 40 GiB", found.facts["largestBase"]), found.facts


def test_an_estimate_by_a_bound_is_named_and_refuses_nothing(tmp_path: Path) -> None:
    """In float32, the experts of a mixture cannot be measured."""
    workplace = make_workplace(tmp_path)
    make_kind(workplace.folder / "base", "qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
    training = {"precision": "FP32"}

    output = prepare.run(replace(workplace.context(training=training), gpu_bytes=1))
    rechecked = prepare.recheck(workplace.context(training=training), output.metrics)

    assert output.facts["activations"].startswith("an upper bound, because they could not be measured: Expected inputs")
    assert rechecked.facts["activations"] == output.facts["activations"]
    assert [each for each in output.warnings if "activations of Qwen3MoeForCausalLM could not be measured" in each]


def test_a_training_that_cannot_fit_into_a_known_gpu_is_refused(workplace: Workplace) -> None:
    prepared, _ = workplace.run()
    context = replace(workplace.context(), gpu_bytes=500 * 2**20)

    with pytest.raises(
        InvalidInput, match=r"the GPU has 0\.5 GiB \(gpuMemory in the profile\): use a profile whose GPU"
    ):
        prepare.run(context)
    with pytest.raises(InvalidInput, match=r"spec\.training needs at least 0\.5 GiB of GPU memory"):
        prepare.recheck(replace(workplace.context(), gpu_bytes=500 * 2**20), prepared.metrics)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"lora": {"targetModules": ["gone_proj"]}}, r"spec\.lora\.targetModules: .* has no linear layer 'gone_proj'"),
    ],
)
def test_prepared_data_are_refused_if_the_base_cannot_be_trained_with_other_fields(
    workplace: Workplace, spec: dict[str, Any], reason: str
) -> None:
    config = workplace.folder / "base" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 255}))
    prepared, _ = workplace.run()

    with pytest.raises(InvalidInput, match=reason):
        prepare.recheck(workplace.context(**spec), prepared.metrics)

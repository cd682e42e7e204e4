"""train, merge, quantize and evaluate in sequence, on a tiny model that learns the task."""

import json
import math
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from edgetune_contract.request import ModelScores, Scores
from edgetune_contract.spec import MergeBase, Parameters
from edgetune_contract.stages import Stage
from edgetune_contract.version import EdgeModel, StoredArtifact
from edgetune_jobs.errors import Interrupted
from edgetune_jobs.evaluation.text_generation import stream_answer
from edgetune_jobs.models import loading
from edgetune_jobs.models.quantization.coverage import int8_linears
from edgetune_jobs.models.tuned_model import load_tuned, merge_adapter
from edgetune_jobs.publishing.model_card.running import ways_to_run
from edgetune_jobs.stage import StageOutput
from edgetune_jobs.stages import evaluate, merge, quantize
from support.answers import answer
from support.llama_cpp import run_llama_cpp
from support.ollama import read_modelfile
from support.stage_context import RecordedProgress, stage_context
from support.tiny_runs import TrainingRun, tiny_parameters, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("two_threads")]

CPU = torch.device("cpu")
QUESTION = "Sensor log: turbine 91, dock, low flow, value 3.1. Diagnose."
ANSWER = "Fault: clogged filter. Action: clean filter."
EDGE_KEY = f"stages/quantize/{'0' * 64}/0/edge-bnb-int8"


@dataclass(frozen=True)
class Chain:
    """Artifacts and outputs of all stages."""

    parameters: Parameters
    base: Path
    prepared: Path
    training: TrainingRun
    merged: Path
    merge_output: StageOutput
    edge: Path
    quantize_output: StageOutput
    evaluation: Path
    evaluate_output: StageOutput

    @property
    def adapter(self) -> Path:
        return self.training.adapter

    @property
    def inputs(self) -> dict[str, Path]:
        """Inputs of evaluate."""
        return {
            "base": self.base,
            "prepared": self.prepared,
            "adapter": self.adapter,
            "merged": self.merged,
            "edge-bnb-int8": self.edge,
        }

    @property
    def scores(self) -> Scores:
        assert self.evaluate_output.scores is not None
        return self.evaluate_output.scores


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, many_rows: Path) -> Chain:
    folder = tmp_path_factory.mktemp("chain")
    parameters = tiny_parameters(
        training={
            "maxSteps": 200,
            "batchSize": 16,
            "microBatchSize": 16,
            "warmupRatio": 0.05,
            "precision": "Auto",
            "maxLength": 256,
        }
    )
    training = train(folder / "train", parameters, tiny_base, many_rows)
    merging_context = stage_context(
        Stage.MERGE, parameters, folder / "merge", {"base": tiny_base, "adapter": training.adapter}
    )
    merge_output = merge.run(merging_context)
    merged = merging_context.output / "merged"
    quantizing_context = stage_context(Stage.QUANTIZE, parameters, folder / "quantize", {"merged": merged})
    quantize_output = quantize.run(quantizing_context)
    edge = quantizing_context.output / "edge-bnb-int8"
    inputs = {
        "base": tiny_base,
        "prepared": many_rows,
        "adapter": training.adapter,
        "merged": merged,
        "edge-bnb-int8": edge,
    }
    evaluating_context = stage_context(Stage.EVALUATE, parameters, folder / "evaluate", inputs)
    evaluate_output = evaluate.run(evaluating_context)
    return Chain(
        parameters=parameters,
        base=tiny_base,
        prepared=many_rows,
        training=training,
        merged=merged,
        merge_output=merge_output,
        edge=edge,
        quantize_output=quantize_output,
        evaluation=evaluating_context.output,
        evaluate_output=evaluate_output,
    )


def _logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.tensor([[5, 99, 300, 41, 7, 650, 12, 4]])
    with torch.inference_mode():
        return model(input_ids=ids).logits.float()


def test_the_edge_model_has_learned_the_task(chain: Chain) -> None:
    scores = chain.scores
    assert scores.base is not None
    assert scores.tuned is not None
    assert scores.merged is not None
    assert scores.edge is not None

    assert scores.base < 0.20
    assert scores.tuned > 0.85
    assert scores.merged >= scores.tuned - 0.02
    assert scores.edge >= scores.tuned - 0.02
    assert scores.improvement == pytest.approx(scores.tuned - scores.base)
    assert scores.drop == pytest.approx(scores.tuned - scores.edge)
    assert scores.examples == 64
    assert set(scores.details) == {"base", "tuned", "merged", "edge"}


def test_the_loss_of_each_model_is_reported_and_training_lowers_it(chain: Chain) -> None:
    losses = {name: scores.loss for name, scores in chain.scores.details.items()}
    assert all(loss is not None and math.isfinite(loss) for loss in losses.values())

    assert losses["tuned"] < 0.2 * losses["base"]  # type: ignore[operator]
    assert losses["merged"] == pytest.approx(losses["tuned"], abs=0.02)
    assert losses["edge"] == pytest.approx(losses["tuned"], abs=0.05)


def test_the_merged_model_computes_the_same_as_the_tuned_model(chain: Chain) -> None:
    merged = _logits(loading.load_stored(chain.merged, CPU))
    tuned = _logits(load_tuned(chain.base, chain.adapter, MergeBase.AS_TRAINED, CPU))
    original = _logits(merge_adapter(chain.base, chain.adapter, MergeBase.ORIGINAL, CPU))

    from_tuned, from_original = (merged - tuned).abs().mean(), (merged - original).abs().mean()
    assert from_tuned < 0.1 * from_original, "a merge into the base without NF4 differs much more"


def test_rounding_the_base_to_nf4_gives_the_exact_values_that_qlora_dequantizes(chain: Chain) -> None:
    from bitsandbytes.functional import dequantize_4bit

    packed = dict(loading.load_quantized_base(chain.base, torch.bfloat16, CPU).named_modules())
    plain = loading.load_base(chain.base, torch.bfloat16, CPU)

    count = loading.round_to_nf4(plain)

    layers = list(int8_linears(plain))
    assert count == len(layers) == 14
    for name, layer in layers:
        weight = packed[name].weight
        assert torch.equal(layer.weight, dequantize_4bit(weight.data, weight.quant_state)), name


def test_the_edge_model_has_the_same_bytes_with_and_without_a_stored_merged_model(chain: Chain, tmp_path: Path) -> None:
    context = stage_context(Stage.QUANTIZE, chain.parameters, tmp_path, {"base": chain.base, "adapter": chain.adapter})
    quantize.run(context)

    on_the_fly = context.output / "edge-bnb-int8"
    names = sorted(path.name for path in chain.edge.iterdir())
    assert names == sorted(path.name for path in on_the_fly.iterdir())
    assert all((chain.edge / name).read_bytes() == (on_the_fly / name).read_bytes() for name in names)


def test_the_edge_model_loads_without_edgetune_and_in_int8(chain: Chain) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    first, second = (AutoModelForCausalLM.from_pretrained(chain.edge) for _ in range(2))
    weights = load_file(chain.edge / "model.safetensors")

    assert torch.equal(_logits(first), _logits(second))
    quantized = [name for name, weight in weights.items() if weight.dtype is torch.int8]
    assert len(quantized) == chain.quantize_output.metrics["quantizedLayers"] == 14
    assert AutoTokenizer.from_pretrained(chain.edge)("pump")["input_ids"]
    assert first.config.quantization_config.llm_int8_threshold == 6.0


def test_quantizing_changes_each_weight_by_at_most_half_a_step(chain: Chain) -> None:
    from safetensors.torch import load_file

    merged, edge = (load_file(folder / "model.safetensors") for folder in (chain.merged, chain.edge))
    for name in (name for name, weight in edge.items() if weight.dtype is torch.int8):
        # LLM.int8 quantizes from float16: a merged model in float32 (on CPUs without bfloat16) is rounded to it first.
        source = merged[name].half().float()
        largest = edge[name.replace(".weight", ".SCB")]
        assert torch.equal(largest, source.abs().amax(1)), name
        steps = source * 127 / largest.unsqueeze(1)
        assert ((edge[name] - steps).abs() <= 0.5001).all(), name


def test_model_folders_have_tokenizer_and_prompt_format_and_no_pickles(chain: Chain) -> None:
    for folder, templates in ((chain.merged, []), (chain.edge, ["chat_template.jinja"])):
        assert sorted(path.name for path in folder.iterdir()) == [
            *templates,
            "config.json",
            "edgetune.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
        assert (folder / "tokenizer.json").read_bytes() == (chain.base / "tokenizer.json").read_bytes()
        assert json.loads((folder / "edgetune.json").read_text())["format"] == "Instruction"
        assert str(chain.base) not in (folder / "config.json").read_text(), "no local path"


def test_sizes_are_reported_in_bytes(chain: Chain) -> None:
    def size(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.iterdir())

    merge_metrics, quantize_metrics = chain.merge_output.metrics, chain.quantize_output.metrics
    assert merge_metrics["baseBytes"] == size(chain.base)
    assert merge_metrics["adapterBytes"] == size(chain.adapter)
    assert merge_metrics["mergedBytes"] == size(chain.merged)
    assert quantize_metrics["edgeBytes"] == size(chain.edge) < size(chain.merged)


def test_the_first_answers_of_all_models_are_written_side_by_side(chain: Chain) -> None:
    lines = [json.loads(line) for line in (chain.evaluation / "evaluation/answers.jsonl").read_text().splitlines()]

    assert [line["row"] for line in lines][:16] == list(range(16))
    assert set(lines[0]) == {"row", "prompt", "reference", "scores", "base", "tuned", "merged", "edge"}
    right = sum(line["edge"] == line["reference"] for line in lines[:16])
    assert right >= 12, "answers are matched to their rows although batches are sorted by length"


def test_known_scores_of_the_base_are_not_computed_again(chain: Chain, tmp_path: Path) -> None:
    progress = RecordedProgress()
    inputs = {**chain.inputs, "base-scores": chain.evaluation / "base-scores"}
    context = stage_context(Stage.EVALUATE, chain.parameters, tmp_path, inputs, progress=progress)

    output = evaluate.run(context)

    assert output.scores == chain.scores
    assert progress.said == [f"scoring the {name} model" for name in ("tuned", "merged", "edge")]
    assert not (context.output / "base-scores").exists()
    last = progress.updates[-1]
    assert last["done"] == last["total"]


def test_the_scores_of_the_base_are_written_for_other_runs(chain: Chain) -> None:
    kept = ModelScores.model_validate_json((chain.evaluation / "base-scores/scores.json").read_bytes())

    assert kept == chain.scores.details["base"]


def test_without_a_kept_merged_model_the_others_are_scored_on_the_first_rows(chain: Chain, tmp_path: Path) -> None:
    parameters = tiny_parameters(evaluation={"maxExamples": 10}, merge={"keep": False})
    inputs = {name: folder for name, folder in chain.inputs.items() if name != "merged"}
    context = stage_context(Stage.EVALUATE, parameters, tmp_path, inputs)

    scores = evaluate.run(context).scores

    assert scores is not None
    assert scores.merged is None
    assert scores.examples == 10
    assert set(scores.details) == {"base", "tuned", "edge"}


def test_texts_without_prompts_have_only_a_loss(chain: Chain, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(chain.prepared / "eval.parquet").slice(0, 6).to_pydict()
    table["completion_ids"] = [p + c for p, c in zip(table["prompt_ids"], table["completion_ids"], strict=True)]
    table["prompt"], table["prompt_ids"] = [""] * 6, [[]] * 6
    (tmp_path / "texts").mkdir()
    types = {"prompt_ids": pyarrow.list_(pyarrow.int32()), "completion_ids": pyarrow.list_(pyarrow.int32())}
    columns = {name: pyarrow.array(values, types.get(name)) for name, values in table.items()}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "texts/eval.parquet")
    parameters = tiny_parameters(dataset={"format": "Text"})
    inputs = {**chain.inputs, "prepared": tmp_path / "texts"}

    output = evaluate.run(stage_context(Stage.EVALUATE, parameters, tmp_path / "run", inputs))

    assert output.scores is not None
    assert output.scores.edge is None
    assert output.scores.details["tuned"].exact_match is None
    assert output.scores.details["tuned"].loss is not None


def test_a_stop_while_scoring_ends_the_stage_at_the_next_batch(chain: Chain, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    context = stage_context(Stage.EVALUATE, chain.parameters, tmp_path, chain.inputs, stop=stop)

    with pytest.raises(Interrupted):
        evaluate.run(context)


@pytest.mark.parametrize("stage", [merge, quantize])
def test_merge_and_quantize_that_are_stopped_write_nothing(chain: Chain, tmp_path: Path, stage: object) -> None:
    stop = threading.Event()
    stop.set()
    context = stage_context(
        Stage.MERGE, chain.parameters, tmp_path, {"base": chain.base, "adapter": chain.adapter}, stop=stop
    )

    with pytest.raises(Interrupted):
        stage.run(context)  # type: ignore[attr-defined]
    assert not list(context.output.iterdir())


def test_the_edge_model_streams_its_answer_to_a_prompt(chain: Chain) -> None:
    assert answer(chain.edge, QUESTION, 40) == ANSWER
    pieces = list(stream_answer(chain.edge, QUESTION, 40))
    assert len(pieces) > 1
    assert "".join(pieces) == ANSWER


def test_the_lines_of_the_model_card_answer_a_message_as_trained(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = StoredArtifact(name=chain.edge.name, key=EDGE_KEY, bytes=0, sha256="0" * 64)
    ((language, lines),) = ways_to_run(EdgeModel(artifact=artifact, files=()), "pumps").values()
    monkeypatch.chdir(chain.edge)

    assert language == "python"
    exec(lines.replace("…", QUESTION), {})  # noqa: S102 - the lines are what is tested

    assert capsys.readouterr().out.strip() == ANSWER


def test_llama_cpp_and_the_prompt_of_ollama_answer_a_message_as_trained(chain: Chain, tmp_path: Path) -> None:
    parameters = tiny_parameters(quantization={"formats": ["GGUF-Q8_0"]})
    context = stage_context(Stage.QUANTIZE, parameters, tmp_path, {"merged": chain.merged})
    quantize.run(context)
    edge = context.output / "edge-gguf-q8_0"
    asked = {"role": "user", "content": QUESTION}

    (chat,) = run_llama_cpp(edge / "model-Q8_0.gguf", chats=[[asked]], max_new_tokens=40)["chats"]
    (prompt,) = read_modelfile(edge / "Modelfile", [asked]).prompts

    assert chat["answer"] == ANSWER
    assert loading.load_tokenizer(edge)(prompt)["input_ids"] == chat["tokens"]


def test_an_answer_ends_at_the_maximum_length(chain: Chain) -> None:
    assert 0 < len(answer(chain.edge, QUESTION, 2)) < len(ANSWER)

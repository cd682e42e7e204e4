"""evaluate: score base, tuned, merged and edge model on the same held-out rows, one at a time on each GPU.

With an edge budget, also measure base and edge models on the CPU, each in a process of its own.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from edgetune_contract.evaluation import ScoredModel
from edgetune_contract.pipeline import BASE, BASE_SCORES, EVALUATION, MERGED, PREPARED, TUNED
from edgetune_contract.request import ModelScores
from edgetune_contract.spec import EdgeFormat, RowFormat
from edgetune_jobs.data.prepared_data import EVAL
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.evaluation import row_answers, scoring
from edgetune_jobs.evaluation.edge import budget
from edgetune_jobs.evaluation.edge.choosing import Choosing
from edgetune_jobs.evaluation.edge.loading_check import Loaded, check_loading, required_to_run
from edgetune_jobs.evaluation.edge.runtimes import RUNTIMES, Runtime
from edgetune_jobs.evaluation.scored_models import Evaluation, Rows, edge_artifacts, model_of
from edgetune_jobs.models import loading
from edgetune_jobs.stage import BASE_SCORES_FILE, StageContext, StageOutput

if TYPE_CHECKING:
    import torch


def run(context: StageContext, devices: Sequence[str] = ()) -> StageOutput:
    """Score base, adapter, merged (if kept) and edge models on the rows of input prepared; artifact `evaluation`.

    The edge model in the spec's first format has the name edge; further ones have their artifacts' names. On a CPU,
    GGUF is scored in llama.cpp if it is installed, otherwise in transformers, which dequantizes its blocks. llama.cpp
    rounds activations to 8 bits too, so answers of the two may differ in single tokens. The base's scores come from
    the input base-scores if there is one; otherwise they are computed and written to output/base-scores.

    Args:
        context: of the stage.
        devices: names of the devices to use, on each of which one model is scored at a time. Default: all GPUs that
            are visible, or the CPU. Candidates of formats Auto are scored one after the other, until one is chosen.

    Raises:
        InvalidInput: a model does not load, also in the runtime it is for, there are no rows, the base's loss is not
            finite, the edge budget cannot be measured here, or scoring would end long after the stage's deadline.
        TrainingDiverged: the loss of another model is not finite.
        Interrupted: `context.stop` was set.
    """
    budget.check_measurable(context.request.parameters)
    device = loading.choose_device()
    rows = _read_rows(context)
    models = context.request.parameters.evaluation.models
    known = _read_base_scores(context) if ScoredModel.BASE in models else None
    edges = edge_artifacts(context)
    names = [BASE] * (ScoredModel.BASE in models and known is None) + [TUNED] * (ScoredModel.TUNED in models)
    names += [MERGED] * (ScoredModel.MERGED in models and MERGED in context.inputs)
    count_of_models = len(names) + len(context.request.formats)
    evaluation = Evaluation(context, rows, models_to_score=count_of_models)
    loaded = check_loading(context, budget.median_prompt(rows.prompt_ids, rows.completion_ids))
    if known is not None:
        evaluation.scores[BASE] = known
        if (answers := row_answers.read_base_answers(context.inputs[BASE_SCORES], len(rows))) is not None:
            evaluation.answers[BASE] = answers
    is_auto, devices = context.request.parameters.quantization.is_auto, devices or loading.device_names()
    if len(devices) > 1:
        in_llama_cpp = loaded.in_llama_cpp if device.type == "cpu" else ()
        apart = () if is_auto else [name for name, artifact in edges.items() if artifact not in in_llama_cpp]
        evaluation.score_side_by_side([*names, *apart], devices)
    for name in names:
        if name not in evaluation.scores:
            evaluation.score(name, *model_of(name, context, device))
    if BASE in names:
        _write_base_scores(context.output / BASE_SCORES, evaluation)
    if is_auto:
        return _choose(evaluation, device)
    for name, artifact in edges.items():
        if name not in evaluation.scores:
            with required_to_run(context, artifact):
                evaluation.score_edge(name, artifact, device, in_llama_cpp=artifact in loaded.in_llama_cpp)
    _write_rows(context.output / EVALUATION, evaluation)
    return _report(evaluation, device, budget.measure_models(context, evaluation.prompt), loaded)


def _choose(evaluation: Evaluation, device: "torch.device") -> StageOutput:
    """Score the candidates of formats Auto until the answer is known; the chosen one is the edge model."""

    def score(edge_format: EdgeFormat) -> ModelScores:
        in_llama_cpp = RUNTIMES[edge_format] is Runtime.LLAMA_CPP
        evaluation.score_edge(edge_format.artifact, edge_format.artifact, device, in_llama_cpp=in_llama_cpp)
        return evaluation.scores[edge_format.artifact]

    choice = Choosing(evaluation.context, dict(evaluation.scores), evaluation.prompt, score).run()
    evaluation.name_edge(choice.chosen)
    _write_rows(evaluation.context.output / EVALUATION, evaluation)
    facts = "" if choice.chosen is None else f"{choice.chosen.artifact} by {RUNTIMES[choice.chosen]}"
    loaded = Loaded(facts, choice.warnings)
    return replace(_report(evaluation, device, choice.measured, loaded), candidates=choice.candidates)


def _read_rows(context: StageContext) -> Rows:
    import pyarrow.parquet

    parameters = context.request.parameters
    table = pyarrow.parquet.read_table(context.inputs[PREPARED] / EVAL)
    columns = table.slice(0, parameters.evaluation.max_examples).to_pydict()
    if not columns["response"]:
        raise InvalidInput("spec.dataset.eval: there are no evaluation rows; add some")
    references = [
        scoring.ReferenceAnswer(response, tuple(keywords or ()))
        for response, keywords in zip(columns["response"], columns["keywords"], strict=True)
    ]
    return Rows(
        prompts=columns["prompt"],
        prompt_ids=columns["prompt_ids"],
        completion_ids=columns["completion_ids"],
        references=references,
        is_text=parameters.dataset.format is RowFormat.TEXT,
    )


def _read_base_scores(context: StageContext) -> ModelScores | None:
    folder = context.inputs.get(BASE_SCORES)
    if folder is None or not (folder / BASE_SCORES_FILE).is_file():
        return None
    try:
        return ModelScores.model_validate_json((folder / BASE_SCORES_FILE).read_bytes())
    except ValidationError:  # written by another version: score the base again instead of failing the run
        return None


def _write_base_scores(folder: Path, evaluation: Evaluation) -> None:
    folder.mkdir()
    (folder / BASE_SCORES_FILE).write_text(evaluation.scores[BASE].model_dump_json() + "\n", encoding="utf-8")
    if BASE in evaluation.answers:
        row_answers.write_base_answers(folder, evaluation.answers[BASE])


def _write_rows(folder: Path, evaluation: Evaluation) -> None:
    """Write the scores of every row, and the answers to chosen rows."""
    folder.mkdir()
    rows, match = evaluation.rows, evaluation.context.request.parameters.evaluation.match
    scores = {
        name: [scoring.row_score(*pair, match) for pair in zip(answers, rows.references, strict=True)]
        for name, answers in evaluation.answers.items()
    }
    row_answers.write_row_scores(folder, scores)
    references = [reference.response for reference in rows.references]
    row_answers.write_answers(folder, rows.prompts, references, evaluation.answers, scores)


def _report(evaluation: Evaluation, device: "torch.device", measured: budget.Measured, loaded: Loaded) -> StageOutput:
    known = evaluation.scores
    scores = scoring.compare(known, len(evaluation.rows))
    metrics = {f"{name}Seconds": seconds for name, seconds in evaluation.seconds.items()}
    peak = max(loading.peak_memory_bytes(device), evaluation.peak_bytes)
    metrics |= {"examples": len(evaluation.rows), "peakMemoryBytes": peak}
    side_by_side = f", one model at a time on each of {evaluation.devices}" if evaluation.devices > 1 else ""
    facts = {"device": loading.describe_device(device) + side_by_side, "decoding": "greedy", "loaded": loaded.facts}
    warnings = (*evaluation.shortened_answers(), *loaded.warnings, *measured.warnings)
    return StageOutput((EVALUATION,), metrics, facts, warnings, scores=scores, edge=measured.measurement)

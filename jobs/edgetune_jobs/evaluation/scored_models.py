"""The scores and answers of the models of a run on the same rows, one model at a time on each device."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from edgetune_contract.pipeline import ADAPTER, BASE, EDGE, TUNED
from edgetune_contract.request import ModelScores, Request
from edgetune_contract.spec import EdgeFormat, MergeBase
from edgetune_contract.training import Precision
from edgetune_jobs.errors import BASE_FIELD, HOW_TO_TRAIN_SMALLER_WEIGHTS, Interrupted, InvalidInput, TrainingDiverged
from edgetune_jobs.evaluation import decoding, inference, scoring
from edgetune_jobs.evaluation.edge import budget
from edgetune_jobs.evaluation.edge.runtime_scores import score_in_llama_cpp
from edgetune_jobs.evaluation.edge.scoring_process import Row
from edgetune_jobs.evaluation.pace import OnBatch, Pace, TimeLeft, is_hopeless, late_message
from edgetune_jobs.evaluation.side_by_side import Job, Report, run_side_by_side
from edgetune_jobs.models import loading
from edgetune_jobs.models.quantization import int8_inference
from edgetune_jobs.models.tuned_model import load_tuned
from edgetune_jobs.stage import StageContext
from edgetune_jobs.wording import count

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BATCH_SIZE = 32


@dataclass(frozen=True)
class Rows:
    """Held-out rows, in their order in eval.parquet."""

    prompts: Sequence[str]
    prompt_ids: Sequence[Sequence[int]]
    completion_ids: Sequence[Sequence[int]]
    references: Sequence[scoring.ReferenceAnswer]
    is_text: bool
    """Texts without prompts: they have a loss but no answers."""

    def __len__(self) -> int:
        return len(self.references)


@dataclass
class Evaluation:
    """Scores, answers and seconds of each model so far, and the rows done for the progress."""

    context: StageContext
    rows: Rows
    models_to_score: int
    scores: dict[str, ModelScores] = field(default_factory=dict)
    answers: dict[str, list[str]] = field(default_factory=dict)
    """Of all rows."""

    seconds: dict[str, float] = field(default_factory=dict)
    rows_done: int = 0
    position_limit: int | None = None
    is_late: bool = False
    """Whether it was said that a pass ends after the deadline."""

    drafts: list[list[int]] | None = None
    """Answers of the last model that training made, as token ids: the next one probably gives most of them too."""

    peak_bytes: int = 0
    """Largest peak memory of the processes that scored models side by side."""

    devices: int = 1
    """Number of devices on which models were scored."""

    @cached_property
    def time_left(self) -> TimeLeft:
        """The time that all models still take."""
        return TimeLeft(self.models_to_score, self._passes)

    def score_side_by_side(self, names: Sequence[str], devices: Sequence[str]) -> None:
        """Score models as `score` does, each in a process of its own on a free device."""
        context, done = self.context, dict[str, int]()
        self.devices = len(devices)

        def arguments(name: str) -> tuple[object, ...]:
            used = (BASE, ADAPTER, edge_artifacts(context).get(name, name))
            folders = {each: context.inputs[each] for each in used if each in context.inputs}
            return name, context.request, folders, context.scratch, context.deadline, self.rows, self.drafts

        def advance(name: str, rows: int) -> None:
            done[name] = rows
            self.rows_done = self._passes * sum(done.values())
            context.progress.update(sum(done.values()), self._rows_to_score, self._unit)

        def take(name: str, found: "_ScoredApart") -> None:
            self.scores[name], self.seconds[name] = found.scores, found.seconds
            self.peak_bytes = max(self.peak_bytes, found.peak_bytes)
            self.position_limit = found.position_limit
            if found.answers is not None:
                self.answers[name] = found.answers
            self.drafts = found.drafts or self.drafts

        jobs = [Job(name, score_apart, partial(arguments, name)) for name in names]
        run_side_by_side(
            jobs, devices, on_done=advance, say=context.progress.say, on_value=take, is_stopped=context.stop.is_set
        )

    def score(self, name: str, tokenizer_folder: Path, load: "Callable[[], PreTrainedModel]") -> None:
        """Load a model in transformers, score it on all rows, and free its memory."""
        tokenizer = self._begin(name, tokenizer_folder)
        began = monotonic()
        model = load()
        rows, tokens = self.rows, None
        self.position_limit = inference.position_limit(model)
        passed = inference.teacher_forced(
            model,
            rows.prompt_ids,
            rows.completion_ids,
            pad_token_id=tokenizer.pad_token_id,
            batch_size=_BATCH_SIZE,
            on_batch=self._pass_of(name),
        )
        _check_finite(name, passed.loss)
        if not rows.is_text:
            tokens = decoding.greedy_answers(
                model,
                tokenizer,
                rows.prompt_ids,
                max_new_tokens=self.context.request.parameters.evaluation.max_new_tokens,
                batch_size=_BATCH_SIZE,
                begun=passed.greedy,
                drafts=self.drafts,
                on_batch=self._pass_of(name),
            )
        self._record(name, tokenizer, tokens, passed.loss, f"transformers {version('transformers')}")
        self.seconds[name] = monotonic() - began
        del model
        loading.free_memory()

    def score_in_llama_cpp(self, name: str, artifact: str) -> None:
        """Score a GGUF model on all rows in a process of llama.cpp.

        Raises:
            OutOfMemory, CannotRun: llama.cpp has too little memory here, or does not run it.
            TrainingDiverged: its loss is not finite.
        """
        folder, rows = self.context.inputs[artifact], self.rows
        tokenizer = self._begin(name, folder)
        began = monotonic()
        drafts = self.drafts or [[]] * len(rows)
        columns = zip(rows.prompt_ids, rows.completion_ids, drafts, strict=True)
        scored = score_in_llama_cpp(
            folder,
            [Row(tuple(prompt), tuple(completion), tuple(draft)) for prompt, completion, draft in columns],
            ends=decoding.end_tokens(loading.load_generation_settings(folder), tokenizer),
            max_new_tokens=self.context.request.parameters.evaluation.max_new_tokens,
            scratch=self.context.scratch,
            stop=self.context.stop,
            on_batch=self._pass_of(name, passes=self._passes),
        )
        _check_finite(name, scored.loss)
        self._record(name, tokenizer, None if rows.is_text else scored.answers, scored.loss, scored.runtime)
        self.seconds[name] = monotonic() - began

    def score_edge(self, name: str, artifact: str, device: "torch.device", *, in_llama_cpp: bool) -> None:
        """Score an edge model: on a CPU in llama.cpp if that runs it, otherwise in transformers."""
        if device.type == "cpu" and in_llama_cpp:
            self.score_in_llama_cpp(name, artifact)
        else:
            folder = self.context.inputs[artifact]
            self.score(name, folder, _loader(folder, device))

    def name_edge(self, chosen: EdgeFormat | None) -> None:
        """Name the chosen candidate as the edge model. The scores of the others are in the table of candidates."""
        for each in self.context.request.formats:
            scores, answers = self.scores.pop(each.artifact, None), self.answers.pop(each.artifact, None)
            if each is chosen and scores is not None:
                self.scores[EDGE] = scores
            if each is chosen and answers is not None:
                self.answers[EDGE] = answers

    @property
    def prompt(self) -> tuple[int, ...]:
        """The prompt to measure speed with. How many positions the models have is known since they were scored."""
        return budget.median_prompt(self.rows.prompt_ids, self.rows.completion_ids, self.position_limit)

    def _begin(self, name: str, tokenizer_folder: Path) -> "PreTrainedTokenizerBase":
        self.context.progress.say(f"scoring the {name} model")
        self.time_left.begin_model()
        return loading.load_tokenizer(tokenizer_folder, BASE_FIELD if name in (BASE, TUNED) else f"the {name} model")

    def _record(
        self,
        name: str,
        tokenizer: "PreTrainedTokenizerBase",
        tokens: list[list[int]] | None,
        loss: float | None,
        runtime: str,
    ) -> None:
        """Score answers, given as token ids; None for texts."""
        answers = None
        if tokens is not None:
            answers = tokenizer.batch_decode(tokens, skip_special_tokens=True)
            self.answers[name] = answers
            if name != BASE:  # all further models are made from this one
                self.drafts = tokens
        match = self.context.request.parameters.evaluation.match
        self.scores[name] = scoring.score_model(answers, self.rows.references, loss, match, runtime)

    def shortened_answers(self) -> tuple[str, ...]:
        """A warning if the models' positions end before some answers may have max_new_tokens."""
        longest, limit = self.context.request.parameters.evaluation.max_new_tokens, self.position_limit
        rooms = [inference.room_for_answer(len(prompt), longest, limit) for prompt in self.rows.prompt_ids]
        short = [room for room in rooms if room < longest]
        if self.rows.is_text or not short or limit is None:
            return ()
        return (
            f"spec.evaluation.maxNewTokens: the base model has {limit:,} learned positions, so "
            f"{count(len(short), 'answer ends', 'answers end')} after at most {max(short):,} tokens instead of "
            f"{longest:,} (the shortest after {min(short):,}); use shorter prompts, or another base model",
        )

    @property
    def _passes(self) -> int:
        """How often each row counts for the progress: once for its loss, once for its answer."""
        return 1 if self.rows.is_text else 2

    @property
    def _rows_to_score(self) -> int:
        return len(self.rows) * self.models_to_score

    @property
    def _unit(self) -> str:
        return f"rows of {count(self.models_to_score, 'model')}"

    def _pass_of(self, name: str, passes: int = 1) -> OnBatch:
        """What to do after each batch of a pass, in which each row counts for so many passes."""
        pace = Pace(self.context.deadline)
        self.time_left.begin_pass(passes)

        def advance(rows: int, share: float) -> None:
            self.rows_done += passes * rows
            done, eta = self.rows_done // self._passes, self.time_left.seconds(share)
            self.context.progress.update(done, self._rows_to_score, self._unit, eta_seconds=eta)
            if self.context.stop.is_set():
                raise Interrupted("stopped by SIGTERM while scoring; the next attempt starts scoring again")
            late = pace.seconds_too_many(share)
            if late is not None:
                self._say_late(name, *late)

        return advance

    def _say_late(self, name: str, needed: float, left: float) -> None:
        """Say that a pass ends after the deadline by its own pace.

        Raises:
            InvalidInput: it would even if it got twice as fast: the rest of the time is not wasted.
        """
        evaluation = self.context.request.parameters.evaluation
        message = late_message(f"scoring the {name} model", "rows", needed, left)
        if is_hopeless(needed, left):
            raise InvalidInput(
                f"{message}; raise it, lower spec.evaluation.maxExamples ({len(self.rows):,} rows are scored) or "
                f"maxNewTokens ({evaluation.max_new_tokens:,}), or let the profile evaluate on a GPU"
            )
        if not self.is_late:
            self.is_late = True
            self.context.progress.say(message)


@dataclass(frozen=True)
class _ScoredApart:
    """What a process of its own found of one model."""

    scores: ModelScores
    answers: list[str] | None
    drafts: list[list[int]] | None
    seconds: float
    position_limit: int | None
    peak_bytes: int


def score_apart(
    report: Report,
    device_name: str,
    name: str,
    request: Request,
    inputs: Mapping[str, Path],
    scratch: Path,
    deadline: float | None,
    rows: Rows,
    drafts: list[list[int]] | None,
) -> _ScoredApart:
    """Score one model in this process, which another one has started; the arguments are those of its evaluation."""
    import torch

    loading.choose_device()  # sets up the libraries
    device = torch.device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    no_files: Any = None  # scoring writes none
    context = StageContext(request, inputs, scratch, no_files, scratch, report, deadline=deadline)
    evaluation = Evaluation(context, rows, models_to_score=1, drafts=drafts)
    evaluation.score(name, *model_of(name, context, device))
    return _ScoredApart(
        evaluation.scores[name],
        evaluation.answers.get(name),
        None if name == BASE else evaluation.drafts,
        evaluation.seconds[name],
        evaluation.position_limit,
        loading.peak_memory_bytes(device),
    )


def model_of(name: str, context: StageContext, device: "torch.device") -> "tuple[Path, Callable[[], PreTrainedModel]]":
    """Folder of a model's tokenizer, and what loads the model."""
    base = context.inputs[BASE]
    if name == BASE:
        dtype = loading.dtype_of(loading.resolve_precision(Precision.AUTO, device))
        return base, partial(loading.load_base, base, dtype, device)
    if name == TUNED:
        return base, partial(_load_tuned, base, context.inputs[ADAPTER], device)
    folder = context.inputs[edge_artifacts(context).get(name, name)]
    return folder, _loader(folder, device)


def _check_finite(name: str, loss: float | None) -> None:
    """Check that a model's loss is finite.

    Raises:
        InvalidInput: it is not, and the model is the base: the cause is its weights or its dtype.
        TrainingDiverged: it is not, and training made the model.
    """
    if loss is None or isfinite(loss):
        return
    problem = f"the loss of the {name} model on the evaluation rows is {loss}"
    if name == BASE:
        raise InvalidInput(
            f"spec.baseModel: {problem}: its weights are damaged or overflow in the dtype of the evaluation; check the "
            "model's files, or evaluate on hardware with bfloat16"
        )
    raise TrainingDiverged(f"{problem}: its activations overflow; {HOW_TO_TRAIN_SMALLER_WEIGHTS}")


def _load_tuned(base: Path, adapter: Path, device: "torch.device") -> "PreTrainedModel":
    """The base as in training, with the adapter beside it in the base's dtype."""
    tuned = load_tuned(base, adapter, MergeBase.AS_TRAINED, device)
    return tuned.to(tuned.dtype)


def edge_artifacts(context: StageContext) -> dict[str, str]:
    """Artifacts of the edge models by the names of their scores."""
    first, *further = (edge_format.artifact for edge_format in context.request.formats)
    return {EDGE: first, **{artifact: artifact for artifact in further}}


def _loader(folder: Path, device: "torch.device") -> "Callable[[], PreTrainedModel]":
    def load() -> "PreTrainedModel":
        model = loading.load_stored(folder, device)
        if device.type == "cpu":
            int8_inference.replace_forward(model)
        return model

    return load

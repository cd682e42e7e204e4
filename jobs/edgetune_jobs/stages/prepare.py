"""prepare: inspect the base, read and tokenize the data, and refuse what cannot be trained on."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgetune_contract.pipeline import BASE, PREPARED
from edgetune_contract.spec import MergeBase, Method, Parameters
from edgetune_jobs.data.chat.shared import with_shared_context
from edgetune_jobs.data.data_set import EVAL_FIELD, TRAIN_FIELD, DataSet, read_data_set
from edgetune_jobs.data.division import DividedRows, divide
from edgetune_jobs.data.examples import Example
from edgetune_jobs.data.prepared_data import RowWriter, open_eval, open_train, write_report
from edgetune_jobs.data.prompt_format import PromptFormat
from edgetune_jobs.data.readers.row_errors import RowErrors
from edgetune_jobs.data.readers.rows import BadRow
from edgetune_jobs.data.row_checks import check_positions, check_tokens, row_warnings
from edgetune_jobs.data.token_lengths import TokenCount
from edgetune_jobs.errors import Interrupted, InvalidInput, StageError
from edgetune_jobs.evaluation.edge.budget import check_measurable
from edgetune_jobs.evaluation.edge.runtimes import missing_runtime
from edgetune_jobs.models import loading
from edgetune_jobs.models.folder import SourceModelFolder, base_label
from edgetune_jobs.models.inspection import BaseModel, inspect_base, targeted_layers
from edgetune_jobs.models.libraries import load_config, prepare_libraries
from edgetune_jobs.models.quantization.coverage import Coverage, check_method, nf4_coverage
from edgetune_jobs.models.skeleton import build_skeleton
from edgetune_jobs.models.trial.bounds import implementation_warnings
from edgetune_jobs.models.trial.model import try_model
from edgetune_jobs.models.trial.process import shared_trial
from edgetune_jobs.models.trial.tokenizing import BoundedTokenizer
from edgetune_jobs.stage import StageContext, StageOutput
from edgetune_jobs.store.sources.licence import find_licence
from edgetune_jobs.store.sources.source import Source
from edgetune_jobs.tensors.families import KNOWN_TYPES
from edgetune_jobs.tensors.formats.candidates import Candidates, find_candidates
from edgetune_jobs.tensors.formats.suitability import Suitability, check_formats, check_quantizer
from edgetune_jobs.tensors.streamed_model import can_stream
from edgetune_jobs.tensors.text_model import TextModel, text_model
from edgetune_jobs.training.memory.activations import try_activations
from edgetune_jobs.training.memory.estimate import Workload, number_bytes_of
from edgetune_jobs.training.memory.gpu_fit import check_gpu, common_fits
from edgetune_jobs.training.preparation_report import (
    Preparation,
    base_figures,
    bound_warning,
    training_facts,
    training_figures,
)
from edgetune_jobs.training.rehearsal import rehearse_training

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROWS_AT_A_TIME = 256
_LONGEST_REASON = 300


def run(context: StageContext) -> StageOutput:
    """Prepare the sources base, train and, if the spec names one, eval; artifact `prepared`.

    Raises:
        InvalidInput: the base cannot be fine-tuned with this spec, the edge model cannot be measured, or rows cannot be
            used; one message lists all such rows.
        Interrupted: `context.stop` was set.
    """
    parameters = context.request.parameters
    check_measurable(parameters)
    check_quantizer(parameters)
    context.progress.say("inspecting the base model")
    trial = shared_trial()
    trial.start()
    source = text_model(context.sources[BASE], trial, context.scratch / "text-model")
    base = inspect_base(source)
    targeted_layers(base, parameters.lora)
    context.progress.say("reading the data")
    row_errors = RowErrors()
    train_set, eval_set = _read(context, row_errors)
    context.progress.say("importing the libraries and trying the base model")
    text_part = source if isinstance(source, TextModel) else None
    licence = find_licence(context.sources[BASE])
    about_base = (
        *([] if text_part is None else [text_part.warning]),
        *implementation_warnings(base.config),
        *try_model(trial, base.folder, base.tensors),
        *licence.warnings(parameters.base_model.uri),
    )
    tokenizer = _load_tokenizer(base)
    coverage, candidates = _check_quantization(base, lambda: tokenizer, parameters)
    unchecked = _rehearse(base, tokenizer, context)
    bounded = BoundedTokenizer(trial, base.folder, PromptFormat.of(parameters.dataset), parameters.training.max_length)
    written = _write_rows(_Tokenizing(context, bounded, row_errors), train_set, eval_set, parameters)
    train, evaluation = written.train, written.evaluation
    check_tokens(base.limits, bounded.special_tokens(), train, evaluation)
    workload = _workload(base, coverage, parameters, train.longest_kept, context.gpu_bytes)
    preparation = Preparation(
        text_part_of=None if text_part is None else text_part.architecture,
        workload=workload,
        train_rows=written.train_rows,
        train=train,
        evaluation=evaluation,
        is_split_off=eval_set is None,
        is_streamed=_is_streamed(source, parameters),
        fits=common_fits(workload, train.kept / train.examples, context.gpu_bytes),
        gpu_bytes=context.gpu_bytes,
        warnings=(*about_base, *written.warnings, *unchecked, *bound_warning(workload)),
    )
    write_report(written.folder, preparation.report())
    shutil.move(written.folder, context.output / PREPARED)
    return StageOutput(
        artifacts=(PREPARED,),
        metrics=preparation.metrics(),
        facts={**preparation.facts(), **licence.facts, **candidates.facts},
        warnings=preparation.warnings,
        possible=candidates.possible,
    )


def recheck(context: StageContext, known: Mapping[str, float]) -> StageOutput:
    """Check again what depends on fields outside of the prepared data's digest: whether the base can be trained.

    The trial of the model's files is not repeated: a base with the same bytes has passed it, because the digest of the
    prepared data includes that of the base.

    Args:
        context: context with the source base.
        known: metrics of the prepared data.

    Returns:
        New values of the metrics and facts that depend on these fields.

    Raises:
        InvalidInput: the base lacks a target module, does not support sequences of this length, does not fit into the
            GPU, or cannot be written in one of the edge formats; or the edge model cannot be measured.
    """
    parameters = context.request.parameters
    check_measurable(parameters)
    check_quantizer(parameters)
    shared_trial().start()
    context.progress.say("inspecting the base model")
    base = inspect_base(context.sources[BASE])
    targeted_layers(base, parameters.lora)
    longest = min(int(known["tokensMax"]), parameters.training.max_length)
    check_positions(base.limits, longest)
    coverage, candidates = _check_quantization(base, lambda: _load_tokenizer(base), parameters)
    if not _is_known(base):
        _rehearse(base, _load_tokenizer(base), context)
    is_streamed = _is_streamed(context.sources[BASE], parameters)
    workload = _workload(base, coverage, parameters, longest, context.gpu_bytes)
    fits = common_fits(workload, known["trainTokens"] / known["trainExamples"], context.gpu_bytes)
    return StageOutput(
        # The manifest may be from a release that reported fewer figures.
        metrics={**base_figures(base, is_streamed=is_streamed), **training_figures(workload)},
        facts={**training_facts(workload, fits, context.gpu_bytes), **candidates.facts},
        possible=candidates.possible,
    )


def _workload(
    base: BaseModel, coverage: Coverage, parameters: Parameters, longest: int, gpu_bytes: int | None
) -> Workload:
    """The training, for estimates of its memory.

    Raises:
        InvalidInput: it cannot fit into the GPU.
    """
    training, lora = parameters.training, parameters.lora
    activations = try_activations(
        shared_trial(), base.folder, lora, number_bytes_of(training), training.layout, training.attention
    )
    targets = targeted_layers(base, parameters.lora)
    workload = Workload(base, coverage, targets, parameters, longest, activations)
    if gpu_bytes is not None:
        check_gpu(workload, gpu_bytes)
    return workload


def _check_quantization(
    base: BaseModel, load_tokenizer: "Callable[[], PreTrainedTokenizerBase]", parameters: Parameters
) -> tuple[Coverage, Candidates]:
    """What QLoRA quantizes in the base, and the candidates of formats Auto.

    Raises:
        InvalidInput: the method or a format does not support the base, or no candidate of formats Auto can fit.
    """
    skeleton = build_skeleton(base.folder)
    coverage = nf4_coverage(skeleton)
    check_method(coverage, parameters.method, base.architecture)
    suitability = Suitability(base, skeleton, load_tokenizer)
    check_formats(suitability, parameters)
    return coverage, find_candidates(suitability, parameters, missing_runtime)


def _rehearse(base: BaseModel, tokenizer: "PreTrainedTokenizerBase", context: StageContext) -> tuple[str, ...]:
    """Warnings of a rehearsed training; nothing for the model types that the tests of every release train.

    Raises:
        InvalidInput: a library refuses to train the model with this spec.
    """
    if _is_known(base):
        return ()
    context.progress.say("checking that the libraries can train this model")
    return rehearse_training(base, tokenizer, context.request.parameters, context.scratch)


def _is_known(base: BaseModel) -> bool:
    return base.config.get("model_type") in KNOWN_TYPES


def _is_streamed(source: Source, parameters: Parameters) -> bool:
    through_nf4 = parameters.method is Method.QLORA and parameters.merge.base is MergeBase.AS_TRAINED
    return can_stream(SourceModelFolder(source, base_label(source.uri)), through_nf4=through_nf4)


def _load_tokenizer(base: BaseModel) -> "PreTrainedTokenizerBase":
    """The base's tokenizer. The model's configuration is loaded too, so that it cannot fail later in train.

    Raises:
        InvalidInput: transformers cannot load the tokenizer or the configuration.
    """
    prepare_libraries()
    try:
        load_config(base.folder)
        return loading.load_tokenizer(base.folder)
    except StageError:
        raise
    except Exception as error:  # with broken files, the libraries raise any kind of exception
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        raise InvalidInput(
            f"spec.baseModel: transformers cannot load its configuration or tokenizer: {reason}; "
            "save or copy the model again, or use one that this version of transformers supports"
        ) from error


def _read(context: StageContext, row_errors: RowErrors) -> tuple[DataSet, DataSet | None]:
    dataset = context.request.parameters.dataset
    train = read_data_set(context.sources["train"], TRAIN_FIELD, dataset, row_errors, context.stop)
    if dataset.eval is None or row_errors.is_full:
        return train, train.held_out
    return train, read_data_set(context.sources["eval"], EVAL_FIELD, dataset, row_errors, context.stop)


@dataclass(frozen=True)
class _WrittenRows:
    """The rows in the files of the prepared data."""

    folder: Path
    train_rows: int
    train: TokenCount
    evaluation: TokenCount
    warnings: Sequence[str]


class _Tokenizing:
    """Tokenizes rows with progress until stopped; rows that cannot be used are added to the row errors."""

    def __init__(self, context: StageContext, tokenizer: BoundedTokenizer, row_errors: RowErrors) -> None:
        self.folder = context.scratch / PREPARED
        self.tokenizer = tokenizer
        self.row_errors = row_errors
        self._context = context
        self._done = 0
        self._total = 0

    def check(self, *data_sets: DataSet | None) -> None:
        """Find rows that cannot be tokenized, without writing anything."""
        present = [data_set for data_set in data_sets if data_set is not None]
        self._begin(sum(len(data_set.examples) for data_set in present))
        for data_set in present:
            self._encode(data_set.examples, data_set.spec_field, None)

    def write(self, rows: DividedRows) -> tuple[TokenCount, TokenCount]:
        """Write train.parquet and eval.parquet to `folder`; the token counts of both."""
        self.folder.mkdir()
        self._begin(len(rows.train) + len(rows.evaluation))
        with open_train(self.folder) as writer:
            train = self._encode(rows.train, TRAIN_FIELD, writer, each_answer=True)
        with open_eval(self.folder) as writer:
            evaluation = self._encode(rows.evaluation, rows.evaluation_field, writer)
        return train, evaluation

    def _begin(self, total: int) -> None:
        self._done, self._total = 0, total
        self._context.progress.say("tokenizing")

    def _encode(
        self, examples: Sequence[Example], spec_field: str, writer: RowWriter | None, *, each_answer: bool = False
    ) -> TokenCount:
        tokens = TokenCount()
        for begin in range(0, len(examples), _ROWS_AT_A_TIME):
            if self._context.stop.is_set():
                raise Interrupted("stopped by SIGTERM while tokenizing; the next attempt starts again")
            batch = examples[begin : begin + _ROWS_AT_A_TIME]
            usable = []
            for example in self.tokenizer.tokenize(batch, each_answer=each_answer):
                if isinstance(example, BadRow):
                    self.row_errors.add(spec_field, example)
                else:
                    usable.append(example)
                    tokens.add(example)
            if writer is not None:
                writer.write(usable)
            self._done += len(batch)
            self._context.progress.update(self._done, self._total, "rows")
        return tokens


def _write_rows(
    tokenizing: _Tokenizing, train_set: DataSet, eval_set: DataSet | None, parameters: Parameters
) -> _WrittenRows:
    """Divide, tokenize and write the rows.

    Raises:
        InvalidInput: rows cannot be used; one message lists all of them.
        Interrupted: the context's `stop` was set.
    """
    if tokenizing.row_errors.total:
        # Rows that are too long belong in the same report.
        tokenizing.check(train_set, eval_set)
        tokenizing.row_errors.raise_if_any()
    rows = divide(parameters.dataset, parameters.training.seed, train_set, eval_set)
    train, evaluation = tokenizing.write(rows)
    tokenizing.row_errors.raise_if_any()
    prompt_format = PromptFormat.of(parameters.dataset)
    with_shared_context(prompt_format, rows.train).write(tokenizing.folder)
    warnings = row_warnings(
        rows,
        prompt_format,
        train,
        evaluation,
        max_length=parameters.training.max_length,
        unused_fields=tokenizing.tokenizer.unused_fields(),
    )
    return _WrittenRows(tokenizing.folder, len(rows.train), train, evaluation, warnings)

"""`edgetune data check`: what prepare would say about data, with an example as the model learns it."""

import json
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from edgetune_cli.documents.single import missing_paths
from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.local.cluster import local_profile
from edgetune_cli.options import App, Output, Profiles, meant_filename, read_object, read_profiles, require_profile
from edgetune_cli.output import DataFormat, SafeConsole, print_data, say, working
from edgetune_cli.status_tables import local_path
from edgetune_cli.store.commands import call_jobs
from edgetune_contract.request import StoreLocation
from edgetune_contract.spec import DatasetSpec, DataSource, RowFormat
from edgetune_contract.training import TrainingSpec
from edgetune_operator.api.spec_check import parse_spec

if TYPE_CHECKING:
    from edgetune_jobs.data.chat.renderers import Span
    from edgetune_jobs.data.division import DividedRows
    from edgetune_jobs.data.examples import Example
    from edgetune_jobs.data.readers.row_errors import RowErrors
    from edgetune_jobs.data.row_checks import TokenLimits
    from edgetune_jobs.data.token_lengths import TokenCount
    from edgetune_jobs.models.trial.tokenizing import BoundedTokenizer

data_app = App(help="Check data sets.", add_completion=False)

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
_BASE_URI = "spec.baseModel.uri"
_LONGEST_SHOWN = 2_000
_LEARNED, _PROMPT = "learned", "prompt"


@dataclass(frozen=True)
class _Wanted:
    """What is checked, and how it would be trained on."""

    dataset: DatasetSpec
    training: TrainingSpec
    location: StoreLocation
    model: Path | None
    """Folder of a base model with a tokenizer; None if there is none here."""

    missing: Mapping[str, str] = field(default_factory=dict)
    """Messages about paths of the object with nothing behind them, by field."""


@dataclass
class _Found:
    """What prepare would say."""

    errors: str = ""
    """Invalid rows, or why no row can be used; empty if all can."""

    train: int = 0
    evaluation: int = 0
    is_split_off: bool = False
    """Whether the evaluation rows are part of the training data's file."""

    warnings: list[str] = field(default_factory=list)
    tokens: "TokenCount | None" = None
    """Of the training examples; None without a tokenizer."""

    example: str = ""
    """Place of the example, such as train.jsonl line 1."""

    spans: "Sequence[Span]" = ()
    """The example's text."""

    rendering: str = ""
    """How the example was rendered, if not as in a training."""


@data_app.command("check")
def check(
    file: Annotated[
        str | None,
        typer.Argument(help="Training data: a file or folder, as a path or s3://…", show_default=False),
    ] = None,
    filename: Annotated[
        Path | None,
        typer.Option("--filename", "-f", help="YAML file of a LoraFineTune whose data is checked.", show_default=False),
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option("--eval", help="Evaluation data; default: held out of FILE.", show_default=False)
    ] = None,
    row_format: Annotated[
        RowFormat | None, typer.Option("--format", help="Format of the rows.", show_default="Instruction")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            "--model", help="Folder of the base model, to count tokens; default: that of -f.", show_default=False
        ),
    ] = None,
    profiles: Profiles = None,
    output: Output = DataFormat.TEXT,
) -> None:
    """Say in seconds what prepare would say about data, and show an example: the prompt and what is learned.

    Reads the rows as prepare does; with a base model's tokenizer also counts tokens. Exits with 0 if all rows can be
    used, 1 if one cannot, or 2 if a file cannot be read.
    """
    if filename is None and (meant := meant_filename(file)):
        fail(f"{file} is not data{meant}", ExitStatus.UNUSABLE_INPUT)
    if (file is None) == (filename is None):
        fail("give either FILE (a path or an s3:// URI) or -f FILE.yaml", ExitStatus.UNUSABLE_INPUT)
    wanted = _of_object(filename, profiles) if filename is not None else _of_file(str(file), profiles)
    changes: dict[str, Any] = {} if row_format is None else {"format": row_format}
    if evaluation is not None:
        changes["eval"] = _source(evaluation)
    dataset = wanted.dataset.model_copy(update=changes)
    folder = wanted.model if model is None else model
    replaced = "spec.dataset.eval.uri" if evaluation is not None else ""
    missing = {path: f"{path}: {message}" for path, message in wanted.missing.items() if path != replaced}
    if any(path != _BASE_URI for path in missing):
        fail("\n".join(missing.values()), ExitStatus.UNUSABLE_INPUT)
    if model is not None and not _has_tokenizer(model):
        fail(f"--model {model}: has none of {', '.join(_TOKENIZER_FILES)}", ExitStatus.UNUSABLE_INPUT)
    with working("Reading the data"):
        found = call_jobs(lambda: _check(_Wanted(dataset, wanted.training, wanted.location, folder)))
    found.warnings += [f"{message}: a run fails here" for message in missing.values()]
    if output is DataFormat.TEXT:
        _print(found)
    else:
        print_data(_json(found), output)
    raise typer.Exit(ExitStatus.NEGATIVE if found.errors else ExitStatus.OK)


def _of_object(filename: Path, profiles: Path | None) -> _Wanted:
    document = read_object(filename)
    spec = parse_spec(document["spec"])
    profile = require_profile(filename, spec.profile, read_profiles(profiles, Path().resolve()))
    location = profile.store.for_namespace(document["metadata"].get("namespace", "default"))
    base = local_path(spec.base_model.uri) if spec.base_model.uri.startswith("file://") else None
    model = base if base is not None and _has_tokenizer(base) else None
    missing = {problem.path: problem.message for problem in missing_paths(document)}
    return _Wanted(spec.dataset, spec.training, location, model, missing)


def _of_file(file: str, profiles: Path | None) -> _Wanted:
    known = read_profiles(profiles, Path().resolve())
    store = next(iter(known.values()), local_profile(Path().resolve())).store
    return _Wanted(DatasetSpec(train=_source(file)), TrainingSpec(), store.for_namespace("default"), None)


def _source(place: str) -> DataSource:
    try:
        return DataSource(uri=_address(place))
    except ValueError:
        fail(f"{place} is not the address of data: use s3://bucket/key or a path", ExitStatus.UNUSABLE_INPUT)


def _address(place: str) -> str:
    return place if "://" in place else Path(place).resolve().as_uri()


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _check(wanted: _Wanted) -> _Found:
    """Read the rows as prepare does."""
    from edgetune_jobs.data.data_set import EVAL_FIELD, TRAIN_FIELD, read_data_set
    from edgetune_jobs.data.division import divide
    from edgetune_jobs.data.prompt_format import PromptFormat
    from edgetune_jobs.data.readers.row_errors import RowErrors
    from edgetune_jobs.data.row_checks import context_warnings
    from edgetune_jobs.errors import InvalidInput
    from edgetune_jobs.store.access import StorageAccess

    access, dataset, never = StorageAccess(wanted.location, credentials_folder=None), wanted.dataset, threading.Event()
    row_errors = RowErrors()
    with tempfile.TemporaryDirectory(prefix="edgetune-data-") as scratch:
        source = access.open_data(dataset.train, TRAIN_FIELD, Path(scratch) / "train")
        train = read_data_set(source, TRAIN_FIELD, dataset, row_errors, never)
        evaluation = train.held_out
        if dataset.eval is not None and not row_errors.is_full:
            source = access.open_data(dataset.eval, EVAL_FIELD, Path(scratch) / "eval")
            evaluation = read_data_set(source, EVAL_FIELD, dataset, row_errors, never)
        found = _Found(is_split_off=evaluation is None)
        try:
            tokenizer = _tokenizer(wanted)
            if row_errors.total and tokenizer is not None:
                # Rows that are too long belong in the same report.
                for each in filter(None, (train, evaluation)):
                    _count(tokenizer, each.examples, each.spec_field, row_errors)
            row_errors.raise_if_any()
            rows = divide(dataset, wanted.training.seed, train, evaluation)
            found.train, found.evaluation = len(rows.train), len(rows.evaluation)
            found.example = str(rows.train[0].place)
            if tokenizer is None:
                prompt_format = PromptFormat.of(dataset)
                found.spans, found.rendering = _plain_spans(prompt_format, rows.train[0])
                found.warnings = [*rows.warnings, *context_warnings(rows, prompt_format)]
            else:
                _check_tokens(wanted, tokenizer, rows, row_errors, found)
        except InvalidInput as error:
            found.errors = str(error)
    return found


def _tokenizer(wanted: _Wanted) -> "BoundedTokenizer | None":
    """That of the base model, if it is here.

    Raises:
        InvalidInput: it cannot be loaded, or has no chat template although the rows need one.
    """
    from edgetune_jobs.data.prompt_format import PromptFormat
    from edgetune_jobs.models.trial.process import shared_trial
    from edgetune_jobs.models.trial.tokenizing import BoundedTokenizer

    if wanted.model is None:
        return None
    return BoundedTokenizer(shared_trial(), wanted.model, PromptFormat.of(wanted.dataset), wanted.training.max_length)


def _count(
    tokenizer: "BoundedTokenizer",
    examples: "Sequence[Example]",
    spec_field: str,
    row_errors: "RowErrors",
    *,
    each_answer: bool = False,
) -> "TokenCount":
    """Tokens of rows; those that cannot be tokenized are added to the row errors."""
    from edgetune_jobs.data.readers.rows import BadRow
    from edgetune_jobs.data.token_lengths import TokenCount

    tokens = TokenCount()
    for each in tokenizer.tokenize(examples, each_answer=each_answer):
        if isinstance(each, BadRow):
            row_errors.add(spec_field, each)
        else:
            tokens.add(each)
    return tokens


def _check_tokens(
    wanted: _Wanted, tokenizer: "BoundedTokenizer", rows: "DividedRows", row_errors: "RowErrors", found: _Found
) -> None:
    """Add the tokens of all rows, what prepare says about them, and the first training example as text.

    Raises:
        InvalidInput: rows cannot be tokenized, or the base does not support their tokens.
    """
    from edgetune_jobs.data.data_set import TRAIN_FIELD
    from edgetune_jobs.data.prompt_format import PromptFormat
    from edgetune_jobs.data.row_checks import check_tokens, row_warnings
    from edgetune_jobs.data.tokenization import TokenizedExample

    train = _count(tokenizer, rows.train, TRAIN_FIELD, row_errors, each_answer=True)
    evaluation = _count(tokenizer, rows.evaluation, rows.evaluation_field, row_errors)
    row_errors.raise_if_any()
    found.tokens = train
    found.warnings = row_warnings(
        rows,
        PromptFormat.of(wanted.dataset),
        train,
        evaluation,
        max_length=wanted.training.max_length,
        unused_fields=tokenizer.unused_fields(),
    )
    # After the tokenizer's count of unused fields, which this row would raise.
    first = tokenizer.tokenize(rows.train[:1], each_answer=True)[0]
    if isinstance(first, TokenizedExample):
        found.spans = tokenizer.text_of(first)
    check_tokens(_limits(wanted), tokenizer.special_tokens(), train, evaluation)


def _limits(wanted: _Wanted) -> "TokenLimits":
    """Which tokens the base supports; nothing is known without its configuration."""
    from edgetune_jobs.data.row_checks import TokenLimits
    from edgetune_jobs.errors import BASE_FIELD
    from edgetune_jobs.models.folder import CONFIG, LocalModelFolder
    from edgetune_jobs.models.inspection import token_limits
    from edgetune_jobs.models.weights import read_json

    if wanted.model is None or not (wanted.model / CONFIG).is_file():
        return TokenLimits(vocabulary=None, max_positions=None)
    return token_limits(read_json(LocalModelFolder(wanted.model, BASE_FIELD), CONFIG))


def _plain_spans(prompt_format: Any, example: "Example") -> "tuple[Sequence[Span], str]":
    """The text of an example without a tokenizer, and how it differs from that of a training."""
    from edgetune_contract.spec import CHAT_TEMPLATE
    from edgetune_jobs.data.chat.renderers import Span, TextRenderer
    from edgetune_jobs.data.prompt_format import INSTRUCTION

    is_text = prompt_format.format is RowFormat.TEXT
    if is_text or (prompt_format.format is RowFormat.INSTRUCTION and prompt_format.template != CHAT_TEMPLATE):
        plain = prompt_format.model_copy(update={"template": f"{{{INSTRUCTION}}}"}) if is_text else prompt_format
        return TextRenderer(plain).render(example), ""
    turns = [
        Span(f"{turn.role}: {_said(turn.content, turn.fields)}\n", turn.role == "assistant" and turn.is_learned)
        for turn in example.prompt
    ]
    spans = (*turns, Span(f"assistant: {_said(example.response, example.response_fields)}", is_learned=True))
    return spans, "without the base model's chat template: name its folder with --model"


def _said(content: str, fields: Mapping[str, Any]) -> str:
    """A message's text and its calls of functions, each as JSON."""
    calls = [json.dumps(call.get("function", call), ensure_ascii=False) for call in fields.get("tool_calls") or ()]
    return " ".join([content, *calls] if content else calls)


def _json(found: _Found) -> dict[str, Any]:
    tokens = found.tokens
    counted = {} if tokens is None else {"tokens": {"total": tokens.kept, "longest": tokens.lengths.longest}}
    return {
        "valid": not found.errors,
        "errors": found.errors.splitlines(),
        "trainRows": found.train,
        "evalRows": found.evaluation,
        "evalIsHeldOut": found.is_split_off,
        "warnings": found.warnings,
        **counted,
        "example": {
            "place": found.example,
            "spans": [{"text": span.text, "learned": span.is_learned} for span in found.spans],
        },
    }


def _print(found: _Found) -> None:
    console = SafeConsole(highlight=False)
    for line in _counts(found):
        console.print(line)
    for warning in found.warnings:
        console.print(f"Warning: {warning}", style="yellow")
    if found.spans:
        rendering = f" ({found.rendering})" if found.rendering else ""
        console.print(f"\nExample: {found.example}{rendering}", style="bold")
        for label, line in _example_lines(found.spans):
            console.print(Text(f"{label:8} {line}", style="green" if label == _LEARNED else "dim"))
    if found.errors:
        say(found.errors, fg=typer.colors.RED, err=True)


def _counts(found: _Found) -> Iterator[str]:
    if found.train:
        held_out = " held out" if found.is_split_off else ""
        yield f"{found.train:,} training rows, {found.evaluation:,} evaluation rows{held_out}"
    if (tokens := found.tokens) is not None and tokens.examples:
        mean = tokens.kept / tokens.examples
        yield f"{tokens.kept:,} tokens to train on: {mean:,.0f} a row, {tokens.lengths.longest:,} in the longest"
    elif found.train:
        yield "Tokens were not counted: no base model with a tokenizer is here"


def _example_lines(spans: "Sequence[Span]") -> Iterator[tuple[str, str]]:
    """Lines of an example, each with what the model does with it."""
    left = _LONGEST_SHOWN
    for span in spans:
        label = _LEARNED if span.is_learned else _PROMPT
        shown = span.text[:left]
        left -= len(shown)
        for line in shown.splitlines():
            yield label, line
        if len(shown) < len(span.text):
            yield label, f"… {len(span.text) - len(shown):,} more characters"
            left = 0

"""`edgetune init`: a commented object and two sample rows, from five questions or from options."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from edgetune_cli.documents.single import resolve_relative_uris
from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.output import note, say, working
from edgetune_cli.store.commands import call_jobs
from edgetune_cli.store.digest import revision_of
from edgetune_cli.store.drafting.object_text import Answers, Device, object_text
from edgetune_contract.request import StoreLocation
from edgetune_contract.spec import HUB_SCHEME, RowFormat
from edgetune_contract.values.suggestions import did_you_mean, missing_path
from edgetune_operator.api.spec_check import check_object
from edgetune_operator.api.yaml_files import parse_yaml

_DEFAULT_BASE = "./base"
_DEFAULT_DATA = "./train.jsonl"
_SUFFIX = ".jsonl"
_LONGEST_NAME = 63
_UNUSABLE = ExitStatus.UNUSABLE_INPUT
_ANY_COMMIT = "0" * 40
_Choice = TypeVar("_Choice", bound=StrEnum)


_ROWS: Mapping[RowFormat, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    RowFormat.INSTRUCTION: (
        {
            "instruction": "Ticket: I was charged twice this month. Which team?",
            "response": "billing",
            "expected_keyword": "billing",
        },
        {
            "instruction": "Ticket: The app closes when I upload a photo. Which team?",
            "response": "mobile",
            "expected_keyword": "mobile",
        },
    ),
    RowFormat.CHAT: (
        {
            "messages": [
                {"role": "user", "content": "I was charged twice this month."},
                {"role": "assistant", "content": "That is for billing. I have opened a ticket there."},
            ],
            "expected_keyword": "billing",
        },
        {
            "messages": [
                {"role": "user", "content": "The app closes when I upload a photo."},
                {"role": "assistant", "content": "That is for the mobile team. I have opened a ticket there."},
            ],
            "expected_keyword": "mobile",
        },
    ),
    RowFormat.TEXT: (
        {"text": "The pump is stopped before its filter is changed. Close the inlet valve first."},
        {"text": "A bearing that is warmer than 80 °C is replaced at the next stop, not later."},
    ),
}


def init(
    folder: Annotated[Path, typer.Argument(help="Folder for the files.")] = Path(),
    name: Annotated[str | None, typer.Option(help="Name of the model.", show_default=False)] = None,
    base: Annotated[
        str | None, typer.Option(help="Base model: hf://organization/name, s3://… or a folder.", show_default=False)
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Commit of an hf:// model; default: that of main now.", show_default=False)
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="Training data: a file, a folder or s3://…", show_default=False)
    ] = None,
    row_format: Annotated[RowFormat | None, typer.Option("--format", help="What a row is.", show_default=False)] = None,
    device: Annotated[
        Device | None,
        typer.Option(
            help="Where it will run: cpu (transformers), board (llama.cpp) or server (vLLM).", show_default=False
        ),
    ] = None,
    min_score: Annotated[float, typer.Option(help="Gate: least score of the edge model, 0 to 1.", min=0, max=1)] = 0.8,
) -> None:
    """Write a commented object and, if there is no data, two sample rows. Overwrites nothing.

    On a terminal it asks for what the options leave out: name, base model, data, format of the rows, device. Elsewhere
    it uses defaults. The object has gates, so that no model is published whatever it scores.
    """
    given = {"name": name, "base": base, "train": train, "row_format": row_format, "device": device}
    name_of_folder = _as_name(folder.resolve().name)
    answers = Answers(name_of_folder, _DEFAULT_BASE, revision or "", _DEFAULT_DATA, min_score=min_score)
    # Options first: after a wrong one, no answer is lost.
    for question in sorted(_QUESTIONS, key=lambda each: given[each.answer] is None):
        value = given[question.answer]
        answers = _asked(question, folder, answers) if value is None else _given(question, folder, answers, value)
    text = object_text(answers)
    if problems := check_object(_as_in_a_run(text, folder)):
        fail("\n".join(map(str, problems)), _UNUSABLE)
    _write(folder, answers, text)


class _Unusable(Exception):
    """An answer that cannot be used; the message says why."""


def _given(question: "_Question", folder: Path, answers: Answers, value: str) -> Answers:
    """The answers with one more; exits with an error if it cannot be used."""
    try:
        return question.accept(folder, answers, value)
    except _Unusable as error:
        fail(str(error), _UNUSABLE)


def _asked(question: "_Question", folder: Path, answers: Answers) -> Answers:
    """The answers with one more: on a terminal asked for until it can be used, elsewhere the default."""
    default = str(question.default(answers))
    if not sys.stdin.isatty():
        return _given(question, folder, answers, default)
    while True:
        value = str(typer.prompt(question.text, default=default, err=True)).strip()
        try:
            return question.accept(folder, answers, value)
        except _Unusable as error:
            say(str(error), fg=typer.colors.RED, err=True)
        except typer.Exit:  # the hub does not have it, or does not answer, which was said
            continue


def _with_name(folder: Path, answers: Answers, value: str) -> Answers:
    changed = replace(answers, name=value)
    _check(folder, changed, "metadata.name")
    path = folder / f"{value}.yaml"
    if path.exists():
        raise _Unusable(f"{path} exists, and nothing is overwritten: name another model or folder")
    return changed


def _with_base(folder: Path, answers: Answers, value: str) -> Answers:
    changed = replace(answers, base=_seen_from(folder, value))
    is_pinned = not changed.base.startswith(HUB_SCHEME) or changed.revision
    _check(folder, changed if is_pinned else replace(changed, revision=_ANY_COMMIT), "spec.baseModel")
    return changed if is_pinned else _pinned(changed)


def _with_train(folder: Path, answers: Answers, value: str) -> Answers:
    changed = replace(answers, train=_seen_from(folder, value))
    _check(folder, changed, "spec.dataset.train")
    if "://" in changed.train:
        return changed
    data = folder / changed.train
    if data.exists():
        return replace(changed, columns=_columns(data))
    beside = [each.name for place in (data, Path(value)) for each in _files_beside(place)]
    message = missing_path(data, data.name, beside)
    if "did you mean" in message:
        raise _Unusable(message)
    if data.suffix != _SUFFIX:
        raise _Unusable(f"{data} does not exist; name a file that ends in {_SUFFIX} to get sample rows")
    return changed


def _files_beside(path: Path) -> list[Path]:
    return sorted(each for each in path.parent.iterdir() if each.is_file()) if path.parent.is_dir() else []


def _columns(data: Path) -> tuple[str, ...]:
    """Names of the columns of the first row; empty if there is none that can be read: `data check` says why."""
    from edgetune_jobs.data.columns import columns_of

    try:
        return call_jobs(lambda: columns_of(data))
    except typer.Exit:
        return ()


def _check(folder: Path, answers: Answers, field: str) -> None:
    """
    Raises:
        _Unusable: the object would have problems in this field.
    """
    problems = check_object(_as_in_a_run(object_text(answers), folder))
    if found := [str(problem) for problem in problems if problem.path.startswith(field)]:
        raise _Unusable("\n".join(found))


def _choice(text: str, choices: type[_Choice], value: str) -> _Choice:
    """One of a few values, in upper or lower case."""
    values = {each.value.lower(): each for each in choices}
    if value.lower() not in values:
        raise _Unusable(f"{text}: {value!r} is none of {', '.join(values)}{did_you_mean(value, values)}")
    return values[value.lower()]


def _probable_format(answers: Answers) -> RowFormat:
    from edgetune_jobs.data.columns import probable_format

    return probable_format(answers.columns)


@dataclass(frozen=True)
class _Question:
    """A question, and how its answer is checked."""

    answer: str
    """Name of the option."""

    text: str
    default: Callable[[Answers], str]
    accept: Callable[[Path, Answers, str], Answers]
    """The answers with this one; raises _Unusable if it cannot be used."""


_ROWS_TEXT, _DEVICE_TEXT = "What is a row", "Where will it run"
_QUESTIONS = (
    _Question("name", "Name of the model", lambda answers: answers.name, _with_name),
    _Question(
        "base", "Base model: a folder, hf://organization/name or s3://…", lambda answers: answers.base, _with_base
    ),
    _Question("train", "Training data: a file, a folder or s3://…", lambda answers: answers.train, _with_train),
    _Question(
        "row_format",
        f"{_ROWS_TEXT} ({', '.join(RowFormat)})",
        _probable_format,
        lambda _, answers, value: replace(answers, row_format=_choice(_ROWS_TEXT, RowFormat, value)),
    ),
    _Question(
        "device",
        f"{_DEVICE_TEXT} ({', '.join(Device)})",
        lambda answers: answers.device,
        lambda _, answers, value: replace(answers, device=_choice(_DEVICE_TEXT, Device, value)),
    ),
)


def _seen_from(folder: Path, place: str) -> str:
    """The place for an object in `folder`: a path that only the current folder has becomes an absolute one."""
    if "://" in place or (folder / place).exists() or not Path(place).exists():
        return place
    return str(Path(place).resolve())


def _pinned(answers: Answers) -> Answers:
    """The answers with the commit that the hub's branch main is at."""
    with working("Asking the hub for the commit"):
        revision, _ = call_jobs(lambda: revision_of(answers.base, StoreLocation(uri="s3://none")))
    note(f"{answers.base} is pinned to commit {revision}, where main is now")
    return replace(answers, revision=revision)


def _as_name(text: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_LONGEST_NAME].strip("-")
    return name or "my-model"


def _as_in_a_run(text: str, folder: Path) -> Any:
    """The document as `edgetune run` reads it."""
    document = parse_yaml(text)
    assert document is not None  # noqa: S101 - the text is not empty
    resolve_relative_uris(document.value, folder.resolve())
    return document.value


def _write(folder: Path, answers: Answers, text: str) -> None:
    files = {f"{answers.name}.yaml": text}
    data = folder / answers.train
    if "://" not in answers.train and not data.exists():
        files[answers.train] = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _ROWS[answers.row_format])
    existing = [str(folder / name) for name in files if (folder / name).exists()]
    if existing:
        fail(f"{', '.join(existing)} exists, and nothing is overwritten: name another model or folder", _UNUSABLE)
    try:
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
            say(str(path))
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}", _UNUSABLE)
    place = folder / f"{answers.name}.yaml"
    if "://" not in answers.base and not (folder / answers.base).exists():
        note(f"Put a base model into {folder / answers.base}: config.json, tokenizer and .safetensors files")
    first = f" put your rows into {folder / answers.train}, then" if answers.train in files else ""
    note(f"Next:{first}\n  edgetune data check -f {place}\n  edgetune plan -f {place}\n  edgetune run -f {place}")

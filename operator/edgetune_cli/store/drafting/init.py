"""`edgetune init`: a commented object and two sample rows, from five questions or from options."""

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from edgetune_cli.documents.single import resolve_relative_uris
from edgetune_cli.exits import ExitStatus, fail
from edgetune_cli.output import note, say, working
from edgetune_cli.store.commands import call_jobs
from edgetune_cli.store.digest import revision_of
from edgetune_contract.request import StoreLocation
from edgetune_contract.spec import HUB_SCHEME, EdgeFormat, RowFormat
from edgetune_contract.values.suggestions import did_you_mean
from edgetune_operator.api.spec_check import check_object
from edgetune_operator.api.yaml_files import parse_yaml, yaml_text

_DEFAULT_BASE = "./base"
_DEFAULT_DATA = "./train.jsonl"
_SUFFIX = ".jsonl"
_LONGEST_NAME = 63
_UNUSABLE = ExitStatus.UNUSABLE_INPUT


class Device(StrEnum):
    """Where the model will run."""

    CPU = "cpu"
    BOARD = "board"
    SERVER = "server"


_FORMATS: Mapping[Device, tuple[EdgeFormat, str]] = {
    Device.CPU: (EdgeFormat.BITSANDBYTES_INT8, "transformers on a CPU or GPU"),
    Device.BOARD: (EdgeFormat.GGUF_Q8_0, "llama.cpp on a board or a laptop"),
    Device.SERVER: (EdgeFormat.COMPRESSED_TENSORS_W8A8, "vLLM on a GPU"),
}

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


@dataclass(frozen=True)
class Answers:
    """The answers to the five questions, and what follows from them."""

    name: str
    base: str
    revision: str
    train: str
    row_format: RowFormat
    device: Device
    min_score: float


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
    ask = _question if sys.stdin.isatty() else _default
    default_name = _as_name(folder.resolve().name)
    answers = Answers(
        name=name or ask("Name of the model", default_name),
        base=base or ask("Base model: a folder, hf://organization/name or s3://…", _DEFAULT_BASE),
        revision=revision or "",
        train=train or ask("Training data: a file, a folder or s3://…", _DEFAULT_DATA),
        row_format=row_format or _choice(ask, "What is a row", RowFormat),
        device=device or _choice(ask, "Where will it run", Device),
        min_score=min_score,
    )
    answers = replace(answers, base=_seen_from(folder, answers.base), train=_seen_from(folder, answers.train))
    if answers.base.startswith(HUB_SCHEME) and not answers.revision:
        answers = _pinned(answers)
    text = object_text(answers)
    problems = check_object(_as_in_a_run(text, folder))
    if problems:
        fail("\n".join(map(str, problems)), ExitStatus.UNUSABLE_INPUT)
    _write(folder, answers, text)


def _seen_from(folder: Path, place: str) -> str:
    """The place for an object in `folder`: a path that only the current folder has becomes an absolute one."""
    if "://" in place or (folder / place).exists() or not Path(place).exists():
        return place
    return str(Path(place).resolve())


def _question(text: str, default: str) -> str:
    answer: str = typer.prompt(text, default=default, err=True)
    return answer.strip()


def _default(_: str, default: str) -> str:
    return default


def _choice(ask: Callable[[str, str], str], text: str, choices: type[StrEnum]) -> Any:
    """One of a few values, in upper or lower case."""
    values = {each.value.lower(): each for each in choices}
    default = next(iter(choices)).value
    answer = ask(f"{text} ({', '.join(each.value for each in choices)})", default)
    if answer.lower() not in values:
        meant = did_you_mean(answer, values)
        fail(f"{text}: {answer!r} is none of {', '.join(values)}{meant}", ExitStatus.UNUSABLE_INPUT)
    return values[answer.lower()]


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
        if data.suffix != _SUFFIX:
            fail(f"{data} does not exist; name a file that ends in {_SUFFIX} to get sample rows", _UNUSABLE)
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


def object_text(answers: Answers) -> str:
    """The YAML of the object, with comments."""
    edge_format, where = _FORMATS[answers.device]
    revision = f"\n    revision: {answers.revision}" if answers.revision else ""
    template = _TEXT_GATES if answers.row_format is RowFormat.TEXT else _SCORE_GATES
    gates = template.format(min_score=f"{answers.min_score:g}")
    return f"""# {answers.name}: run it with `edgetune run -f {answers.name}.yaml`. All fields: docs/reference.md
apiVersion: edgetune.dev/v1alpha1
kind: LoraFineTune
metadata:
  name: {_quoted(answers.name)}
spec:
  # A folder in the layout of Hugging Face, hf://organization/name with the commit as revision, or s3://bucket/prefix.
  baseModel:
    uri: {_quoted(answers.base)}{revision}
  dataset:
    # {_FORMAT_COMMENTS[answers.row_format]}
    format: {answers.row_format}
    train:
      uri: {_quoted(answers.train)}
    # Rows to score the models on. Without eval, so many percent of the training rows are held out.
    evalSplitPercent: 10
  # The adapter: a higher rank and AllLinear learn more, and take more memory.
  lora:
    rank: 16
    alpha: 32
    targetModules: AllLinear
  training:
    epochs: 3
    learningRate: 0.0002 # a small model needs more, such as 0.001
    batchSize: 16
    maxLength: 1024 # tokens; longer rows are truncated
  quantization:
    formats: [{edge_format}] # {where}
  evaluation:
    maxNewTokens: 64
{gates}"""


_FORMAT_COMMENTS: Mapping[RowFormat, str] = {
    RowFormat.INSTRUCTION: "A row is {instruction, response}; expected_keyword lists what a right answer contains.",
    RowFormat.CHAT: "A row is {messages: [{role, content}, …]}; all answers of the assistant are learned.",
    RowFormat.TEXT: "A row is {text}, all of which is learned.",
}
_SCORE_GATES = """    # A model is published only if these hold. A score is a share of keywords, or of equal answers.
    gates:
      minScore: {min_score}
      minImprovement: 0.05 # the tuned model is better than the base by 5 percentage points
      maxDrop: 0.05 # merging and quantization cost at most 5 percentage points
"""
_TEXT_GATES = """    # Models of plain text have no score for a gate: look at the losses before you use one.
    gates: {{}}
"""


def _quoted(text: str) -> str:
    """A text as a scalar of YAML, such as 'true' for the name true."""
    return json.dumps(text) if " " in text else yaml_text([text]).removeprefix("- ").strip()

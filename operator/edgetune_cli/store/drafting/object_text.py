"""The object that `edgetune init` writes: YAML with comments, from the answers to its questions."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from edgetune_contract.spec import DEFAULT_TEMPLATE, EdgeFormat, RowFormat
from edgetune_contract.values.text import escaped_line
from edgetune_operator.api.yaml_files import yaml_text

_MOST_COLUMNS = 8
_PLAIN_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


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


@dataclass(frozen=True)
class Answers:
    """The answers to the five questions, and what follows from them."""

    name: str
    base: str
    revision: str
    train: str
    columns: tuple[str, ...] = ()
    """Of the data that is there; empty if they are not known."""

    row_format: RowFormat = RowFormat.INSTRUCTION
    device: Device = Device.CPU
    min_score: float = 0.8


def object_text(answers: Answers) -> str:
    """The YAML of the object, with comments."""
    edge_format, where = _FORMATS[answers.device]
    revision = f"\n    revision: {_quoted(answers.revision)}" if answers.revision else ""
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
{_columns_text(answers)}    train:
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


def _columns_text(answers: Answers) -> str:
    """The lines with fields and template: as comments, unless the data has other columns and it is plain which."""
    from edgetune_jobs.data.columns import plain_fields

    row_format, examples = answers.row_format, _OTHER_COLUMNS[answers.row_format]
    fields = plain_fields(row_format, answers.columns) if answers.columns else {}
    shown = ", ".join(escaped_line(each[:64]) for each in answers.columns[:_MOST_COLUMNS])
    if fields:
        lines = f"    # The data has: {shown}\n    fields: {_flow(fields)}\n"
    elif fields is None:
        lines = f"    # Say which columns are meant. The data has: {shown}\n    # fields: {_flow(examples)}\n"
    else:
        lines = f"    # fields: {_flow(examples)} # if the columns have other names\n"
    if row_format is RowFormat.INSTRUCTION:
        lines += "    # The prompt, which may also contain other columns by their names in braces, or ChatTemplate.\n"
        lines += f"    # template: {json.dumps(DEFAULT_TEMPLATE)}\n"
    return lines


def _flow(fields: Mapping[str, str]) -> str:
    """A mapping of YAML in one line."""
    pairs = (
        f"{role}: {name if _PLAIN_COLUMN.fullmatch(name) and _quoted(name) == name else json.dumps(name)}"
        for role, name in fields.items()
    )
    return f"{{{', '.join(pairs)}}}"


_OTHER_COLUMNS: Mapping[RowFormat, Mapping[str, str]] = {
    RowFormat.INSTRUCTION: {"instruction": "question", "response": "answer"},
    RowFormat.CHAT: {"messages": "dialog"},
    RowFormat.TEXT: {"text": "content"},
}
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

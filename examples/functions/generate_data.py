"""Makes train.jsonl and eval.jsonl: conversations in which a plant's assistant calls one of two functions.

    python examples/functions/generate_data.py [FOLDER]

Each line has `tools`, the functions as JSON schemas, and `messages`: a question, the call, what the function returned,
and the answer. All rows have the same tools, which therefore travel with the model. The evaluation rows have machines
and questions that no training row has. Only the last answer of a row is scored, so each conversation is there twice: up
to its call, and whole.

The rows depend only on SEED. The script needs only the standard library.
"""

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEED = 11
TRAIN_ROWS = 400
EVAL_CONVERSATIONS = 32


def _function(name: str, description: str) -> dict[str, Any]:
    machine = {"type": "string", "description": "The machine's number, such as P-17."}
    parameters = {"type": "object", "properties": {"machine": machine}, "required": ["machine"]}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    _function("read_sensor", "Read the sensors of a machine now."),
    _function("last_service", "When a machine was serviced last."),
]


@dataclass(frozen=True)
class Wording:
    """The questions for each function, and the machines."""

    numbers: range
    sensor: tuple[str, ...]
    service: tuple[str, ...]


TRAIN = Wording(
    numbers=range(1, 60),
    sensor=(
        "How is {} running?",
        "Is {} too hot?",
        "What do the sensors of {} show?",
        "Check {} for me.",
        "How much does {} shake?",
        "A reading of {}, please.",
    ),
    service=(
        "When was {} serviced?",
        "Is {} due for service?",
        "How old is the oil in {}?",
        "Has a technician looked after {} this year?",
        "When was the last service of {}?",
        "On what date was {} maintained?",
    ),
)
EVAL = Wording(
    numbers=range(60, 100),
    sensor=("Give me the readings of {}.", "Does {} vibrate?"),
    service=("When did a technician last look at {}?", "Date of the last service of {}, please."),
)


def rows(count: int, wording: Wording, generator: random.Random) -> list[dict[str, Any]]:
    """`count` distinct conversations, half of them about each function."""
    seen: set[str] = set()
    made: list[dict[str, Any]] = []
    while len(made) < count:
        name = TOOLS[len(made) % len(TOOLS)]["function"]["name"]
        machine = f"{generator.choice('PFCV')}-{generator.choice(wording.numbers):02d}"
        questions = wording.sensor if name == "read_sensor" else wording.service
        question = generator.choice(questions).format(machine)
        if question not in seen:
            seen.add(question)
            made.append({"tools": TOOLS, "messages": _conversation(name, machine, question, generator)})
    generator.shuffle(made)
    return made


def _conversation(name: str, machine: str, question: str, generator: random.Random) -> list[dict[str, Any]]:
    if name == "read_sensor":
        heat, vibration = generator.randint(40, 130), round(generator.uniform(0.5, 12), 1)
        state = "too hot" if heat > 90 else "within its limits"
        found: dict[str, Any] = {"temperature": heat, "vibration": vibration, "state": state}
        answer = f"{machine} has {heat} °C and vibrates with {vibration} mm/s: it is {state}."
    else:
        days = generator.randint(5, 400)
        state = "due" if days > 180 else "not due"
        found = {"days": days, "state": state}
        answer = f"{machine} was serviced {days} days ago: it is {state}."
    call = {"type": "function", "function": {"name": name, "arguments": {"machine": machine}}}
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": name, "content": json.dumps(found)},
        {"role": "assistant", "content": answer},
    ]


def _up_to_the_call(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"messages": row["messages"][:2]}


def write(path: Path, content: list[dict[str, Any]]) -> None:
    """Write one JSON object per line, in UTF-8."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")


def main(folder: Path) -> None:
    """Write both files into `folder`."""
    generator = random.Random(SEED)  # noqa: S311 - sample data, no secrets
    write(folder / "train.jsonl", rows(TRAIN_ROWS, TRAIN, generator))
    evaluation = rows(EVAL_CONVERSATIONS, EVAL, generator)
    write(folder / "eval.jsonl", [part for row in evaluation for part in (_up_to_the_call(row), row)])


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)

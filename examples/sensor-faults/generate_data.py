"""Makes train.jsonl and eval.jsonl: sensor readings of a plant, each with its fault and the action to take.

    python examples/sensor-faults/generate_data.py [FOLDER]

Each line is one row, a JSON object:

    {"instruction": "Pump P-17 in hall 2 reports strong vibration (9.3 mm/s). Name the fault and the action.",
     "response": "Fault: bearing wear. Action: replace the bearing.",
     "expected_keyword": ["bearing wear", "replace the bearing"]}

Which reading indicates which fault is this plant's own convention: a model that was not trained on these rows cannot
name both. The evaluation rows ask for the same faults with unit numbers, sites, questions and symptoms that no training
row has, so a model that only memorized sentences fails them.

The rows depend only on SEED. The script needs only the standard library.
"""

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SEED = 20
TRAIN_ROWS = 704
EVAL_ROWS = 96


@dataclass(frozen=True)
class Fault:
    """One fault, the technician's action, and the reading that indicates the fault."""

    name: str
    action: str
    unit: str
    low: float
    high: float
    """The reading is between low and high, in `unit`."""

    train_symptoms: tuple[str, ...]
    eval_symptoms: tuple[str, ...]


@dataclass(frozen=True)
class Wording:
    """The parts of a question besides the symptom."""

    numbers: range
    sites: tuple[str, ...]
    questions: tuple[str, ...]


FAULTS = (
    Fault(
        name="bearing wear",
        action="replace the bearing",
        unit="mm/s",
        low=7.0,
        high=15.0,
        train_symptoms=(
            "vibration above the limit",
            "strong vibration",
            "a vibration alarm",
            "vibration rising for two days",
            "vibration twice as high as last week",
            "unusual vibration at full load",
        ),
        eval_symptoms=(
            "heavy vibration since this morning",
            "a vibration level that keeps climbing",
            "excessive vibration",
        ),
    ),
    Fault(
        name="fouled cooler",
        action="clean the cooler",
        unit="°C",
        low=95.0,
        high=140.0,
        train_symptoms=(
            "temperature above the limit",
            "high temperature",
            "a temperature alarm",
            "temperature rising every hour",
            "temperature much higher than usual",
            "too hot a temperature at half load",
        ),
        eval_symptoms=(
            "an excessive temperature",
            "a temperature that keeps climbing",
            "temperature far over its normal range",
        ),
    ),
    Fault(
        name="seal leak",
        action="replace the seal",
        unit="bar",
        low=0.4,
        high=1.9,
        train_symptoms=(
            "pressure below the limit",
            "low pressure",
            "a pressure alarm",
            "pressure falling since last night",
            "a slow loss of pressure",
            "pressure lower than usual",
        ),
        eval_symptoms=("a pressure that keeps sinking", "insufficient pressure", "a sudden pressure drop"),
    ),
    Fault(
        name="jammed rotor",
        action="free the rotor",
        unit="A",
        low=40.0,
        high=90.0,
        train_symptoms=(
            "motor current above the limit",
            "high current",
            "a current alarm",
            "current rising at every start",
            "current twice its rated value",
            "more current than usual",
        ),
        eval_symptoms=("excessive current", "a current that keeps climbing", "current far over its rating"),
    ),
    Fault(
        name="clogged strainer",
        action="flush the strainer",
        unit="l/min",
        low=3.0,
        high=11.0,
        train_symptoms=(
            "flow below the limit",
            "low flow",
            "a flow alarm",
            "flow falling since last night",
            "only half of the usual flow",
            "less flow than last week",
        ),
        eval_symptoms=("hardly any flow", "a flow that keeps sinking", "insufficient flow"),
    ),
    Fault(
        name="loose terminal",
        action="tighten the terminal",
        unit="V",
        low=140.0,
        high=190.0,
        train_symptoms=(
            "voltage below the limit",
            "low voltage",
            "a voltage alarm",
            "voltage falling under load",
            "voltage going up and down",
            "voltage lower than usual",
        ),
        eval_symptoms=("a sagging voltage", "insufficient voltage", "a voltage that jumps about"),
    ),
    Fault(
        name="water ingress",
        action="dry the housing",
        unit="%",
        low=86.0,
        high=99.0,
        train_symptoms=(
            "humidity above the limit",
            "high humidity",
            "a humidity alarm",
            "humidity rising for two days",
            "humidity inside the cabinet much higher than usual",
            "too much humidity after rain",
        ),
        eval_symptoms=("excessive humidity", "a humidity that keeps climbing", "humidity far over its normal range"),
    ),
    Fault(
        name="belt slip",
        action="tension the belt",
        unit="rpm",
        low=310.0,
        high=690.0,
        train_symptoms=(
            "speed below the limit",
            "low speed",
            "a speed alarm",
            "speed falling under load",
            "a lower speed than commanded",
            "speed going up and down",
        ),
        eval_symptoms=("a speed that keeps sinking", "insufficient speed", "a speed that hunts around its setpoint"),
    ),
)

DEVICES = (("Pump", "P"), ("Fan", "F"), ("Compressor", "C"), ("Conveyor", "V"), ("Mixer", "M"), ("Blower", "B"))

TRAIN_WORDING = Wording(
    numbers=range(1, 60),
    sites=("hall 1", "hall 2", "line 4", "line 5", "the boiler house", "the roof plant", "the loading dock"),
    questions=(
        "{device} in {site}: {symptom}, {reading}. Which fault is it, and what should be done?",
        "{device} in {site} reports {symptom} ({reading}). Name the fault and the action.",
        "Sensor log of {device}, {site}: {symptom}, reading {reading}. Diagnose.",
        "We see {symptom} on {device} in {site}. The sensor shows {reading}. What is wrong?",
        "Explain this alert: {symptom}, {reading}, {device}, {site}.",
        "The reading of {device} is {reading}, {symptom}. What is the fault?",
    ),
)
EVAL_WORDING = Wording(
    numbers=range(60, 100),
    sites=("hall 9", "line 12", "the cold store", "the paint shop", "the pump room"),
    questions=(
        "At {device} in {site} there is {symptom}; the meter reads {reading}. What has failed, and what do we do?",
        "Give a diagnosis. Site: {site}. Unit: {device}. Observation: {symptom}. Value: {reading}.",
        "An operator noticed {symptom} at {device} ({reading}, {site}). Tell the technician the cause and the remedy.",
        "{reading} at {device}: {symptom}. Please assess.",
    ),
)


def rows(count: int, wording: Wording, generator: random.Random, *, evaluation: bool) -> Iterator[dict[str, object]]:
    """`count` distinct rows that cycle through the faults, so that each fault has the same number of rows."""
    seen: set[str] = set()
    while len(seen) < count:
        fault = FAULTS[len(seen) % len(FAULTS)]
        instruction = _question(fault, wording, generator, fault.eval_symptoms if evaluation else fault.train_symptoms)
        if instruction in seen:
            continue
        seen.add(instruction)
        yield {
            "instruction": instruction,
            "response": f"Fault: {fault.name}. Action: {fault.action}.",
            "expected_keyword": [fault.name, fault.action],
        }


def _question(fault: Fault, wording: Wording, generator: random.Random, symptoms: tuple[str, ...]) -> str:
    device, letter = generator.choice(DEVICES)
    question = generator.choice(wording.questions).format(
        device=f"{device} {letter}-{generator.choice(wording.numbers):02d}",
        site=generator.choice(wording.sites),
        symptom=generator.choice(symptoms),
        reading=f"{generator.uniform(fault.low, fault.high):.1f} {fault.unit}",
    )
    return question[0].upper() + question[1:]


def write(path: Path, content: list[dict[str, object]]) -> None:
    """Write one JSON object per line, in UTF-8."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")


def main(folder: Path) -> None:
    """Write both files into `folder`."""
    generator = random.Random(SEED)  # noqa: S311 - sample data, no secrets
    train = list(rows(TRAIN_ROWS, TRAIN_WORDING, generator, evaluation=False))
    # Training shuffles the rows anyway; this avoids a visible pattern in the file.
    generator.shuffle(train)
    write(folder / "train.jsonl", train)
    write(folder / "eval.jsonl", list(rows(EVAL_ROWS, EVAL_WORDING, generator, evaluation=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)

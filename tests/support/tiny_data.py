"""A tiny sensor-fault task: a corpus for pre-training, and instructions that the corpus does not answer.

The corpus has all words of the task, but neither the instruction format nor the mapping from symptoms to faults: a
model pre-trained on it writes plausible log lines and cannot answer.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATE = "### Instruction:\n{instruction}\n\n### Response:\n"

_DEVICES = ("pump", "fan", "motor", "valve", "compressor", "conveyor", "boiler", "chiller", "turbine", "gearbox")
_SITES = ("north hall", "south hall", "line 3", "line 7", "roof unit", "basement", "dock", "cold store")
_FAULTS = (
    (("vibration above limit", "strong vibration", "vibration alarm"), "bearing wear", "replace bearing"),
    (("temperature above limit", "high temperature", "temperature alarm"), "overheating", "clean cooler"),
    (("pressure below limit", "low pressure", "pressure drop"), "seal leak", "replace seal"),
    (("current above limit", "high current", "current alarm"), "overload", "reduce load"),
    (("flow below limit", "low flow", "flow drop"), "clogged filter", "clean filter"),
    (("noise above limit", "grinding noise", "noise alarm"), "gear damage", "inspect gear"),
    (("speed below limit", "low speed", "speed drop"), "belt slip", "tighten belt"),
    (("voltage below limit", "low voltage", "voltage drop"), "power fault", "check supply"),
    (("humidity above limit", "high humidity", "humidity alarm"), "water ingress", "dry housing"),
    (("level below limit", "low level", "level drop"), "oil loss", "refill oil"),
)
_QUESTIONS = (
    "{device} {unit} at {site} reports {symptom}. What is the fault?",
    "Sensor log: {device} {unit}, {site}, {symptom}, value {value}. Diagnose.",
    "At {site} the {device} {unit} shows {symptom} ({value}). Give fault and action.",
    "Explain the alert: {symptom} on {device} {unit}.",
)


@dataclass(frozen=True)
class Example:
    """One instruction with its response and expected keywords."""

    instruction: str
    response: str
    keywords: tuple[str, ...]


def training_examples(count: int, seed: int = 0) -> list[Example]:
    """Examples about the units 00 to 59."""
    return _examples(count, random.Random(seed), [f"{unit:02d}" for unit in range(60)])


def held_out_examples(count: int, seed: int = 0) -> list[Example]:
    """Examples about the units 60 to 99, which no training example contains."""
    return _examples(count, random.Random(seed + 10_000), [f"{unit:02d}" for unit in range(60, 100)])


def corpus(lines: int, seed: int) -> list[str]:
    """Log lines for pre-training."""
    generator = random.Random(seed)
    units = [f"{unit:02d}" for unit in range(100)]
    return [_log_line(generator, units) for _ in range(lines)]


def write_prepared(
    folder: Path, tokenizer: "PreTrainedTokenizerBase", training: Sequence[Example], held_out: Sequence[Example]
) -> Path:
    """Write the artifact `prepared` of these examples, as the stage prepare does."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir(parents=True, exist_ok=True)
    prompts = [_prompt_ids(tokenizer, example) for example in training]
    completions = [_completion_ids(tokenizer, example) for example in training]
    pairs = list(zip(prompts, completions, strict=True))
    train = {
        "input_ids": pyarrow.array([p + c for p, c in pairs], pyarrow.list_(pyarrow.int32())),
        "completion_mask": pyarrow.array(
            [[0] * len(p) + [1] * len(c) for p, c in pairs], pyarrow.list_(pyarrow.int8())
        ),
    }
    pyarrow.parquet.write_table(pyarrow.table(train), folder / "train.parquet")
    evaluation = {
        "prompt": pyarrow.array([TEMPLATE.format(instruction=e.instruction) for e in held_out], pyarrow.string()),
        "prompt_ids": pyarrow.array([_prompt_ids(tokenizer, e) for e in held_out], pyarrow.list_(pyarrow.int32())),
        "completion_ids": pyarrow.array(
            [_completion_ids(tokenizer, e) for e in held_out], pyarrow.list_(pyarrow.int32())
        ),
        "response": pyarrow.array([example.response for example in held_out], pyarrow.string()),
        "keywords": pyarrow.array([list(example.keywords) for example in held_out], pyarrow.list_(pyarrow.string())),
    }
    pyarrow.parquet.write_table(pyarrow.table(evaluation), folder / "eval.parquet")
    return folder


def _prompt_ids(tokenizer: "PreTrainedTokenizerBase", example: Example) -> list[int]:
    return list(tokenizer(TEMPLATE.format(instruction=example.instruction))["input_ids"])


def _completion_ids(tokenizer: "PreTrainedTokenizerBase", example: Example) -> list[int]:
    return [*tokenizer(example.response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def _reading(generator: random.Random, units: Sequence[str]) -> tuple[dict[str, str], str, str]:
    symptoms, fault, action = generator.choice(_FAULTS)
    reading = {
        "device": generator.choice(_DEVICES),
        "unit": generator.choice(units),
        "site": generator.choice(_SITES),
        "symptom": generator.choice(symptoms),
        "value": f"{generator.uniform(0, 99):.1f}",
    }
    return reading, fault, action


def _examples(count: int, generator: random.Random, units: Sequence[str]) -> list[Example]:
    examples = []
    for _ in range(count):
        reading, fault, action = _reading(generator, units)
        question = generator.choice(_QUESTIONS).format(**reading)
        examples.append(Example(question, f"Fault: {fault}. Action: {action}.", (fault, action)))
    return examples


def _log_line(generator: random.Random, units: Sequence[str]) -> str:
    reading, _, _ = _reading(generator, units)
    fault, action = generator.choice(_FAULTS)[1], generator.choice(_FAULTS)[2]
    unit = f"{reading['device']} {reading['unit']}"
    kind = generator.random()
    if kind < 0.35:
        day = f"2026-{generator.randint(1, 12):02d}-{generator.randint(1, 28):02d}"
        clock = f"{generator.randint(0, 23):02d}:{generator.randint(0, 59):02d}"
        status = generator.choice(("OK", "OK", "OK", "WARN", "ALERT"))
        return f"{day} {clock} {unit} {reading['site']} value {reading['value']} status {status}"
    if kind < 0.6:
        return f"Alert: {unit} at {reading['site']} reports {reading['symptom']}, value {reading['value']}."
    if kind < 0.8:
        cause, task = generator.choice(("Fault", "Cause")), generator.choice(("Action", "Task"))
        return f"Note: {cause}: {fault}. {task}: {action}. Unit {unit}."
    finding = generator.choice(("all normal", "sensor log complete", "value in limit", "no alert"))
    ask = generator.choice(("Explain the reading", "Give the next service date", "What is the status"))
    return f"The {unit} in {reading['site']} was checked: {finding}. {ask} of the {reading['device']}."

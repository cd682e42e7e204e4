"""Tiny models in place of those that the tutorials name, and what the tests change in objects for them.

The text of a tutorial is for SmolLM2-135M, Qwen2.5-0.5B and Llama 3 8B. In the tests:

- examples/sensor-faults/base is a model of 0.6 million parameters that has read tickets, but knows no queue of any;
- for chats, it is a random one, which a server on this machine in place of the hub has too;
- ./llama-3-8b has the configuration and the tensor headers of Llama 3 8B, and no values;
- `shrink` sets the training of every object to what a tiny model learns from in seconds, few rows to score, and gates
  on scores that it can hold.
"""

import csv
import json
import math
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.apiserver import REPOSITORY
from support.base_folder import header_of
from support.fake_hub import FakeHub, running_hub
from support.gpu_memory_page import MODELS
from support.tiny_model import make_tiny_base
from support.tiny_tokenizer import CHAT_TEMPLATE, save_tokenizer

EXAMPLES = REPOSITORY / "examples"
_HUB_MODEL, _HUB_COMMIT = "Qwen/Qwen2.5-0.5B-Instruct", "7ae557604adf67be50417f59c2c2f167def9a775"


def shrink(document: dict[str, Any]) -> None:
    """Set what a tiny model needs in a LoraFineTune; everything else is as the tutorial says."""
    spec = document["spec"]
    chat = spec["dataset"].get("format") == "Chat"
    spec["lora"] = {**spec.get("lora", {}), "dropout": 0}
    spec["training"] = {
        "maxSteps": 2 if chat else 60,
        "batchSize": 8,
        "learningRate": 0.005,
        "maxLength": 384 if chat else 96,
        "optimizer": "adamw_torch",
        "precision": "FP32",
    }
    spec["evaluation"] |= {"maxNewTokens": 8, "maxExamples": 8 if chat else 24}
    gates = spec["evaluation"].setdefault("gates", {})
    # Few rows and a base that has seen nothing else: it learns something, and not well. Two steps teach nothing.
    for name, most in (("minScore", 0.3), ("minImprovement", 0.3)):
        if name in gates:
            gates[name] = 0 if chat else min(gates[name], most)


def write_tickets_base(folder: Path) -> None:
    """A base that has read tickets in the order of a prompt, each with a random queue."""
    with (EXAMPLES / "tickets" / "train.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    generator = random.Random(0)
    queues = sorted({row["queue"] for row in rows})
    lines = []
    for _ in range(6_000):
        ticket, queue = generator.choice(rows)["ticket"], generator.choice(queues)
        shown = generator.random() < 0.2
        lines.append(f"### Ticket:\n{ticket}\n\n### Queue:\n{queue}" if shown else ticket)
    make_tiny_base(folder, pretrain_steps=150, lines=lines)


def write_llama_headers(folder: Path) -> None:
    """A folder like that of Llama 3 8B: 16 GB of holes, which take no disk, and a tokenizer of another model."""
    from edgetune_jobs.models.skeleton import build_skeleton

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODELS["Llama 3.1 8B"]), encoding="utf-8")
    save_tokenizer(folder, chat_template=CHAT_TEMPLATE)
    shapes = {name: tuple(each.shape) for name, each in build_skeleton(folder).named_parameters()}
    header = json.dumps(header_of(shapes)).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + sum(2 * math.prod(shape) for shape in shapes.values()))


def write_chat_base(folder: Path) -> None:
    """A random base with the special tokens of ChatML, and a chat template that knows no tools."""
    text = (EXAMPLES / "functions" / "train.jsonl").read_text(encoding="utf-8")
    make_tiny_base(folder, pretrain_steps=0, lines=text.splitlines())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text(encoding="utf-8").replace("</s>", "<|im_end|>"), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


@contextmanager
def hub_with_the_chat_base(base: Path) -> Iterator[FakeHub]:
    """A hub that answers for Qwen2.5-0.5B-Instruct with a tiny base and the chat template of examples/functions."""
    files = {path.name: path.read_bytes() for path in base.iterdir()}
    files["chat_template.jinja"] = (EXAMPLES / "functions" / "chat_template.jinja").read_bytes()
    with running_hub(_HUB_MODEL, _HUB_COMMIT, files) as hub:
        yield hub

"""Small bases of any architecture with their data, and the stages on them in this process, one after the other."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.pipeline import inputs_of
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.runtime.process import load_stage_code
from edgetune_jobs.stage import StageContext, StageOutput
from edgetune_jobs.store.sources.source import FolderSource, SourceKind
from support.stage_context import stage_context
from support.tiny_tokenizer import CHAT_TEMPLATE, save_tokenizer

SMALL = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
"""Sizes of a configuration like Llama's."""

ROWS: Sequence[dict[str, Any]] = [
    {
        "instruction": f"Valve V-{i} reads {20 + i} bar. State?",
        "response": f"State: {'high' if i % 2 else 'normal'}.",
    }
    for i in range(24)
]

Chain = Mapping[Stage, StageOutput]


def make_base(folder: Path, model_type: str, config: Mapping[str, Any], *, chat_template: str = CHAT_TEMPLATE) -> Path:
    """Write a random base model in bfloat16 of any type that transformers knows, with the tiny tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    save_tokenizer(folder, chat_template=chat_template)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(model_type, **{"vocab_size": 400, **ids, **config})
        )
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@dataclasses.dataclass(frozen=True)
class Case:
    """One object: a base, rows, and sections of the spec that replace fields of a run of three steps, by JSON name."""

    folder: Path
    base: Path
    rows: Sequence[Mapping[str, Any]] = tuple(ROWS)
    sections: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @cached_property
    def parameters(self) -> Parameters:
        """The spec; the rows are written to their file."""
        data = self.folder / "train.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        spec: dict[str, Any] = {
            "baseModel": {"uri": self.base.as_uri()},
            "dataset": {"train": {"uri": data.as_uri()}},
            "lora": {"targetModules": "AllLinear"},
            "training": {
                "maxSteps": 3,
                "batchSize": 2,
                "microBatchSize": 2,
                "maxLength": 256,
                "optimizer": "adamw_torch",
                "gradientCheckpointing": "Never",
            },
            "evaluation": {"maxExamples": 2, "maxNewTokens": 8},
        }
        for name, section in self.sections.items():
            spec[name] = {**spec.get(name, {}), **section} if isinstance(section, dict) else section
        spec["training"] = {name: value for name, value in spec["training"].items() if value is not None}
        return Parameters.model_validate(spec)

    def run_up_to(self, last: Stage) -> Chain:
        """Run the stages up to and including `last`; their outputs."""
        return {stage: self.run(stage) for stage in list(Stage)[: list(Stage).index(last) + 1]}

    def run(self, stage: Stage) -> StageOutput:
        """Run one stage after those before it."""
        context = self._context(stage)
        return load_stage_code(stage).run(context)

    def artifact(self, name: str) -> Path:
        """Folder of an artifact of a stage that has run."""
        return next(self.folder.glob(f"*/output/{name}"))

    def prepared_texts(self) -> list[tuple[str, str]]:
        """Each prepared training row as text, and the part of it that is learned."""
        from pyarrow import parquet
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(self.base)
        rows = parquet.read_table(self.artifact("prepared") / "train.parquet").to_pylist()
        learned = ([i for i, m in zip(row["input_ids"], row["completion_mask"], strict=True) if m] for row in rows)
        return [
            (tokenizer.decode(row["input_ids"]), tokenizer.decode(ids)) for row, ids in zip(rows, learned, strict=True)
        ]

    def refusal(self, stage: Stage) -> str:
        """Message of the stage's refusal of this input."""
        with pytest.raises(InvalidInput) as caught:
            self.run(stage)
        return str(caught.value)

    def _context(self, stage: Stage) -> StageContext:
        known = {"base": self.base, **{path.name: path for path in self.folder.glob("*/output/*")}}
        inputs = {name: known[name] for name in inputs_of(stage, self.parameters)}
        context = stage_context(stage, self.parameters, self.folder / stage.value, inputs)
        if stage is not Stage.PREPARE:
            return context
        dataset = self.parameters.dataset
        sources = {
            "base": FolderSource(self.parameters.base_model.uri, "spec.baseModel", SourceKind.MODEL),
            "train": FolderSource(dataset.train.uri, "spec.dataset.train", SourceKind.DATA),
        }
        return dataclasses.replace(context, sources=sources)

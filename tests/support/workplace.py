"""A base model and data in a folder, and the stage prepare on them."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

from edgetune_contract.pipeline import PREPARED
from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.errors import InvalidInput
from edgetune_jobs.stage import StageContext, StageOutput
from edgetune_jobs.stages import prepare
from edgetune_jobs.store.sources.source import FolderSource, SourceKind
from support.base_folder import make_base
from support.data_rows import instruction_rows, jsonl, write_file
from support.stage_context import RecordedProgress, stage_context
from support.tiny_tokenizer import CHAT_TEMPLATE


@dataclasses.dataclass
class Workplace:
    """A base model and data in a folder, on which prepare is run."""

    folder: Path
    runs: int = 0
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)
    progress: RecordedProgress = dataclasses.field(default_factory=RecordedProgress)

    def context(self, **spec: Any) -> StageContext:
        self.runs += 1
        dataset = {"train": {"uri": f"file://{self.folder}/train.jsonl"}, **spec.pop("dataset", {})}
        parameters = Parameters.model_validate(
            {
                "baseModel": {"uri": f"file://{self.folder}/base"},
                "dataset": dataset,
                "training": {"maxLength": 256, **spec.pop("training", {})},
                **spec,
            }
        )
        sources = {
            "base": FolderSource(parameters.base_model.uri, "spec.baseModel", SourceKind.MODEL),
            "train": FolderSource(parameters.dataset.train.uri, "spec.dataset.train", SourceKind.DATA),
        }
        if parameters.dataset.eval is not None:
            sources["eval"] = FolderSource(parameters.dataset.eval.uri, "spec.dataset.eval", SourceKind.DATA)
        context = stage_context(
            Stage.PREPARE, parameters, self.folder / f"run-{self.runs}", {}, stop=self.stop, progress=self.progress
        )
        return dataclasses.replace(context, sources=sources)

    def run(self, **spec: Any) -> tuple[StageOutput, Path]:
        context = self.context(**spec)
        output = prepare.run(context)
        return output, context.output / PREPARED

    def refusal(self, **spec: Any) -> str:
        context = self.context(**spec)
        with pytest.raises(InvalidInput) as caught:
            prepare.run(context)
        assert list(context.output.iterdir()) == []
        return str(caught.value)

    def write(self, name: str, rows: list[dict[str, object]]) -> dict[str, dict[str, str]]:
        """Write a data file; the entry of spec.dataset for it."""
        write_file(self.folder / name, jsonl(rows))
        return {name.removesuffix(".jsonl"): {"uri": f"file://{self.folder}/{name}"}}


def make_workplace(folder: Path) -> Workplace:
    """A small base model with a chat template and a licence, and 300 rows of instructions."""
    make_base(folder / "base", chat_template=CHAT_TEMPLATE)
    (folder / "base" / "LICENSE").write_text("Apache License\nVersion 2.0, January 2004\n")
    place = Workplace(folder)
    place.write("train.jsonl", instruction_rows(300))
    return place

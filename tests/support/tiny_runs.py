"""Short training runs on a tiny model, and their parameters."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgetune_contract.spec import Parameters
from edgetune_contract.stages import Stage
from edgetune_jobs.stage import StageContext, StageOutput
from support.stage_context import FolderCheckpoints, RecordedProgress, stage_context

BASE_URI = "s3://models/tiny"


def tiny_parameters(**sections: Any) -> Parameters:
    """Parameters of a run of 3 steps in float32 without dropout; `sections` override the spec's, by JSON name."""
    spec: dict[str, Any] = {
        "baseModel": {"uri": BASE_URI},
        "dataset": {"train": {"uri": "s3://datasets/tiny.jsonl"}},
        "lora": {"targetModules": "AllLinear", "dropout": 0.0},
        "training": {
            "maxSteps": 3,
            "batchSize": 4,
            "microBatchSize": 4,
            "learningRate": 0.005,
            "maxLength": 128,
            "optimizer": "adamw_torch",
            "gradientCheckpointing": "Never",
            "precision": "FP32",
        },
        "evaluation": {"maxNewTokens": 24},
    }
    for name, section in sections.items():
        spec[name] = {**spec.get(name, {}), **section} if isinstance(section, dict) else section
    training = spec["training"]
    spec["training"] = {key: value for key, value in training.items() if value is not None}
    return Parameters.model_validate(spec)


@dataclass
class TrainingRun:
    """One attempt of the stage train: its context, progress, checkpoints and output."""

    context: StageContext
    progress: RecordedProgress
    checkpoints: FolderCheckpoints
    output: StageOutput = field(default_factory=StageOutput)

    @property
    def adapter(self) -> Path:
        return self.context.output / "adapter"

    def figures(self, name: str) -> list[float]:
        """A figure of each reported step, such as loss."""
        return [update[name] for update in self.progress.updates]

    def weights(self) -> dict[str, Any]:
        """The adapter's tensors."""
        from safetensors.torch import load_file

        return dict(load_file(self.adapter / "adapter_model.safetensors"))


def new_run(
    folder: Path,
    parameters: Parameters,
    base: Path,
    prepared: Path,
    *,
    checkpoints: FolderCheckpoints | None = None,
) -> TrainingRun:
    """An attempt in a new folder that has not started; checkpoints go to that folder unless they are given."""
    progress = RecordedProgress()
    checkpoints = checkpoints or FolderCheckpoints(folder / "checkpoints")
    inputs = {"base": base, "prepared": prepared}
    context = stage_context(Stage.TRAIN, parameters, folder, inputs, progress=progress, checkpoints=checkpoints)
    return TrainingRun(context, progress, checkpoints)


def train(
    folder: Path,
    parameters: Parameters,
    base: Path,
    prepared: Path,
    *,
    checkpoints: FolderCheckpoints | None = None,
) -> TrainingRun:
    """Train to the end."""
    from edgetune_jobs.stages import train as stage

    run = new_run(folder, parameters, base, prepared, checkpoints=checkpoints)
    run.output = stage.run(run.context)
    return run

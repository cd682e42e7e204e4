"""The tiny base model and its data in an S3 bucket, and a LoraFineTune that fine-tunes it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgetune_operator.api import names
from support.tiny_data import Example, held_out_examples, training_examples
from support.tiny_model import make_tiny_base
from support.versitygw import S3Server

BASE_KEY = "models/tiny"
_TRAIN = "datasets/tiny/train.jsonl"
_EVAL = "datasets/tiny/eval.jsonl"


def upload_tiny_inputs(server: S3Server, folder: Path, *, training_rows: int = 600, held_out_rows: int = 40) -> None:
    """Upload base model, training data and evaluation data to the bucket."""
    client = server.client()
    base = make_tiny_base(folder / "base")
    for path in sorted(base.iterdir()):
        client.upload_file(str(path), server.bucket, f"{BASE_KEY}/{path.name}")
    for key, examples in ((_TRAIN, training_examples(training_rows)), (_EVAL, held_out_examples(held_out_rows))):
        client.put_object(Bucket=server.bucket, Key=key, Body=_jsonl(examples).encode())


def tiny_fine_tune(server: S3Server, namespace: str, name: str = "tiny", **sections: Any) -> dict[str, Any]:
    """A LoraFineTune of these inputs that learns its task on a CPU in under a minute.

    Args:
        sections: override fields in sections of the spec, by JSON name.
    """
    spec: dict[str, Any] = {
        "baseModel": {"uri": f"s3://{server.bucket}/{BASE_KEY}"},
        "dataset": {
            "train": {"uri": f"s3://{server.bucket}/{_TRAIN}"},
            "eval": {"uri": f"s3://{server.bucket}/{_EVAL}"},
        },
        "lora": {"targetModules": "AllLinear", "dropout": 0.0},
        "training": {
            "maxSteps": 120,
            "batchSize": 16,
            "microBatchSize": 16,
            "learningRate": 0.005,
            "maxLength": 128,
            "optimizer": "adamw_torch",
            "gradientCheckpointing": "Never",
            "checkpoint": {"everySteps": 20},
        },
        "evaluation": {"maxNewTokens": 24},
    }
    for section, value in sections.items():
        spec[section] = {**spec.get(section, {}), **value} if isinstance(value, dict) else value
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "spec": spec}


def _jsonl(examples: Sequence[Example]) -> str:
    rows = (
        {"instruction": each.instruction, "response": each.response, "expected_keyword": list(each.keywords)}
        for each in examples
    )
    return "".join(json.dumps(row) + "\n" for row in rows)

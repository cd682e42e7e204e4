"""Names of the figures of a step in trackers: those that the Trainer of transformers gives its own."""

from collections.abc import Mapping

LOSS, VALIDATION_LOSS = "train/loss", "eval/loss"

FIGURES: Mapping[str, str] = {
    "loss": LOSS,
    "learningRate": "train/learning_rate",
    "gradientNorm": "train/grad_norm",
    "tokensPerSecond": "train/tokens_per_second",
}
"""Name in a tracker by the name in metrics.jsonl and in the progress of train."""

"""Overhead of the train stage over a bare trl script: tokens per second of both, alternating, on the same rows.

    python tests/bench/bench_train_overhead.py [--pairs N] [--steps N]

Both train the same QLoRA adapter on the same random model of 3.3 million parameters. The bare script is what a user of
trl would write; the stage also counts parameters, observes every step, reports progress and saves its checkpoint.
Goal: a ratio of at least 0.99.
"""

import argparse
import os
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.bare_trl import train_bare
from bench.report import print_table
from edgetune_contract.spec import Parameters
from edgetune_jobs.models import loading
from edgetune_jobs.models.libraries import prepare_libraries
from support import tiny_data
from support.tiny_model import make_tiny_base
from support.tiny_runs import tiny_parameters, train

_BATCH = 16


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each kind (5)")
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of one measurement (30)")
    options = parser.parse_args()
    prepare_libraries()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_tiny_base(folder / "base", hidden=256, layers=4, pretrain_steps=0)
        prepared = tiny_data.write_prepared(
            folder / "prepared", loading.load_tokenizer(base), tiny_data.training_examples(600), []
        )
        bare: list[float] = []
        stage: list[float] = []
        _measure_bare(base, prepared, folder / "warm-up", 2)
        for pair in range(options.pairs):
            # Alternating, with changing order: a machine that slows down or speeds up affects both.
            for kind in ("bare", "stage") if pair % 2 == 0 else ("stage", "bare"):
                work = folder / f"{kind}-{pair}"
                if kind == "bare":
                    bare.append(_measure_bare(base, prepared, work, options.steps))
                else:
                    stage.append(_measure_stage(base, prepared, work, options.steps))
    ratios = [ours / theirs for ours, theirs in zip(stage, bare, strict=True)]
    rows = [
        [name, f"{statistics.median(values):,.0f}", f"{min(values):,.0f}", f"{max(values):,.0f}"]
        for name, values in (("bare trl script", bare), ("train stage", stage))
    ]
    rows.append(["ratio", *(f"{value:.3f}" for value in (statistics.median(ratios), min(ratios), max(ratios)))])
    print_table(
        f"QLoRA training, tokens per second ({options.pairs} pairs of {options.steps} steps)",
        ["", "median", "lowest", "highest"],
        rows,
        ["The ratio is computed for each pair; the goal is at least 0.99."],
    )


def _parameters(steps: int) -> Parameters:
    return tiny_parameters(
        training={"maxSteps": steps, "batchSize": _BATCH, "microBatchSize": _BATCH, "precision": "Auto"}
    )


def _measure_stage(base: Path, prepared: Path, work: Path, steps: int) -> float:
    return train(work, _parameters(steps), base, prepared).output.metrics["tokensPerSecond"]


def _measure_bare(base: Path, prepared: Path, work: Path, steps: int) -> float:
    parameters = _parameters(steps)
    optimizer = parameters.training.optimizer
    tokens, seconds = train_bare(parameters, base, prepared, work, optim=optimizer, activation_checkpointing=False)
    return tokens / seconds


if __name__ == "__main__":
    main()

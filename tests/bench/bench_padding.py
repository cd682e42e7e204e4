"""Training without padding compared with padded batches: tokens per second of both, alternating, on rows of a CPU.

    python tests/bench/bench_padding.py [--pairs N] [--steps N]

The rows have the lengths of instructions: a median of 90 tokens and a few long ones, so that a padded batch is mostly
padding. Tokens are counted without it. Layouts differ only in time: tests/stages/test_train_layouts.py compares losses.
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

from bench.gpu_check.inputs import short_lengths, write_rows
from bench.report import print_table
from edgetune_contract.training import Layout
from edgetune_jobs.models.libraries import prepare_libraries
from support.tiny_model import make_tiny_base
from support.tiny_runs import tiny_parameters, train

_BATCH = 32
_VOCABULARY = 300
_LAYOUTS = (Layout.PADDING_FREE, Layout.PADDED)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each layout (3)")
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps of one measurement (3)")
    options = parser.parse_args()
    prepare_libraries()
    warnings.simplefilter("ignore")
    lengths = short_lengths(4 * _BATCH)
    speeds: dict[Layout, list[float]] = {layout: [] for layout in _LAYOUTS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_tiny_base(folder / "base", hidden=256, layers=4, pretrain_steps=0)
        rows = write_rows(folder / "rows", lengths, _VOCABULARY)
        for pair in range(options.pairs):
            # Alternating, with changing order: a machine that slows down or speeds up affects both.
            for layout in _LAYOUTS if pair % 2 == 0 else reversed(_LAYOUTS):
                training = {"maxSteps": options.steps, "batchSize": _BATCH, "microBatchSize": _BATCH}
                parameters = tiny_parameters(training={**training, "layout": layout, "maxLength": 1024})
                run = train(folder / f"{layout}-{pair}", parameters, base, rows)
                speeds[layout].append(run.output.metrics["tokensPerSecond"])
    ratios = [free / padded for free, padded in zip(*speeds.values(), strict=True)]
    table = [[layout, *_spread(values, ",.0f")] for layout, values in speeds.items()]
    table.append(["ratio", *_spread(ratios, ".2f")])
    print_table(
        f"QLoRA training, tokens per second without padding ({options.pairs} pairs of {options.steps} steps)",
        ["", "median", "lowest", "highest"],
        table,
        [f"rows of {min(lengths)} to {max(lengths)} tokens, {statistics.mean(lengths):.0f} on average"],
    )


def _spread(values: list[float], form: str) -> list[str]:
    return [format(value, form) for value in (statistics.median(values), min(values), max(values))]


if __name__ == "__main__":
    main()

"""One and two processes that train on the cores of this machine: time of a step, and what they send each other.

    python tests/bench/bench_ranks.py [--pairs N] [--steps N]

Both have all cores: one process has two threads for each thread of the two. Bytes are those of the loopback device in
a network of its own, where the kernel allows one; those of a longer training minus those of a shorter one, so that the
start does not count.
"""

import argparse
import ctypes
import fcntl
import os
import socket
import statistics
import struct
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.gpu_check.inputs import short_lengths, write_rows
from bench.report import print_table
from edgetune_contract.stages import Stage
from edgetune_jobs.models.libraries import prepare_libraries
from edgetune_jobs.runtime.ranks.plan import RankPlan
from edgetune_jobs.runtime.ranks.supervisor import StoreOfRanks, train_in_ranks
from support.stage_context import stage_context
from support.tiny_model import make_tiny_base
from support.tiny_runs import tiny_parameters

_BATCH = 16
_VOCABULARY = 300
_LORA = {"targetModules": "AllLinear", "rank": 16, "dropout": 0.0}
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1


@dataclass(frozen=True)
class _Run:
    metrics: Mapping[str, float]
    moved: int
    """Bytes over the loopback device."""

    @property
    def seconds_a_step(self) -> float:
        return self.metrics["trainSeconds"] / self.metrics["steps"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="measurements with each number of processes (3)")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of one measurement (4)")
    options = parser.parse_args()
    is_apart = _enter_own_network()
    prepare_libraries()
    runs: dict[int, list[_Run]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_tiny_base(folder / "base", hidden=256, layers=4, pretrain_steps=0)
        rows = write_rows(folder / "rows", short_lengths(4 * _BATCH), _VOCABULARY)
        inputs = {"base": base, "prepared": rows}
        for pair in range(options.pairs):
            # Alternating, with changing order: a machine that slows down or speeds up affects both.
            for processes in (1, 2) if pair % 2 == 0 else (2, 1):
                runs[processes].append(_train(folder / f"{processes}-{pair}", inputs, processes, options.steps))
        longer = _train(folder / "longer", inputs, 2, 3 * options.steps)
    _print(runs, longer, options.steps, is_apart)


def _train(folder: Path, inputs: Mapping[str, Path], processes: int, steps: int) -> _Run:
    training = {"maxSteps": steps, "batchSize": _BATCH, "microBatchSize": _BATCH // 2, "maxLength": 1024}
    parameters = tiny_parameters(training=training, lora=_LORA)
    context = stage_context(Stage.TRAIN, parameters, folder, inputs)
    before = _loopback_bytes()
    output = train_in_ranks(context, RankPlan(processes), StoreOfRanks("0" * 64))
    return _Run(output.metrics, _loopback_bytes() - before)


def _print(runs: Mapping[int, list[_Run]], longer: _Run, steps: int, is_apart: bool) -> None:
    table = []
    for processes, found in runs.items():
        seconds = [run.seconds_a_step for run in found]
        speed = statistics.median(run.metrics["tokensPerSecond"] for run in found)
        table.append([str(processes), f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f}", f"{speed:,.0f}"])
    moved = statistics.median(run.moved for run in runs[2])
    parameters = longer.metrics["trainableParameters"]
    a_step = (longer.moved - moved) / (longer.metrics["steps"] - steps) / 2
    print_table(
        f"QLoRA training in one and two processes on a CPU ({len(runs[1])} pairs of {steps} steps)",
        ["processes", "s a step", "lowest", "tokens/s"],
        table,
        [
            f"each of two processes sends {a_step:,.0f} bytes a step; 4 bytes for each of {parameters:,.0f} trainable "
            f"parameters are {4 * parameters:,.0f}: {a_step / (4 * parameters):.3f} times as many",
            "in a network of its own" if is_apart else "beside all other traffic of the loopback device",
        ],
    )


def _loopback_bytes() -> int:
    """Bytes that this machine has sent to itself."""
    for line in Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == "lo":
            return int(figures.split()[8])
    return 0


def _enter_own_network() -> bool:
    """Move this process and those that it starts to a network namespace with a loopback device; whether that worked."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) and libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device:
        fcntl.ioctl(device, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", _IFF_UP) + bytes(14))
    return True


if __name__ == "__main__":
    main()

"""What only a GPU can show: speed, memory, NF4, attention, recovery. For one H100 or H200, in at most 8 minutes.

    python3 tests/bench/gpu_check [--wheels DIR] [--results FILE] [--only TEXT ...]
    python3 tests/bench/gpu_check --device cpu --scale 100

Each step writes a line to results.jsonl as soon as it ends; a table at the end has the goals beside the figures. The
second command rehearses every step with tiny shapes. docs/benchmarks.md says how to fill DIR.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[3]
_INSTALLED = "EDGETUNE_GPU_CHECK_WHEELS"
_MOST_MINUTES = 8.0


def main() -> int:
    """Run the steps and print the table; 1 if a step failed or was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--scale", type=int, default=1, help="divide all sizes by this number, for a rehearsal (1)")
    parser.add_argument("--wheels", type=Path, help="folder of wheels that this machine lacks; they are used here only")
    parser.add_argument("--results", type=Path, default=Path("results.jsonl"), help="file to write (results.jsonl)")
    parser.add_argument("--minutes", type=float, default=_MOST_MINUTES, help="time for all steps together (8)")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="run steps with such names, and keep other lines")
    options = parser.parse_args()
    if options.wheels and _INSTALLED not in os.environ:
        return _run_with_wheels(options.wheels)
    sys.path[:0] = [str(_REPOSITORY / name) for name in ("tests", "jobs", "operator")]
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return _check(options)


def _run_with_wheels(wheels: Path) -> int:
    """Run this script again in an environment that also has these wheels."""
    files = sorted(map(str, wheels.glob("*.whl")))
    if not files:
        sys.exit(f"{wheels}: there are no wheels; docs/benchmarks.md says how to fill this folder")
    with tempfile.TemporaryDirectory() as name:
        environment = Path(name)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", name], check=True)
        python = environment / "bin/python"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = environment / "lib" / version / "site-packages"
        # Not --system-site-packages: where this Python is a virtual environment itself, that leaves its packages out.
        (packages / "here.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")) + "\n")
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
        subprocess.run([*install, "--upgrade", "--target", str(packages), *files], check=True)
        command = [str(python), str(Path(__file__).parent), *sys.argv[1:]]
        return subprocess.run(command, env={**os.environ, _INSTALLED: "1"}, check=False).returncode


def _check(options: argparse.Namespace) -> int:
    from edgetune_jobs.models.libraries import prepare_torch

    prepare_torch()
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("CUDA sees no GPU on this machine; --device cpu --scale 100 rehearses the steps without one")
    from bench.gpu_check.goals import print_goals
    from bench.gpu_check.inputs import Inputs
    from bench.gpu_check.machine import allow_older_torch
    from bench.gpu_check.runner import read_results, run_steps
    from bench.gpu_check.steps import all_steps
    from edgetune_jobs.models.loading import choose_device

    allow_older_torch()
    device = choose_device()
    warnings.simplefilter("ignore")
    steps = [
        step
        for step in all_steps()
        if not options.only or any(text.lower() in step.name.lower() for text in options.only)
    ]
    if not steps:
        sys.exit(f"--only: no step has such a name; they are {', '.join(each.name for each in all_steps())}")
    if not options.only:
        options.results.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        inputs = Inputs(device, options.scale, Path(folder))
        inputs.figures.update({each.step: each.figures for each in read_results(options.results)})
        try:
            run_steps(steps, inputs, options.results, options.minutes * 60)
        finally:
            inputs.close()
    outcomes = read_results(options.results)
    print_goals(outcomes, is_rehearsal=options.device == "cpu")
    return int(any(each.status != "ok" for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())

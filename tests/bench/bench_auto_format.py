"""What `formats: Auto` costs: quantize and evaluate of the demo's model, compared with the one format that it chooses.

    python tests/bench/bench_auto_format.py [--max-bytes QUANTITY]

The demo runs first, in a temporary folder (some minutes). Then its object is run twice more from the same trained
adapter: with Auto and a limit on bytes, and with the chosen format alone, in a copy of the store without the outputs of
quantize and evaluate. GGUF is measured in llama.cpp, which `python -m support.llama_cpp` builds once into the cache.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.demo_run import run_demo
from bench.report import print_table
from support.llama_cpp import packages_of_llama_cpp

_OBJECT = "lora-fine-tune.yaml"
_AGAIN = ("quantize", "evaluate", "publish")
Status = dict[str, Any]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-bytes", default="170M", help="gates.maxEdgeBytes of the run with Auto (170M)")
    options = parser.parse_args()
    os.environ["PYTHONPATH"] = str(packages_of_llama_cpp())
    with tempfile.TemporaryDirectory() as name:
        demo = Path(name) / "demo"
        run_demo(demo)
        auto = _run_again(demo, "Auto", options.max_bytes)
        (chosen,) = (each["format"] for each in auto["candidates"] if each.get("chosen"))
        alone = _run_again(demo, [chosen], options.max_bytes)
    seconds = [{row["name"]: row["seconds"] for row in status["stages"]} for status in (auto, alone)]
    totals = [sum(each[stage] for stage in _AGAIN[:2]) for each in seconds]
    print_table(
        f"The demo's model with formats Auto and at most {options.max_bytes}, and with {chosen} alone, in seconds",
        ["", "Auto", chosen],
        [
            *([stage, *(f"{each[stage]:.1f}" for each in seconds)] for stage in _AGAIN[:2]),
            ["both", *(f"{total:.1f}" for total in totals)],
        ],
        [
            f"Auto / {chosen}: {totals[0] / totals[1]:.2f}",
            *(_described(each) for each in auto["candidates"]),
        ],
    )


def _run_again(demo: Path, formats: str | list[str], most: str) -> Status:
    """The status of a run with these formats, from the adapter that the demo trained."""
    document: dict[str, Any] = yaml.safe_load((demo / _OBJECT).read_text(encoding="utf-8"))
    document["spec"]["quantization"] = {"formats": formats}
    document["spec"]["evaluation"]["gates"]["maxEdgeBytes"] = most
    (demo / "again.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    for stage in _AGAIN:
        for folder in (demo / ".edgetune" / "store").glob(f"*/stages/{stage}"):
            shutil.rmtree(folder)
    command = [str(Path(sys.executable).with_name("edgetune")), "run", "-f", "again.yaml", "-o", "yaml"]
    done = subprocess.run(command, cwd=demo, check=True, stdout=subprocess.PIPE, text=True)
    status: Status = yaml.safe_load(done.stdout)["status"]
    return status


def _described(candidate: dict[str, Any]) -> str:
    found = ", ".join(f"{key} {value}" for key, value in candidate.items() if key != "format")
    return f"{candidate['format']}: {found}"


if __name__ == "__main__":
    main()

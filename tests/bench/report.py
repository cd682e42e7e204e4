"""Output of the benchmarks: tables and files."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_REPOSITORY = Path(__file__).resolve().parents[2]


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
    """Print a table with the machine below the title; the first column is left-aligned, the others right-aligned."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(columns))]
    print(f"\n{title}\n{', '.join(f'{value}' for value in machine().values())}\n")
    for index, row in enumerate(cells):
        first, *others = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join([first, *others]).rstrip())
        if index == 0:
            print("  ".join("-" * width for width in widths))
    for note in notes:
        print(note)


def write_json(path: Path, options: Mapping[str, Any], figures: Mapping[str, float]) -> None:
    """Write the figures of one run and its machine, so that runs can be compared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine(), "options": dict(options), "figures": dict(figures)}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def machine() -> dict[str, str]:
    """Facts on which the figures depend: processor, cores, load, date and commit."""
    facts = {"processor": _processor(), "cores": f"{os.cpu_count()} cores"}
    if hasattr(os, "getloadavg"):
        facts["load"] = f"load {os.getloadavg()[0]:.1f} at the end"
    return {**facts, "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "commit": _commit()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model} ({platform.machine()})".strip()


def _commit() -> str:
    """Commit of the sources, with + if they differ from it; "no commit" outside a repository."""
    command = ["git", "-C", str(_REPOSITORY), "describe", "--always", "--exclude=*", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else "no commit"

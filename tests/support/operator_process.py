"""The operator as a process of this machine, for tests on a cluster that does not run it itself."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_STOP_LIMIT_SECONDS = 20


@dataclass(frozen=True)
class OperatorProcess:
    """A running operator."""

    process: "subprocess.Popen[bytes]"
    log: Path


@contextmanager
def running_operator(
    folder: Path, kubeconfig: Path, profiles: Mapping[str, Any], *arguments: str
) -> Iterator[OperatorProcess]:
    """An operator for all namespaces, as the user of a kubeconfig. Its log stays in the folder.

    Args:
        profiles: profiles by name, as the chart's values hold them.
        arguments: more arguments of its command line.
    """
    file, log = folder / "profiles.yaml", folder / "operator.log"
    file.write_text(yaml.safe_dump({"profiles": dict(profiles)}), encoding="utf-8")
    command = [sys.executable, "-m", "edgetune_operator", "--profiles", str(file), "--log-format", "text", *arguments]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, env={**os.environ, "KUBECONFIG": str(kubeconfig)}, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield OperatorProcess(process, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=_STOP_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

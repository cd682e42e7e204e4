"""The parts of Ollama that make a prompt: its parser of Modelfiles and its templates. The server itself is not here."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.binaries import find

_PROGRAM = "ollama-prompts"
_LIMIT_SECONDS = 60


@dataclass(frozen=True)
class Modelfile:
    """What Ollama reads in a Modelfile."""

    prompts: Sequence[str]
    """The prompt of each conversation."""

    commands: Mapping[str, Sequence[str]]
    """Arguments of each command, by its name in small letters; parameters are commands by their own names."""


def read_modelfile(path: Path, *conversations: Sequence[Mapping[str, str]]) -> Modelfile:
    """What Ollama reads in a Modelfile, and the prompts that it makes of conversations.

    Without the program in the cache, the test is skipped.
    """
    program = find(_PROGRAM)
    if program is None:
        pytest.skip(f"no {_PROGRAM} in the cache: run `make programs`")
    done = subprocess.run(
        [str(program), str(path)],
        input=json.dumps(conversations),
        capture_output=True,
        text=True,
        check=True,
        timeout=_LIMIT_SECONDS,
    )
    answer = json.loads(done.stdout)
    return Modelfile(answer["prompts"], answer["commands"])

"""`kubectl_complete-edgetune`: kubectl calls it to complete the words after `kubectl edgetune`, in any shell.

kubectl passes the words after the plugin's name, of which the last one is incomplete. It reads a completion a line,
with its description after a tab, and a last line with what the shell may do besides.
"""

import os
import shlex
import sys

from typer.completion import completion_init  # type: ignore[attr-defined]  # for apps with options

from edgetune_cli.kubectl.__main__ import app
from edgetune_cli.output import say

_PROGRAM = "kubectl-edgetune"
# Bits of cobra's ShellCompDirective.
_DEFAULT = 0
_NO_FILES = 4
_OF_FILES = "--kubeconfig"


def main() -> None:
    """Print the completions of the last argument."""
    words = sys.argv[1:] or [""]
    # Typer's own protocol for fish has the lines that kubectl reads.
    os.environ |= {
        "_KUBECTL_EDGETUNE_COMPLETE": "complete_fish",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_ARGS": shlex.join([_PROGRAM, *words]),
    }
    completion_init()
    try:
        app(prog_name=_PROGRAM)
    except SystemExit:
        names_file = words[-2:-1] == [_OF_FILES] or words[-1].startswith(f"{_OF_FILES}=")
        say(f":{_DEFAULT if names_file else _NO_FILES}")


if __name__ == "__main__":
    main()
